"""Load a server for a minute and judge it: starts one with the shipped checkpoint, runs locust, prints the table.

    python -m loadtests.run --shape spike --users 16 --seconds 60

Exit code 0: every threshold kept; 1: one missed; 2: bad input, or no server; 130: interrupted. report.html (locust's
own, with charts over time), result.json and server.log lie in --output.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.server import add_target_flags, interruptible, target
from loadtests.workload import SHAPES

INTERRUPTED = 130
STOP_SECONDS = 60
"""How long users may take to finish their last request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as above."""
    options, locust_flags = parse(arguments)
    try:
        with interruptible(), target(options, options.output / "server.log") as url:
            load = LocustLoad(options.shape, options.users, options.seconds, options.seed)
            code = run_locust(url, load, options.output, locust_flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; the server is stopped.", file=sys.stderr)
        return INTERRUPTED
    result = options.output / "result.json"
    if result.exists():
        print_tables(json.loads(result.read_text()))
        print(f"report: {options.output / 'report.html'}")
    return code


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what follows `--` is for locust."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description=(__doc__ or "").split("\n")[0])
    add_target_flags(parser)
    parser.add_argument("--shape", choices=SHAPES, default="ramp", help="how the number of users changes")
    parser.add_argument("--users", type=int, default=12, help="users at most")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and pauses")
    parser.add_argument("--output", type=Path, default=Path("runs/loadtest"), help="folder for report and result")
    parser.add_argument(
        "locust", nargs="*", metavar="-- LOCUST FLAGS", help="such as --mix generate=1 --max-failures 0"
    )
    options = parser.parse_args(arguments)
    for name in ("users", "seconds"):
        if getattr(options, name) < 1:
            parser.error(f"{name}={getattr(options, name)}: give 1 or more")
    return options, options.locust


@dataclass(frozen=True)
class LocustLoad:
    """How many users there are when, and what they draw their requests from."""

    shape: str
    users: int
    seconds: int
    seed: int


def run_locust(url: str, load: LocustLoad, output: Path, flags: Sequence[str] = ()) -> int:
    """Run the users in a process of their own, since locust changes how sockets work. Returns its exit code.

    Writes report.html and result.json into `output`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for stale in ("result.json", "report.html"):
        (output / stale).unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(Path(__file__).with_name("locustfile.py"))),
        *("--headless", "--only-summary", "--loglevel", "WARNING", "--json-file", str(output / "locust")),
        *("--html", str(output / "report.html"), "--result-file", str(output / "result.json")),
        *("--stop-timeout", str(STOP_SECONDS), "--host", url, "--shape", load.shape, "--seed", str(load.seed)),
        *("--users", str(load.users), "--run-time", str(load.seconds), *flags),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # it stops its users and writes its report
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(STOP_SECONDS)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def print_tables(result: dict[str, Any], console: Console | None = None) -> None:
    """What was asked and how long it took, and whether each threshold was kept."""
    console = console or Console(width=110)
    title = f"{result['shape']} to {result['users']} users, {result['seconds']} s, seed {result['seed']}"
    times = Table(
        "users", "requests", "failed", "refused", "milliseconds", "n", "p50", "p90", "p99", "max", title=title
    )
    for kind, found in result["kinds"].items():
        first = [kind, str(found["requests"]), str(sum(found["failures"].values())), str(found["refused"])]
        for name in ("first_token", "gap", "whole"):
            spread = found[f"{name}_ms"]
            if spread["n"]:
                figures = [f"{spread[each]:.1f}" for each in ("p50", "p90", "p99", "max")]
                times.add_row(*first, name.replace("_", " "), str(spread["n"]), *figures)
                first = [""] * 4
        if any(first):
            times.add_row(*first, "", "", "", "", "", "")
    judged = Table("threshold", "limit", "value", "")
    for each in result["thresholds"]:
        value = "none" if each["value"] is None else f"{each['value']:.4g} {each['unit']}"
        judged.add_row(each["name"], f"{each['limit']:g} {each['unit']}", value, "kept" if each["kept"] else "MISSED")
    console.print(times)
    console.print(judged)
    for kind, found in result["kinds"].items():
        for reason, count in found["failures"].items():
            console.print(f"{count} x {kind}: {reason}", markup=False)
    for line in [*result["notes"], *result["unaccounted"]]:
        console.print(line, markup=False)


if __name__ == "__main__":
    sys.exit(main())
