"""What a connection may cost before its request is whole: bytes, seconds, requests ahead. Knows uvicorn; no routes.

uvicorn's protocol bounds none of them: it keeps a header or a trailer that does not end, waits for ever for the rest
of a request, and reads more requests each time that it has answered one of those that wait.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.errors import ApiError


@dataclass(frozen=True)
class ConnectionLimits:
    """most_message_bytes: head, body and trailers as they are on the wire.

    most_head_bytes: beyond the one read of the socket (at most 256 KiB) in which the head began.
    request_seconds: from the connection, or a request's first byte, to its last.
    most_waiting: requests of one connection that wait for the answer to an earlier one.
    """

    most_message_bytes: int
    most_head_bytes: int = 1 << 16
    request_seconds: float = 60.0
    most_waiting: int = 32


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What goes beyond the limits is answered 408, 413 or 431 where it can be, and disconnected."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._running: Any = None  # the request that is being answered; self.cycle is the newest
        self._is_under_way = self._is_in_head = self._began_now = False
        self._size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):  # uvicorn tells the newest alone
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            self._stop_timer()
        elif self._is_under_way:
            self._count(len(data))
        elif self._is_idle():  # bytes that begin no request
            self._start_timer()

    def _count(self, num_bytes: int) -> None:
        limits = self._limits
        self._size += 0 if self._began_now else num_bytes  # they may be another request's
        self._began_now = False
        if self._is_in_head and self._size > limits.most_head_bytes:
            self._refuse(431, f"the request's head is longer than {limits.most_head_bytes} bytes", "send less")
        elif self._size > limits.most_message_bytes:
            self._refuse(413, f"the request is longer than {limits.most_message_bytes} bytes", "send less")
        else:
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stop_timer()
        self._is_under_way = self._is_in_head = self._began_now = True
        self._size = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_in_head = False
        if len(self.pipeline) > self._limits.most_waiting:
            raise ValueError("too many requests wait on one connection")  # the parser stops, uvicorn answers 400

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._is_under_way = False

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._limits.request_seconds, self._on_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # it is us who do not read
            self._start_timer()
        elif self._is_under_way:
            seconds = self._limits.request_seconds
            self._refuse(408, f"the request was not whole after {seconds:g} seconds", "send it faster")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, remedy: str) -> None:
        """Disconnect, and say why if no answer to this or an earlier request is under way."""
        self._stop_timer()
        running = self._running
        is_quiet = running is None or running.response_complete or not running.response_started
        if is_quiet and not self.pipeline:
            if running is not None:
                running.disconnected = True  # its own answer would come behind this one
            body = ApiError(status, message, remedy=remedy).json_bytes()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
