"""What a server's processes use: memory and processor time of the tree behind a port. Linux."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


def root_behind(port: int) -> psutil.Process:
    """The process that listens on a loopback port, or its oldest relative by the same command.

    Looks at the open files of every process of the machine: tens of milliseconds that are not to fall into a
    measurement. Raises ValueError where nothing listens, or it cannot be seen.
    """
    pids = {
        c.pid
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
    }
    if not pids - {None}:
        raise ValueError(f"port={port}: no process of this machine is seen to listen there; start the server first")
    root = psutil.Process(min(pid for pid in pids if pid is not None))
    while (parent := root.parent()) is not None and parent.cmdline() == root.cmdline():
        root = parent
    return root


def tree_of(root: psutil.Process) -> list[psutil.Process]:
    """A process and all its children as they are now."""
    return [root, *root.children(recursive=True)]


def tree_behind(port: int) -> list[psutil.Process]:
    """The processes of the server at a loopback port. Raises ValueError as root_behind."""
    return tree_of(root_behind(port))


def pss_megabytes(processes: list[psutil.Process]) -> float:
    """Proportional set size: shared pages are counted once over all that share them."""
    return _rollup_megabytes(processes, ("Pss:",))


def own_megabytes(processes: list[psutil.Process]) -> float:
    """The part of it that holds data of these processes. Left out are pages of files, libraries above all.

    Programs beside them that map the same libraries take a share of those pages, and so move the whole figure.
    """
    return _rollup_megabytes(processes, ("Pss_Anon:", "Pss_Shmem:"))


def _rollup_megabytes(processes: list[psutil.Process], fields: tuple[str, ...]) -> float:
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(fields))
    return total / 1024


def held(processes: list[psutil.Process]) -> dict[str, int]:
    """How many processes, threads and open files there are."""
    return {
        "processes": len(processes),
        "threads": sum(process.num_threads() for process in processes),
        "files": sum(process.num_fds() for process in processes),
    }


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time so far."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class PeakMemory:
    """Watches processes twice a second while open; `megabytes` is the most that was seen."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.megabytes = pss_megabytes(processes)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.megabytes = max(self.megabytes, pss_megabytes(self._processes))
