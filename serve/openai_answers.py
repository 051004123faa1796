"""Answers and errors in OpenAI's shapes: whole, as chunks of a stream, and what ends it. No sockets, no routes."""

import codecs
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serve.completion import Choice, Completion, diagnostics, dumps, usage
from serve.engine.detokenizer import token_bytes
from serve.errors import ApiError
from serve.schemas import Plan

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATUSES = {422: 400}
"""OpenAI's clients know a 400 as BadRequestError."""
CODES = {401: "invalid_api_key", 404: "model_not_found", 413: "body_too_large", 429: "server_full"}
REASONS = {"deadline": "length"}
"""A text that the deadline cut is one that was cut for its length; OpenAI's clients know no other word."""


class OpenAIError(ApiError):
    """An ApiError in the shape that OpenAI's clients read. renamed: names of fields in this protocol's body."""

    def __init__(self, error: ApiError, renamed: Mapping[str, str] | None = None) -> None:
        names = dict(renamed or {})
        status = STATUSES.get(error.status, error.status)
        super().__init__(status, error.message, field=error.field, value=error.value, remedy=error.remedy)
        self.retry_after = error.retry_after
        self.more = error.more
        if error.field in names:
            self.field = names[error.field]
            self.message = f"{self.field}{error.message.removeprefix(error.field)}"

    def body(self) -> dict[str, Any]:
        sentences = [self.message, *(problem["message"] for problem in self.more)]
        message = "; also ".join(sentences) + (f": {self.remedy}" if self.remedy else "")
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        code = CODES.get(self.status) if self.status != 404 or self.field == "model" else "not_found"
        return {"error": {"message": message, "type": kind, "param": self.field, "code": code}}


class OpenAICompletion(Completion):
    """All choices of one request, written by OpenAI's protocol. The last bytes of a stream end it."""

    kind = ("cmpl", "text_completion", "text_completion")

    def __init__(
        self,
        plan: Plan,
        tokenizer: "Tokenizer",
        arrived: float,
        *,
        model: str,
        include_usage: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        created: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(plan, tokenizer, arrived, clock)
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        prefix, self._whole, self._chunk = self.kind
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(created()), "model": model}
        self._ended = False
        self._offsets = [_Offset() for _ in self.choices]
        self._begun: set[int] = set()

    def events(self, changed: Iterable[tuple[Choice, str]]) -> bytes:
        """Chunks of the choices that changed; after the last choice's end the usage, if asked for, and [DONE]."""
        data = "".join(self._chunks(choice, text) for choice, text in changed)
        if self.finished and not self._ended:
            self._ended = True
            if self._include_usage:
                data += self._event_of([], self._usage())
            data += "data: [DONE]\n\n"
        return data.encode()

    def body(self, model: str, request_id: str) -> bytes:
        """The JSON answer; its id and model are those of the chunks."""
        choices = [
            {"index": c.index, "finish_reason": _reason(c), "logprobs": self._logprobs(c)}
            | self._text("".join(c.text), whole=True)
            | diagnostics(c)
            for c in self.choices
        ]
        head = {"object": self._whole, **self._head}
        return dumps(head | {"choices": choices, "usage": self._usage()}).encode()

    def _usage(self) -> dict[str, int]:
        totals = self.totals()
        return usage(totals.num_prompt, totals.num_completion)

    def _chunks(self, choice: Choice, text: str) -> str:
        data = "" if choice.index in self._begun else self._beginning(choice)
        self._begun.add(choice.index)
        if text or (choice.num_shown < len(choice.token_ids) and self._plan.logprobs is not None):
            shown = {"index": choice.index, "finish_reason": None, "logprobs": self._logprobs(choice)}
            data += self._event_of([shown | self._text(text)])
        if choice.finished:
            final = {"index": choice.index, "finish_reason": _reason(choice), "logprobs": None}
            data += self._event_of([final | self._text("", end=True) | diagnostics(choice)])
        return data

    def _event_of(self, choices: list[dict[str, Any]], counted: dict[str, int] | None = None) -> str:
        shown = {"object": self._chunk, **self._head, "choices": choices}
        if self._include_usage:
            shown["usage"] = counted
        return f"data: {dumps(shown)}\n\n"

    def _beginning(self, choice: Choice) -> str:
        return ""

    def _text(self, text: str, *, whole: bool = False, end: bool = False) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Of the tokens that were not shown yet."""
        if self._plan.logprobs is None:
            return None
        start, choice.num_shown = choice.num_shown, len(choice.token_ids)
        rows = [self._row(choice, i) for i in range(start, choice.num_shown)]
        offset = self._offsets[choice.index]
        return {
            "tokens": [_string(token) for token, _, _ in rows],
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "top_logprobs": [{_string(t): p for t, p in [*top, (token, own)]} for token, own, top in rows],
            "text_offset": [offset.before(token) for token, _, _ in rows],
        }

    def _row(self, choice: Choice, number: int) -> tuple[bytes, float, list[tuple[bytes, float]]]:
        """A token, its log-probability, and its alternatives with theirs."""
        top = choice.top_logprobs[number] if choice.top_logprobs else []
        token = token_bytes(self._tokenizer, choice.token_ids[number])
        others = [(token_bytes(self._tokenizer, t), round(p, 6)) for t, p in top]
        return token, round(choice.logprobs[number], 6), others


class ChatCompletion(OpenAICompletion):
    """The same for a chat."""

    kind = ("chatcmpl", "chat.completion", "chat.completion.chunk")

    def _beginning(self, choice: Choice) -> str:
        delta = {"role": "assistant", "content": ""}
        return self._event_of([{"index": choice.index, "finish_reason": None, "logprobs": None, "delta": delta}])

    def _text(self, text: str, *, whole: bool = False, end: bool = False) -> dict[str, Any]:
        if whole:
            return {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"delta": {} if end else {"content": text}}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        if self._plan.logprobs is None:
            return None
        start, choice.num_shown = choice.num_shown, len(choice.token_ids)
        rows = [self._row(choice, i) for i in range(start, choice.num_shown)]
        content = [_entry(token, own) | {"top_logprobs": [_entry(t, p) for t, p in top]} for token, own, top in rows]
        return {"content": content, "refusal": None}


class _Offset:
    """Characters of the text before each token: those that its tokens have completed."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def before(self, token: bytes) -> int:
        """The place of the next token."""
        place = self._characters
        self._characters += len(self._decoder.decode(token))
        return place


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _string(token), "logprob": logprob, "bytes": list(token)}


def _string(token: bytes) -> str:
    """A token as text; part of a character is written byte by byte, so that two such tokens stay two."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _reason(choice: Choice) -> str:
    reason = choice.finish_reason or "stop"
    return REASONS.get(reason, reason)
