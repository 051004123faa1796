"""From deltas to text: detokenise the choices of one request, count them, and write them as JSON or as events.

Runs in the HTTP process, so that none of it is on the engine's thread. No sockets, no routes.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from serve.channel import PASSING_ERRORS
from serve.engine.detokenizer import Detokenizer
from serve.engine.request import TokenDelta
from serve.errors import ApiError
from serve.quality.score import QualityReport
from serve.schemas import Plan

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(slots=True)
class Choice:
    """One answer as it grows. Times are readings of the clock; pieces are what has not been written yet."""

    index: int
    seed: int
    num_prompt: int
    detokenizer: Detokenizer
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str | None = None
    quality: QualityReport | None = None
    phi: dict[str, Any] | None = None
    running_quality: QualityReport | None = None
    num_scored: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_shown: int = 0
    num_acknowledged: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def accept(self, deltas: list[TokenDelta], now: float) -> str:
        """Take what has come for this choice; returns the text that became certain."""
        ids: list[int] = []
        for delta in deltas:
            ids += delta.token_ids
            self.logprobs += delta.logprobs
            self.entropies += delta.entropies
            if delta.top_logprobs is not None:
                self.top_logprobs += delta.top_logprobs
            if delta.finish_reason is not None:
                self.finish_reason = delta.finish_reason
        if ids:
            self.token_ids += ids
            if self.first_token_at is None:
                self.first_token_at = now
            self.last_token_at = now
        text = self.detokenizer.push(ids) if ids else ""
        if self.finish_reason is not None and not self._stopped():
            text += self.detokenizer.flush()
        if self._stopped():
            self.finish_reason = "stop"
        self.text.append(text)
        return text

    def _stopped(self) -> bool:
        return self.detokenizer.finished_by_stop is not None

    def logprobs_from(self, start: int) -> dict[str, Any]:
        """The tokens from number start on, with what the model thought of them (nats, temperature 1)."""
        shown: dict[str, Any] = {"token_ids": self.token_ids[start:], "token_logprobs": rounded(self.logprobs[start:])}
        if self.top_logprobs:
            shown["top_logprobs"] = [
                [{"token_id": token, "logprob": round(value, 6)} for token, value in row]
                for row in self.top_logprobs[start:]
            ]
        return shown


@dataclass(frozen=True, slots=True)
class Totals:
    """What metrics want to know of a finished request. Seconds; one entry a choice where lists."""

    num_prompt: int
    num_completion: int
    time_to_first_token: float | None
    times_per_output_token: list[float]
    finish_reasons: list[str]
    seconds: float


class Completion:
    """All choices of one request: feed it deltas, read bytes."""

    def __init__(
        self, plan: Plan, tokenizer: "Tokenizer", arrived: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._arrived = arrived
        self.choices = [
            Choice(index, seed, len(job.prompt_ids), Detokenizer(tokenizer, plan.stop))
            for index, (job, seed) in enumerate(zip(plan.jobs, plan.seeds, strict=True))
        ]

    @property
    def stream(self) -> bool:
        """Whether the reader wants events."""
        return self._plan.stream

    @property
    def quality(self) -> bool:
        """Whether the reader asked for scores."""
        return self._plan.quality

    @property
    def wants_phi(self) -> bool:
        return self._plan.phi

    def prompt_of(self, choice: Choice) -> list[int]:
        """The token ids that this choice continues."""
        return self._plan.jobs[choice.index].prompt_ids

    def running_score_due(self, choice: Choice) -> bool:
        """Whether the reader wants a score of what this choice has so far. True once for each `quality_every`."""
        every = self._plan.quality_every
        if every is None or choice.finished or len(choice.token_ids) // every == choice.num_scored // every:
            return False
        choice.num_scored = len(choice.token_ids)
        return True

    @property
    def finished(self) -> bool:
        return all(choice.finished for choice in self.choices)

    def accept(self, taken: Iterable[tuple[int, TokenDelta]]) -> list[tuple[Choice, str]]:
        """Sort deltas by choice; returns each choice that they changed with its new text.

        Raises ApiError if the engine gave a request up.
        """
        now = self._clock()
        by_choice: dict[int, list[TokenDelta]] = {}
        for index, delta in taken:
            if delta.finish_reason == "error":
                raise failure(delta.error or "the engine gave this request up")
            by_choice.setdefault(index, []).append(delta)
        changed = []
        for index, deltas in by_choice.items():
            choice = self.choices[index]
            if choice.finished:  # a stop string ended it, the engine ran a step ahead
                continue
            changed.append((choice, choice.accept(deltas, now)))
        if self.finished:
            self._refuse_if_never_begun()
        return changed

    def _refuse_if_never_begun(self) -> None:
        if all(c.finish_reason == "deadline" and not c.token_ids for c in self.choices):
            raise ApiError(503, "the deadline passed before the first token", remedy="try again later", retry_after=1)

    def events(self, changed: Iterable[tuple[Choice, str]]) -> bytes:
        """Server-sent events: a delta a choice, and the final event of each choice that ended."""
        return b"".join(self._event(choice, text) for choice, text in changed)

    def _event(self, choice: Choice, text: str) -> bytes:
        if self._plan.logprobs is None:
            delta = f'data: {{"index":{choice.index},"text":{encode_basestring(text)}}}\n\n' if text else ""
        else:
            start, choice.num_shown = choice.num_shown, len(choice.token_ids)
            body = {"index": choice.index, "text": text, "logprobs": choice.logprobs_from(start)}
            delta = f"data: {dumps(body)}\n\n" if text or start < choice.num_shown else ""
        if choice.running_quality is not None:
            delta += _running_event(choice.index, choice.running_quality)
            choice.running_quality = None
        if choice.finish_reason is None:
            return delta.encode()
        final = {
            "index": choice.index,
            "text": "",
            "finish_reason": choice.finish_reason,
            "seed": choice.seed,
            "usage": usage(choice.num_prompt, len(choice.token_ids)),
            "timing": self._timing([choice]),
        }
        final |= diagnostics(choice)
        return f"{delta}data: {dumps(final)}\n\n".encode()

    def body(self, model: str, request_id: str) -> bytes:
        """The JSON answer."""
        choices = []
        for choice in self.choices:
            shown: dict[str, Any] = {
                "index": choice.index,
                "text": "".join(choice.text),
                "finish_reason": choice.finish_reason,
                "seed": choice.seed,
            }
            if self._plan.logprobs is not None:
                shown["logprobs"] = choice.logprobs_from(0)
            choices.append(shown | diagnostics(choice))
        totals = self.totals()
        answer = {
            "id": request_id,
            "model": model,
            "choices": choices,
            "usage": usage(totals.num_prompt, totals.num_completion),
            "timing": self._timing(self.choices),
        }
        return dumps(answer).encode()

    def totals(self) -> Totals:
        """Counts and times so far. A prompt that n choices share counts once."""
        choices = self.choices
        distinct = {id(job.prompt_ids): len(job.prompt_ids) for job in self._plan.jobs}
        firsts = [c.first_token_at for c in choices if c.first_token_at is not None]
        per_token = [
            (c.last_token_at - c.first_token_at) / (len(c.token_ids) - 1)
            for c in choices
            if c.first_token_at is not None and c.last_token_at is not None and len(c.token_ids) > 1
        ]
        return Totals(
            num_prompt=sum(distinct.values()),
            num_completion=sum(len(c.token_ids) for c in choices),
            time_to_first_token=min(firsts) - self._arrived if firsts else None,
            times_per_output_token=per_token,
            finish_reasons=[c.finish_reason or "abort" for c in choices],
            seconds=self._clock() - self._arrived,
        )

    def _timing(self, choices: list[Choice]) -> dict[str, float]:
        seconds = self._clock() - self._arrived
        firsts = [c.first_token_at for c in choices if c.first_token_at is not None]
        num_tokens = sum(len(c.token_ids) for c in choices)
        return {
            "time_to_first_token_seconds": round(min(firsts) - self._arrived, 6) if firsts else 0.0,
            "total_seconds": round(seconds, 6),
            "tokens_per_second": round(num_tokens / seconds, 2) if seconds > 0 else 0.0,
        }


def error_event(error: ApiError) -> bytes:
    """An error after the first byte of a stream."""
    return b"event: error\ndata: " + error.json_bytes() + b"\n\n"


def diagnostics(choice: Choice) -> dict[str, Any]:
    """What the reader asked to know about the text."""
    shown: dict[str, Any] = {}
    if choice.quality is not None:
        shown["quality"] = choice.quality.to_json()
    if choice.phi is not None:
        shown["phi"] = choice.phi
    return shown


def _running_event(index: int, report: QualityReport) -> str:
    shown = {"score": report.score, "grade": report.grade, "num_tokens": report.num_tokens}
    return f"data: {dumps({'index': index, 'text': '', 'quality': shown})}\n\n"


def failure(message: str) -> ApiError:
    if message in PASSING_ERRORS:
        return ApiError(503, message, remedy="send the request again", retry_after=1)
    return ApiError(500, message)


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def rounded(values: list[float]) -> list[float]:
    return [round(value, 6) for value in values]


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
