"""The server under test: one that runs already, or one started on a free port and ended with all its processes."""

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError

import psutil

START_SECONDS = 180.0
DRAIN_SECONDS = 60.0


class ServerProcess:
    """`python -m serve` with these flags, ready inside the `with` block. Raises ValueError if it does not start.

    It has a session of its own: Ctrl-C reaches us alone, and we end it in order.
    """

    def __init__(self, model: str, log: Path, flags: Sequence[str] = ()) -> None:
        self._model, self._log, self._flags = model, log, flags
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "serve", "--model", self._model, "--port", str(self.port), *self._flags]
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):  # noqa: S310 (http on this machine)
                    return
            except (URLError, OSError):
                time.sleep(0.1)
        last = self._log.read_text().strip().splitlines()[-1:]
        raise ValueError(f"the server did not start: {' '.join(last) or 'it said nothing'}; see {self._log}")

    def stop(self) -> None:
        """SIGTERM, which lets answers finish; what is left after a minute is killed."""
        try:
            main = psutil.Process(self._process.pid)
            family = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        self._process.terminate()
        try:
            self._process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            process.kill()


def free_port() -> int:
    """A port of the loopback address that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Which server is loaded."""
    parser.add_argument("--url", help="a server of this machine that runs already; default: start one")
    parser.add_argument("--model", default="tiny_iit", help="of the server that is started")
    parser.add_argument(
        "--serve-flag",
        action="append",
        default=[],
        metavar="=--FLAG=VALUE",
        help="a flag of the server; repeat for more",
    )


@contextlib.contextmanager
def target(options: argparse.Namespace, log: Path) -> Iterator[str]:
    """The URL of the server to load; one that we started writes to `log` and ends with the block."""
    if options.url:
        yield options.url.rstrip("/")
        return
    with ServerProcess(options.model, log, options.serve_flag) as server:
        yield server.url


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
