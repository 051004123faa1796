"""Every error a user can meet, in one JSON shape. Knows nothing of routes, models or engines."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

MAX_SHOWN_CHARACTERS = 200
MAX_SHOWN_INTEGER = 2**64
MAX_PROBLEMS = 16
KINDS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_value",
    429: "server_full",
    431: "headers_too_large",
    500: "internal_error",
    503: "unavailable",
}


class StartupError(Exception):
    """The server cannot start; the text is the one line shown to the user."""


class ApiError(Exception):
    """An answer other than 200, in the shape every error of this server has.

    Args:
        status: HTTP status, one of KINDS.
        message: one sentence for a person.
        field, value: what in the request is wrong, where that can be said.
        remedy: what to send instead.
        retry_after: whole seconds, sent as Retry-After.
        more: further problems of the same request, each {field, value, message, remedy}.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        remedy: str | None = None,
        retry_after: int | None = None,
        more: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.value = value
        self.remedy = remedy
        self.retry_after = retry_after
        self.more = [dict(problem) for problem in more]

    def body(self) -> dict[str, Any]:
        """The one error shape; the value is shortened, for it may be a megabyte."""
        return {
            "error": {
                "status": self.status,
                "type": KINDS.get(self.status, "error"),
                "message": self.message,
                "field": self.field,
                "value": shown(self.value),
                "remedy": self.remedy,
                "more": self.more,
            }
        }

    def json_bytes(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def shown(value: Any) -> Any:
    """The value as the error names it: as it came if it is small, else its beginning as text."""
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_SHOWN_INTEGER):
        # JSON has neither infinity nor "not a number"
        return value if not isinstance(value, float) or value - value == 0 else str(value)
    text = value[: MAX_SHOWN_CHARACTERS + 1] if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."


def problems_of(errors: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> list[dict[str, Any]]:
    """Pydantic's error list as {field, value, message, remedy}, one for each field (a union reports each branch).

    No more than MAX_PROBLEMS fields: a body can have many thousands.
    """
    known = tuple(fields)
    problems: dict[str, dict[str, Any]] = {}
    for error in errors:
        location = [str(part) for part in error["loc"]]
        field = shown(location[0]) if location else "body"
        if field in problems:
            # the branches of a union: "a string, or a list"
            message = _plain(str(error["msg"]))
            if message not in problems[field]["message"]:
                problems[field]["message"] += f", or {message}"
            continue
        if len(problems) == MAX_PROBLEMS:
            break
        problems[field] = {
            "field": field,
            "value": shown(error.get("input")),
            "message": _plain(str(error["msg"])),
            "remedy": _remedy(error, known),
        }
    for problem in problems.values():
        problem["message"] = f"{problem['field']} is {json.dumps(problem['value'])}: {problem['message']}"
    return list(problems.values())


def _remedy(error: Mapping[str, Any], known: tuple[str, ...]) -> str:
    kind = str(error["type"])
    context = error.get("ctx") or {}
    bounds = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
    if kind == "extra_forbidden":
        return "remove it; the fields are " + ", ".join(known)
    if kind == "missing":
        return "add it"
    if kind in bounds:
        word = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}[bounds[kind]]
        return f"give a number {word} {context[bounds[kind]]}"
    if kind == "literal_error":
        return f"give one of {context['expected']}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    message = str(error["msg"])
    return _plain(message).replace("should be", "give", 1).partition(", unable to")[0]


def _plain(message: str) -> str:
    """Pydantic's sentence as a clause that can follow a field's name."""
    for prefix, replacement in (("Input should be", "should be"), ("Value error, ", "")):
        if message.startswith(prefix):
            return replacement + message[len(prefix) :]
    return message[:1].lower() + message[1:]
