"""How an answer leaves: JSON, one error shape, server-sent events; and how a request's body comes in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.errors import ApiError

# A body that is too long is read on so far, and thrown away: a client still sending would not see the answer.
DISCARDED_BODIES = 8
EVENT_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    headers = error.headers()
    if error.status == 413:  # the rest of the body is not read
        headers["Connection"] = "close"
    return Response(error.json_bytes(), error.status, headers, "application/json")


async def read_json_body(request: Request, most: int) -> bytes:
    """The body, as it came. Raises ApiError 415 if it says it is not JSON, 413 if it is longer than `most` bytes."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415, f"the body is {media_type}", field="Content-Type", value=media_type, remedy="send application/json"
        )
    length = request.headers.get("content-length", "0")
    too_long = ApiError(413, f"the body is longer than {most} bytes", remedy=f"send at most {most} bytes")
    if length.isdecimal() and int(length) > most and "expect" in request.headers:
        raise too_long
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            chunks.append(chunk)
        elif size > most * DISCARDED_BODIES:
            break
    if size > most:
        raise too_long
    return b"".join(chunks)


class EventStream(Response):
    """Server-sent events, each chunk one write; the next is asked for when the connection has taken the one before.

    gone: called when the reader hangs up, and at the end.
    """

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], *, gone: Callable[[], None]) -> None:
        super().__init__()
        self._first = first
        self._rest = rest
        self._gone = gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = watch_hang_up(receive, self._gone)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_HEADERS)})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in self._rest:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watcher.cancel()
            self._gone()


def watch_hang_up(receive: Callable[[], Awaitable[object]], gone: Callable[[], None]) -> "asyncio.Task[None]":
    """Call gone() once the reader has hung up; cancel the task when the answer is out."""

    async def wait() -> None:
        while True:
            message = await receive()
            if isinstance(message, dict) and message.get("type") == "http.disconnect":
                gone()
                return

    return asyncio.get_running_loop().create_task(wait())
