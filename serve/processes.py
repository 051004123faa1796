"""What the processes of one server share and how they end together. No HTTP, no engine, no zmq."""

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class SharedState:
    """Counters that the main process and its forked HTTP processes see: who is in flight, and whether we are draining.

    Each HTTP process writes only its own cell and reads all of them, so no lock is needed.
    """

    def __init__(self, num_apis: int) -> None:
        self.num_apis = num_apis
        self._cells = memoryview(mmap.mmap(-1, 8 * (1 + num_apis))).cast("q")

    @property
    def draining(self) -> bool:
        return self._cells[0] != 0

    def start_draining(self) -> None:
        self._cells[0] = 1

    @property
    def in_flight(self) -> int:
        """Choices in flight over all HTTP processes."""
        return sum(self._cells[1 : 1 + self.num_apis])

    def add_in_flight(self, api: int, change: int) -> int:
        """Change this process' count; returns the new one."""
        self._cells[1 + api] += change
        return self._cells[1 + api]


def die_with_parent_when_forked() -> None:
    """Forked children (LitServe's manager is one that we cannot reach otherwise) are killed when their parent is.

    They also forget our signal handlers. Linux; elsewhere watch_parent() has to do.
    """
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not the main thread of the child
            signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_parent(folder: Path) -> None:
    """End this process at once, and remove the server's private folder, when the parent is gone.

    A thread that sleeps in the kernel until then.
    """
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
