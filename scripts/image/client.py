"""A reader of the server's HTTP interface: one question, or events as they arrive. Standard library only."""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from image.tools import VerificationError


@dataclass(frozen=True)
class Event:
    """One server-sent event: its name ("message" if it has none), its data, and when it came (monotonic seconds)."""

    name: str
    data: dict[str, Any]
    at: float


class Client:
    """Talks to 127.0.0.1 at a port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def status(self, path: str) -> int:
        """The status of a GET, or 0 if nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def generate(self, **request: object) -> tuple[int, dict[str, Any]]:
        """Status and body of a POST to /generate."""
        connection, response = self._post(request)
        try:
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def stream(self, **request: object) -> Iterator[Event]:
        """The events of a streamed answer. Raises VerificationError for another answer or a stream that breaks off."""
        connection, response = self._post({**request, "stream": True})
        try:
            kind = response.headers.get_content_type()
            if response.status != 200 or kind != "text/event-stream":
                raise VerificationError(f"a streamed /generate answered {response.status} as {kind}")
            name = "message"
            for line in response:
                word, _, value = line.decode().rstrip("\n").partition(": ")
                if word == "event":
                    name = value
                elif word == "data":
                    yield Event(name, json.loads(value), time.monotonic())
                    name = "message"
        except (OSError, http.client.HTTPException) as error:
            raise VerificationError(f"the stream broke off: {error!r}") from error
        finally:
            connection.close()

    def wait_ready(self, seconds: float) -> None:
        """Until /readyz says 200. Raises VerificationError when it does not."""
        until = time.monotonic() + seconds
        while self.status("/readyz") != 200:
            if time.monotonic() > until:
                raise VerificationError(f"/readyz was not 200 within {seconds:.0f} s")
            time.sleep(0.05)

    def _post(self, request: dict[str, object]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("POST", "/generate", json.dumps(request), {"Content-Type": "application/json"})
        return connection, connection.getresponse()
