"""Stream one answer from a server and time it, in the dialect that the server speaks. HTTP only."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Prompt:
    """The same prompt as text and as token ids; a server gets what it takes. Without ids, ours takes the text."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Sampling:
    """greedy: temperature 0; else temperature 1 and nucleus sampling, nothing else."""

    top_p: float | None
    num_tokens: int

    @property
    def name(self) -> str:
        return "greedy" if self.top_p is None else f"top_p {self.top_p:g}"


@dataclass(frozen=True)
class Answer:
    """What one request gave. Seconds on time.perf_counter; num_tokens None where the server did not count."""

    begun: float
    ended: float
    arrivals: list[float]
    num_tokens: int | None


class ServerError(ValueError):
    """A server did not do what the measurement asks of it."""


class Dialect:
    """How a server is asked, and what its lines mean."""

    path = ""
    closes_connections = False

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The JSON body of a request for exactly sampling.num_tokens tokens."""
        raise NotImplementedError

    def read(self, event: Mapping[str, Any]) -> tuple[bool, int | None]:
        """Whether an event carries text, and the number of tokens of the answer if it says so."""
        raise NotImplementedError


class Phiserve(Dialect):
    path = "/generate"

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        return {
            "prompt": prompt.ids or prompt.text,
            "max_new_tokens": sampling.num_tokens,
            "ignore_eos": True,
            "stream": True,
            **_temperature(sampling),
            # What the checkpoint's own defaults might add.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        }

    def read(self, event: Mapping[str, Any]) -> tuple[bool, int | None]:
        return "text" in event, event.get("usage", {}).get("completion_tokens")


class LlamaCpp(Dialect):
    path = "/completion"
    closes_connections = True  # its few HTTP threads are held by idle connections

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        return {
            "prompt": prompt.ids,
            "n_predict": sampling.num_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            **_temperature(sampling),
            **({} if sampling.top_p is None else {"top_k": 0, "min_p": 0.0}),
        }

    def read(self, event: Mapping[str, Any]) -> tuple[bool, int | None]:
        return not event.get("stop", False), event.get("tokens_predicted") if event.get("stop") else None


class OpenAI(Dialect):
    path = "/v1/completions"

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": "default",
            "prompt": prompt.ids,
            "max_tokens": sampling.num_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **_temperature(sampling),
        }

    def read(self, event: Mapping[str, Any]) -> tuple[bool, int | None]:
        return bool(event.get("choices")), (event.get("usage") or {}).get("completion_tokens")


class Lines(Dialect):
    """A bare server: POST /generate with a prompt's text; lines of JSON, {"text": ...}, at the end {"n": tokens}."""

    path = "/generate"

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        return {"prompt": prompt.text, "max_tokens": sampling.num_tokens, **_temperature(sampling)}

    def read(self, event: Mapping[str, Any]) -> tuple[bool, int | None]:
        return "text" in event or "t" in event, event.get("n")


DIALECTS: Mapping[str, Dialect] = {
    "phiserve": Phiserve(),
    "llama": LlamaCpp(),
    "openai": OpenAI(),
    "lines": Lines(),
}


async def ask(session: aiohttp.ClientSession, url: str, dialect: Dialect, prompt: Prompt, sampling: Sampling) -> Answer:
    """One streamed answer. Raises ServerError, with the server's words, unless it is 200 and whole."""
    headers = {"Connection": "close"} if dialect.closes_connections else {}
    begun = time.perf_counter()
    arrivals: list[float] = []
    num_tokens = None
    async with session.post(url + dialect.path, json=dialect.body(prompt, sampling), headers=headers) as response:
        if response.status != 200:
            raise ServerError(f"{url}{dialect.path} answered {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            data = line[5:] if line.startswith(b"data:") else line
            if not data.strip().startswith(b"{"):
                continue
            event = json.loads(data)
            if "error" in event:
                raise ServerError(f"{url}{dialect.path} failed within a stream: {str(event['error'])[:300]}")
            has_text, counted = dialect.read(event)
            if has_text:
                arrivals.append(time.perf_counter())
            num_tokens = num_tokens if counted is None else counted
    if not arrivals:
        raise ServerError(f"{url}{dialect.path} streamed no text; is its dialect right?")
    return Answer(begun, time.perf_counter(), arrivals, num_tokens)


def _temperature(sampling: Sampling) -> dict[str, float]:
    return {"temperature": 0.0} if sampling.top_p is None else {"temperature": 1.0, "top_p": sampling.top_p}
