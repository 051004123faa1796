"""Requests that a server must refuse, each with the refusal that is due. Pure."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from loadtests.workload import text_of


@dataclass(frozen=True)
class Hostility:
    """route: where the server counts it, or None for requests that reach no route of its own."""

    name: str
    statuses: tuple[int, ...]
    body: Callable[[random.Random], bytes]
    method: str = "POST"
    path: str = "/generate"
    content_type: str = "application/json"
    route: str | None = "generate"


def _json(**fields: object) -> Callable[[random.Random], bytes]:
    return lambda rng: json.dumps(fields).encode()


def _truncated(rng: random.Random) -> bytes:
    return json.dumps({"prompt": text_of(rng, 30)}).encode()[: rng.randint(1, 40)]


def _noise(rng: random.Random) -> bytes:
    return b"\xff" + rng.randbytes(rng.randint(1, 4000))


def _long_prompt(rng: random.Random) -> bytes:
    return json.dumps({"prompt": text_of(rng, 20_000)}).encode()


def _huge_body(rng: random.Random) -> bytes:
    return b'{"prompt": "' + b"a " * rng.randint(600_000, 1_500_000) + b'"}'


HOSTILITIES = (
    Hostility("truncated JSON", (400,), _truncated),
    Hostility("noise for JSON", (400,), _noise),
    Hostility("deeply nested JSON", (400, 422), lambda rng: b'{"prompt":' + b"[" * 20_000),
    Hostility("no JSON object", (422,), lambda rng: b"[1, 2, 3]"),
    Hostility("a text that says it is no JSON", (415,), _json(prompt="a"), content_type="text/plain"),
    Hostility("unknown field", (422,), _json(prompt="a", max_length=9)),
    Hostility("prompt of another type", (422,), _json(prompt={"text": "a"})),
    Hostility("no prompt", (422,), _json(temperature=1.0)),
    Hostility("empty prompt", (422,), _json(prompt=[])),
    Hostility("token id out of range", (422,), _json(prompt=[2**40])),
    Hostility("temperature below zero", (422,), _json(prompt="a", temperature=-1)),
    Hostility("answer without end", (422,), _json(prompt="a", max_new_tokens=10**9)),
    Hostility("a thousand choices", (422,), _json(prompt="a", n=1000)),
    Hostility("ten thousand prompts", (422,), _json(prompt=["a"] * 10_000)),
    Hostility("huge prompt", (413, 422), _long_prompt),
    Hostility("huge body", (413,), _huge_body),
    Hostility("scores of no text", (422,), _json(texts="a"), path="/quality/score", route="score"),
    Hostility("scores of too many texts", (422,), _json(texts=["a"] * 5000), path="/quality/score", route="score"),
    Hostility("unknown path", (404,), _json(prompt="a"), path="/generate/../../etc/passwd", route=None),
    Hostility("wrong method", (405,), lambda rng: b"", method="GET", route=None),
)
