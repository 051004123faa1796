"""Load a server for long and see whether it keeps anything: memory, places, cache blocks, files, threads, requests.

    python -m loadtests.soak --minutes 20 --output docs/benchmarks/soak.json

The same users as `python -m loadtests.run`, the hostile and the impatient included, first to warm up and then for the
given time. What the server holds is compared between two idle moments, after the warm-up and at the end; its memory is
also watched under load. Exit code 0: nothing kept; 1: something was; 2: bad input, or no server; 130: interrupted.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from loadtests.connection import Connection
from loadtests.hostilities import HOSTILITIES, Hostility
from loadtests.processes import held, own_megabytes, pss_megabytes, tree_behind
from loadtests.record import Threshold
from loadtests.results import provenance, write_json
from loadtests.run import LocustLoad, print_tables, run_locust
from loadtests.server import add_target_flags, interruptible, target
from loadtests.workload import rng_of

GROWTH = 0.02
MISSED = 1
SAMPLE_SECONDS = 2.0
HIGH_TIDE = 24
"""How many of each request are sent at once at the very start, and how often again."""
HIGH_TIDES = 4
PARTS = 5
"""Memory under load is compared between the first and the last fifth of the samples."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as above."""
    options = parse(arguments)
    try:
        with interruptible(), target(options, options.folder / "server.log") as url:
            result = soak(url, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; no result is written.", file=sys.stderr)
        return 130
    write_json(options.output, result)
    print_result(result)
    return 0 if all(each["kept"] for each in result["checks"]) else MISSED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=(__doc__ or "").split("\n")[0])
    add_target_flags(parser)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--warm-up-minutes", type=float, help="not counted; default: a tenth of it, at least half a one"
    )
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and pauses")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/soak"), help="for locust's reports and the server's log"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/soak/soak.json"))
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.users < 1:
        parser.error(f"minutes={options.minutes}, users={options.users}: give numbers above 0")
    if options.warm_up_minutes is None:
        options.warm_up_minutes = max(1.0, options.minutes / 10)
    return options


@dataclass(frozen=True)
class Idle:
    """What an idle server holds."""

    own_megabytes: float
    pss_megabytes: float
    held: dict[str, int]

    @classmethod
    def of(cls, processes: list[psutil.Process]) -> "Idle":
        return cls(own_megabytes(processes), pss_megabytes(processes), held(processes))

    def to_json(self) -> dict[str, Any]:
        return {
            "own_megabytes": round(self.own_megabytes, 2),
            "pss_megabytes": round(self.pss_megabytes, 2),
            **self.held,
        }


def soak(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, look, load, look again. Raises ValueError if a run ends without a result."""
    port = urlsplit(url).port
    if port is None:
        raise ValueError(f"url={url!r}: name the port of a server of this machine")
    origin = provenance()
    phases: dict[str, Any] = {}
    idle: list[Idle] = []
    under_load: list[tuple[float, float]] = []
    high_tide(url, options.seed)
    for name, minutes in (("warm_up", options.warm_up_minutes), ("soak", options.minutes)):
        load = LocustLoad("soak", options.users, max(1, round(60 * minutes)), options.seed + len(phases))
        with watched(port) as samples:
            # Latency is not judged here; failures, and requests that only one side knows of, are.
            run_locust(url, load, options.folder / name)
        under_load = samples
        phases[name] = read_result(options.folder / name / "result.json")
        idle.append(Idle.of(tree_behind(port)))
    return origin | {
        "minutes": options.minutes,
        "warm_up_minutes": options.warm_up_minutes,
        "users": options.users,
        "model": options.model,
        "checks": [each.to_json() for each in checks(idle[0], idle[1], [own for _, own in under_load], phases)],
        "idle_after_warm_up": idle[0].to_json(),
        "idle_at_end": idle[1].to_json(),
        "own_megabytes_under_load": [[round(second), round(own, 1)] for second, own in under_load],
        **phases,
    }


def high_tide(url: str, seed: int) -> None:
    """Each kind of bad request many times at once.

    Allocators keep what the largest request has needed, in every thread that has met one. Without this, threads that
    meet their first one late would look like growth.
    """

    def send(number: int, hostility: Hostility) -> None:
        with Connection(url) as connection:
            content = hostility.body(rng_of(seed, "high tide", number))
            connection.send(hostility.method, hostility.path, content, hostility.content_type)
            connection.status()
            connection.body()

    with ThreadPoolExecutor(HIGH_TIDE) as pool:
        for tide in range(HIGH_TIDES):
            for hostility in HOSTILITIES:
                numbers = range(tide * HIGH_TIDE, (tide + 1) * HIGH_TIDE)
                list(pool.map(partial(send, hostility=hostility), numbers))


def checks(before: Idle, after: Idle, loaded: Sequence[float], phases: dict[str, Any]) -> list[Threshold]:
    """What a soak must show. Growth is relative; shrinking is none."""
    part = max(1, len(loaded) // PARTS)
    first, last = statistics.median(loaded[:part]), statistics.median(loaded[-part:])
    failures = sum(sum(kind["failures"].values()) for phase in phases.values() for kind in phase["kinds"].values())
    unaccounted = sum(len(phase["unaccounted"]) for phase in phases.values())
    return [
        Threshold("memory growth, idle to idle", GROWTH, after.own_megabytes / before.own_megabytes - 1),
        Threshold("memory growth under load, first to last fifth", GROWTH, last / first - 1),
        *(Threshold(f"further {name}", 0, after.held[name] - before.held[name]) for name in before.held),
        Threshold("failures", 0, failures),
        Threshold("requests unaccounted for or places kept", 0, unaccounted),
    ]


@contextmanager
def watched(port: int) -> Iterator[list[tuple[float, float]]]:
    """(second, own megabytes) of the tree behind a port while the block runs."""
    samples: list[tuple[float, float]] = []
    stop, begun, processes = threading.Event(), time.monotonic(), tree_behind(port)

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            samples.append((time.monotonic() - begun, own_megabytes(processes)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def read_result(path: Path) -> dict[str, Any]:
    """What locust wrote. Raises ValueError if it wrote nothing."""
    if not path.exists():
        raise ValueError(f"locust ended without a result; {path} is missing")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def print_result(result: dict[str, Any]) -> None:
    """The load, and each check."""
    print_tables(result["soak"])
    table = Table("check", "limit", "value", "", title=f"soak of {result['minutes']:g} minutes")
    for each in result["checks"]:
        table.add_row(each["name"], f"{each['limit']:g}", f"{each['value']:.4g}", "kept" if each["kept"] else "MISSED")
    console = Console(width=110)
    console.print(table)
    for name in ("idle_after_warm_up", "idle_at_end"):
        console.print(f"{name}: {result[name]}")


if __name__ == "__main__":
    sys.exit(main())
