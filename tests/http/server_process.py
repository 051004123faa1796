"""A real server in real processes on a real port, and the small HTTP client that the tests speak to it with."""

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0


def free_port() -> int:
    """A port nobody listens on, below those that the kernel gives to connections, which could take it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.body.decode().split("\n") if line.startswith("data: ")]


@dataclass
class ServerProcess:
    """`python -m serve` with these flags; ready once it has printed its curl line."""

    model: Path | str
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    lines: list[str] = field(default_factory=list)

    def start(self) -> "ServerProcess":
        command = [sys.executable, "-m", "serve", "--model", str(self.model), "--port", str(self.port), *self.flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environment
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS) or self.process.poll() is not None:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "".join(self.lines))
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("try "):
                self._ready.set()
        self._ready.set()

    def family(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The (first) engine process: the one that LitServe spawned."""
        return next(p for p in self.family()[1:] if "spawn_main" in " ".join(p.cmdline()))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the main process; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(60)
        finally:
            if self.process.poll() is None:
                for process in self.family():
                    process.kill()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    # -- speaking to it ---------------------------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, connection: socket.socket, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        fields = {"Host": "test", "Connection": "close", "Content-Length": str(len(body))}
        if body:
            fields["Content-Type"] = "application/json"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        with self.connect() as connection:
            self.send(connection, method, path, content, **headers)
            return read_answer(connection)

    def generate(self, **body: Any) -> Answer:
        return self.request("POST", "/generate", body)

    @contextlib.contextmanager
    def streaming(self, **body: Any) -> Iterator[socket.socket]:
        """A connection whose stream has begun."""
        with self.connect() as connection:
            self.send(connection, "POST", "/generate", json.dumps(body | {"stream": True}).encode())
            seen = b""
            while b"data: " not in seen:
                chunk = connection.recv(4096)
                assert chunk, seen
                seen += chunk
            yield connection

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample in /metrics."""
        wanted = name + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "}" if labels else "")
        for line in self.request("GET", "/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == wanted:
                return float(value)
        raise KeyError(wanted)

    def wait_for_metric(self, value: float, name: str, **labels: str) -> None:
        """Metrics are eventually right; the engine needs a step for it."""
        wait_until(lambda: self.metric(name, **labels) == value, f"{name} {labels} = {value}")


def read_answer(connection: socket.socket) -> Answer:
    """Everything up to the end of the connection."""
    data = b""
    while chunk := connection.recv(1 << 16):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunk(body)
    return Answer(int(first.split()[1]), headers, body)


def chunks_of(body: bytes) -> list[bytes]:
    """The chunks of a chunked body: one for each write of the server."""
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        chunks.append(body[:length])
        body = body[length + 2 :]
    return chunks


def _unchunk(body: bytes) -> bytes:
    return b"".join(chunks_of(body))


def wait_until(holds: Any, what: str, seconds: float = 30.0) -> None:
    """Ask again until it holds; a failure says what was waited for."""
    deadline = time.monotonic() + seconds
    selector = selectors.DefaultSelector()
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        selector.select(0.02)
    selector.close()
