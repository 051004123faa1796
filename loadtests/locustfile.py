"""The load test as locust runs it: a shape, a mix of users, thresholds that set the exit code.

    locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8000 --shape spike --users 16 --run-time 60 \
        --stop-timeout 60 --html report.html --result-file result.json

`python -m loadtests.run` does that, starts the server too and prints the table. One process: counts of several
locust workers are not added up, and a distributed run is refused.
"""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.runners import LocalRunner

from loadtests.accounts import Scrape, by_route, settled
from loadtests.connection import Connection
from loadtests.record import Threshold, thresholds
from loadtests.results import write_json
from loadtests.users import KINDS, Chat, Generate, Hostile, Impatient, LoadUser, Score
from loadtests.workload import SHAPES, parse_mix, users_at

__all__ = ["Chat", "Generate", "Hostile", "Impatient", "Load", "Score"]  # locust takes users and shape from here

MISSED = 1
BAD_INPUT = 2
PROGRESS_SECONDS = 10
LIMITS = {"first_token_p99_ms": 1000.0, "gap_p99_ms": 250.0, "failures": 0.0, "refused_share": 0.01}
"""Defaults of the thresholds: what a shared machine of two cores keeps, far from what a quiet one does."""


class Load(LoadTestShape):
    """--shape over --run-time with at most --users."""

    use_common_options = True
    shown = 0.0

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options, second = self.runner.environment.parsed_options, time.perf_counter() - self.start_time
        assert options is not None
        if second - self.shown >= PROGRESS_SECONDS:
            self.shown = second
            show_progress(second, self.runner.user_count)
        if second >= options.run_time:
            return None
        return users_at(options.shape, second, options.run_time, options.num_users), 100.0


class Run:
    """What must be known from the start of a run to its end."""

    before: Scrape
    mix: dict[str, int]
    notes: list[str]
    begun: float


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_flags(parser: Any) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="ramp", help="how the number of users changes")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and pauses")
    parser.add_argument("--mix", default=None, help="kinds of users by weight, KIND=WEIGHT,...; default: all there are")
    parser.add_argument("--settle-seconds", type=float, default=30, help="how long the server may take to become idle")
    parser.add_argument("--result-file", default=None, help="write all figures there as JSON")
    for name, limit in LIMITS.items():
        flag = f"--max-{name.replace('_', '-')}"
        parser.add_argument(flag, type=float, default=limit, help=f"threshold (default: {limit:g})")


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, runner: Any, **_: object) -> None:
    """Before any user exists. Ends the process with a line and code 2 for bad input."""
    options = environment.parsed_options
    try:
        if not isinstance(runner, LocalRunner):
            raise ValueError(
                "a distributed run is not supported: start several runs, or use python -m loadtests.capacity"
            )
        if not options.run_time or not options.num_users or not environment.host:
            raise ValueError("--host, --users and --run-time are needed")
        Run.notes = []
        Run.mix = mix_of(options, environment.host)
        Run.before = Scrape.of(environment.host)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    LoadUser.seed = options.seed
    for kind, user in KINDS.items():
        user.weight = Run.mix.get(kind, 0)
    environment.user_classes = [user for kind, user in KINDS.items() if Run.mix.get(kind)]
    Run.begun = time.perf_counter()


def mix_of(options: Namespace, url: str) -> dict[str, int]:
    """--mix, or the default weights; and what chat users post, by what the server says of its model."""
    with Connection(url) as connection:
        connection.send("GET", "/v1/models", b"")
        if connection.status() != 200:
            raise ValueError(f"{url}/v1/models answers {connection.status()}, not 200: is it a Phiserve server?")
        (model,) = json.loads(connection.body())["data"]
    Chat.model, Chat.route = model["id"], "chat" if model["chat"] else "completions"
    if not model["chat"]:
        Run.notes.append(f"chat users post to /v1/completions: {Chat.model} has no chat template")
        print(f"note: {Run.notes[-1]}", file=sys.stderr)
    if options.mix is not None:
        return parse_mix(options.mix, tuple(KINDS))
    return {kind: int(user.weight) for kind, user in KINDS.items()}


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Any, **_: object) -> None:
    """After the last user: compare with the server's counters, set the exit code, write the result."""
    environment.runner.stop()
    seconds = time.perf_counter() - Run.begun
    options, record = environment.parsed_options, LoadUser.record
    try:
        after, wrong = settled(environment.host, record.outcomes, Run.before, options.settle_seconds)
    except OSError as error:
        after, wrong = Run.before, [f"the server does not answer /metrics any more: {error}"]
    judged = thresholds(record, {name: getattr(options, f"max_{name}") for name in LIMITS}, len(wrong))
    environment.process_exit_code = 0 if all(each.kept for each in judged) else MISSED
    if options.result_file:
        write_json(Path(options.result_file), result(options, seconds, after, wrong, judged))


def result(
    options: Namespace, seconds: float, after: Scrape, wrong: list[str], judged: list[Threshold]
) -> dict[str, Any]:
    """Everything that the table shows, and more."""
    return {
        "shape": options.shape,
        "users": options.num_users,
        "seconds": round(seconds, 1),
        "seed": options.seed,
        "mix": Run.mix,
        "notes": Run.notes,
        "kinds": {kind: found.to_json() for kind, found in sorted(LoadUser.record.kinds.items())},
        "tokens_per_second": round(tokens(after) / seconds, 1),
        "outcomes_by_clients": by_route(LoadUser.record.outcomes),
        "outcomes_by_server": by_route(after.outcomes() - Run.before.outcomes()),
        "unaccounted": wrong,
        "thresholds": [each.to_json() for each in judged],
    }


def tokens(after: Scrape) -> float:
    """Tokens that the server drew in this run."""
    name = "phiserve_sampled_tokens_total"
    return after.value(name) - Run.before.value(name)


def show_progress(second: float, users: int) -> None:
    kinds = LoadUser.record.kinds.values()
    requests, failed = sum(kind.requests for kind in kinds), LoadUser.record.num_failures
    print(f"{second:5.0f} s  {users:3d} users  {requests:6d} requests  {failed} failed", file=sys.stderr, flush=True)
