"""One HTTP request on a connection of its own, as locust's users send it: whole or in part, read as slowly as asked.

Blocking calls on plain sockets, which gevent makes cooperative. Knows no route and no load.
"""

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from geventhttpclient.response import HTTPSocketResponse

PATIENCE_SECONDS = 120.0
BROKEN = (OSError, HTTPException, TimeoutError)
"""What a connection that breaks raises."""


class Connection:
    """To one server, for one request; closed at the end of the `with` block, whatever was read.

    receive_bytes: size of the socket's buffer, to make a reader slow for the server too.
    """

    def __init__(self, url: str, receive_bytes: int = 0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._receive_bytes = receive_bytes
        self._response: HTTPSocketResponse | None = None

    def __enter__(self) -> Self:
        self._socket = socket.socket()
        try:
            self._socket.settimeout(PATIENCE_SECONDS)
            if self._receive_bytes:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
            self._socket.connect((self._host, self._port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response = None
        self._socket.close()

    def send(self, method: str, path: str, body: bytes, content_type: str = "application/json", cut: int = 0) -> None:
        """The request, without the last `cut` bytes of its body."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body[: len(body) - cut])

    def status(self) -> int:
        """Waits for the answer's head."""
        self._response = HTTPSocketResponse(self._socket, block_size=1 << 16, method="POST")
        return int(self._response.status_code)

    def body(self) -> bytes:
        """The rest of the answer."""
        assert self._response is not None
        return self._response.read()

    def events(self, pause_seconds: float = 0.0) -> Iterator[tuple[float, dict[str, Any]]]:
        """Server-sent events as they come, each with the time.perf_counter() of its arrival.

        pause_seconds: rest before each read.
        """
        assert self._response is not None
        while True:
            if pause_seconds:
                time.sleep(pause_seconds)
            line = self._response.readline(b"\n")
            if not line:
                return
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if data.startswith(b"{"):
                yield time.perf_counter(), json.loads(data)
