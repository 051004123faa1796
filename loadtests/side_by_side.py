"""Servers side by side on one machine: the same prompts, interleaved rounds, medians and ratios.

    python -m loadtests.side_by_side --ours phiserve=http://127.0.0.1:8000 \
        --peer llama.cpp=http://127.0.0.1:8301,llama --prompts prompts.json --output docs/benchmarks/side_by_side

Every round measures every load on every server, one after the other, the order turned by one each round, after a round
that is not counted. Servers must serve the same weights; which precision each uses belongs into its name.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import Progress

from loadtests.client import Prompt, Sampling, ServerError
from loadtests.measurement import Load, Row, Server, measure
from loadtests.processes import cpu_seconds, root_behind, tree_of
from loadtests.results import machine, write_whole

QUIET_LOAD = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured and written; 2: bad input, a busy machine or a failing server."""
    try:
        options = parse(arguments)
        return compare(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is written.", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.side_by_side", description=(__doc__ or "").split("\n")[0]
    )
    server = "NAME=URL[,DIALECT]"
    parser.add_argument("--ours", required=True, metavar=server, help="the server whose ratio is taken")
    parser.add_argument("--peer", action="append", default=[], metavar=server, help="another; repeat for more")
    parser.add_argument("--prompts", type=Path, required=True, help='JSON list of {"text": ..., "ids": [...]}')
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--top-p", type=float, nargs="*", default=[0.9], help="nucleus sampling at temperature 1")
    parser.add_argument("--no-greedy", action="store_true", help="leave greedy decoding out")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--requests-per-user", type=int, default=4)
    parser.add_argument("--least-requests", type=int, default=8, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle-seconds", type=float, default=20, help="how long idle servers are watched first")
    parser.add_argument("--title", default="Side by side")
    parser.add_argument("--output", type=Path, required=True, help="files OUTPUT.json and OUTPUT.md are written")
    parser.add_argument("--allow-load", action="store_true", help="measure on a busy machine; the result says so")
    options = parser.parse_args(arguments)
    for name in ("tokens", "rounds", "requests_per_user"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: give 1 or more")
    options.servers = [Server.parse(text) for text in [options.ours, *options.peer]]
    names = [each.name for each in options.servers]
    if len(set(names)) != len(names):
        raise ValueError(f"server names {names} repeat; give each its own")
    return options


def compare(options: argparse.Namespace) -> int:
    """Measure and write. Raises ValueError as above."""
    prompts, loads = read_prompts(options.prompts), loads_of(options)
    load_before = wait_until_quiet(options.allow_load)
    idle = {server.name: idle_share(server, options.idle_seconds) for server in options.servers}
    rows = asyncio.run(measure_rounds(options, prompts, loads))
    result = {
        "title": options.title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_before": load_before,
        "rounds": options.rounds,
        "prompt_tokens": sorted({len(prompt.ids) for prompt in prompts}),
        "prompts_repeat": len(prompts) < (options.rounds + 1) * sum(load.num_requests for load in loads),
        "new_tokens": options.tokens,
        "idle_share_of_a_core": idle,
        "client": {"aiohttp": version("aiohttp"), "python": platform.python_version()},
        "loads": [
            {"load": row.load.name, "num_requests": row.load.num_requests}
            | {name: [each.to_json() for each in rounds] for name, rounds in row.figures.items()}
            for row in rows
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.output.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    text = markdown(result, rows, [server.name for server in options.servers])
    write_whole(options.output.with_suffix(".md"), text)
    print(text)
    return 0


def loads_of(options: argparse.Namespace) -> list[Load]:
    """Every kind of sampling at every concurrency."""
    samplings = [] if options.no_greedy else [Sampling(None, options.tokens)]
    samplings += [Sampling(top_p, options.tokens) for top_p in options.top_p]
    if not samplings:
        raise ValueError("top_p is empty and greedy is left out: nothing is left to measure")
    return [
        Load(sampling, users, max(options.least_requests, users * options.requests_per_user))
        for sampling in samplings
        for users in options.concurrency
    ]


def read_prompts(path: Path) -> list[Prompt]:
    """Raises ValueError unless the file is a list of texts with their ids."""
    try:
        prompts = [Prompt(each["text"], each["ids"]) for each in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f'prompts={str(path)!r}: {error!r}; give a JSON list of {{"text", "ids"}}') from None
    if not prompts:
        raise ValueError(f"prompts={str(path)!r} is empty; give at least one prompt")
    return prompts


def wait_until_quiet(allow_load: bool, patience_seconds: float = 300) -> float:
    """The load average before the measurement. Raises ValueError if it stays above QUIET_LOAD."""
    until = time.monotonic() + patience_seconds
    while (load := os.getloadavg()[0]) > QUIET_LOAD and not allow_load:
        if time.monotonic() > until:
            raise ValueError(f"the load average is {load:.2f}; stop what else runs, or add --allow-load")
        print(f"waiting: the load average is {load:.2f}, {QUIET_LOAD} is wanted", file=sys.stderr)
        time.sleep(10)
    return round(load, 2)


def idle_share(server: Server, seconds: float) -> float:
    """Share of a core that a server uses while nobody asks."""
    root = root_behind(server.port)
    before = cpu_seconds(tree_of(root))
    time.sleep(seconds)
    used = cpu_seconds(tree_of(root)) - before
    return round(used / seconds, 4) if seconds else 0.0


async def measure_rounds(options: argparse.Namespace, prompts: Sequence[Prompt], loads: Sequence[Load]) -> list[Row]:
    """Round 0 warms up and is not counted. Servers stand in another order each round."""
    servers: list[Server] = options.servers
    rows = [Row(load, {server.name: [] for server in servers}) for load in loads]
    next_prompt = 0
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=(options.rounds + 1) * len(loads) * len(servers))
        for number in range(options.rounds + 1):
            for row in rows:
                turn = number % len(servers)
                for server in [*servers[turn:], *servers[:turn]]:
                    progress.update(task, description=f"round {number}: {row.load.name}: {server.name}")
                    try:
                        figures = await measure(server, row.load, prompts, next_prompt)
                    except ServerError as error:
                        raise ServerError(f"{server.name}, {row.load.name}: {error}") from None
                    if number:
                        row.figures[server.name].append(figures)
                    progress.advance(task)
                next_prompt += row.load.num_requests  # others each time: no prefix cache answers for a server
    return rows


def markdown(result: dict[str, Any], rows: Sequence[Row], names: Sequence[str]) -> str:
    """The table for people: medians over rounds, and the ratio of the first server to the best other in each round."""
    ours, *peers = names
    lines = [
        f"# {result['title']}",
        "",
        f"{result['when']}, {result['machine']}; load average {result['load_average_before']} before the start; "
        f"prompts of {', '.join(map(str, result['prompt_tokens']))} tokens, {result['new_tokens']} new ones; "
        f"medians of {result['rounds']} interleaved rounds after a warm-up; one client for all, on the same cores.",
        "",
        f"Output tokens a second; ratio: {ours} to the best other in the same round, median (least .. most).",
        "",
        "| load | " + " | ".join(names) + " | ratio |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        cells = [f"{row.median(name, 'tokens_per_second'):,.0f}" for name in names]
        lines.append(f"| {row.load.name} | " + " | ".join(cells) + f" | {_spread(row.ratios(ours)) if peers else ''} |")
    lines += ["", "Milliseconds to the first token, p50 / p99, and the p99's ratio (above 1: ours is sooner).", ""]
    lines += ["| load | " + " | ".join(names) + " | ratio of p99 |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = [f"{row.median(n, 'first_token_p50'):.1f} / {row.median(n, 'first_token_p99'):.1f}" for n in names]
        ratio = _spread(row.ratios(ours, "first_token_p99", low_is_good=True)) if peers else ""
        lines.append(f"| {row.load.name} | " + " | ".join(cells) + f" | {ratio} |")
    lines += ["", "Whole process tree.", "", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    memory = [max(row.median(name, "peak_megabytes") for row in rows) for name in names]
    lines.append("| peak PSS, MB | " + " | ".join(f"{value:.0f}" for value in memory) + " |")
    idle = [result["idle_share_of_a_core"][name] for name in names]
    lines.append("| idle, share of a core | " + " | ".join(f"{value:.2%}" for value in idle) + " |")
    uncounted = [n for n in names if not all(each.counted for row in rows for each in row.figures[n])]
    if result["prompts_repeat"]:
        lines += ["", "Prompts repeat: a server that keeps prefixes gains by it."]
    if uncounted:
        lines += ["", f"Did not count their tokens; the number asked for is taken: {', '.join(uncounted)}."]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
