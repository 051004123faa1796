"""The highest arrival rate at which a server keeps its latency objective, with its spread over rounds.

    python -m loadtests.capacity --first-token-ms 250 --gap-ms 50 --output docs/benchmarks/capacity.json

Open loop: requests come as a Poisson process and wait for nobody; times count from the planned arrival. Each round
brackets the rate by doubling or halving and bisects, with arrivals and prompts of its own. The result is written after
every round. Exit code 0: measured; 2: bad input, no server, or no rate that keeps the objective; 130: interrupted.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.accounts import Scrape
from loadtests.open_loop import Length, Objective, Trial, best_kept, run_trial
from loadtests.results import provenance, write_json
from loadtests.server import add_target_flags, interruptible, target
from loadtests.workload import asks, rng_of

LEAST_RATE = 0.05
IDLE_SECONDS = 60.0
CLIENT_SHARE = 0.1
"""Of the objective for the first token: a client later than that is said so."""
Measure = Callable[[float], Awaitable[Trial]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as above."""
    options = parse(arguments)
    try:
        with interruptible(), target(options, options.output.with_suffix(".server.log")) as url:
            result = asyncio.run(measure_rounds(url, options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted; {options.output} holds the rounds that were finished, if any.", file=sys.stderr)
        return 130
    print_table(result)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.capacity", description=(__doc__ or "").split("\n")[0])
    add_target_flags(parser)
    parser.add_argument("--first-token-ms", type=float, default=250, help="objective: p99 of the time to first token")
    parser.add_argument("--gap-ms", type=float, default=50, help="objective: p99 of the gaps between texts")
    parser.add_argument("--rounds", type=int, default=6, help="of the whole search; 6 give a 97 %% interval")
    parser.add_argument("--seconds", type=float, default=10, help="counted seconds of a trial, at least")
    parser.add_argument("--least-requests", type=int, default=300, help="counted requests of a trial, about, at least")
    parser.add_argument("--warm-up-seconds", type=float, default=3, help="before each trial, not counted")
    parser.add_argument("--start-rate", type=float, default=8, help="requests a second tried first")
    parser.add_argument("--most-rate", type=float, default=4096, help="requests a second never exceeded")
    parser.add_argument("--tolerance", type=float, default=0.05, help="bisect until the bracket is this narrow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/capacity.json"))
    options = parser.parse_args(arguments)
    positive = ("first_token_ms", "gap_ms", "rounds", "seconds", "least_requests", "start_rate", "tolerance")
    for name in positive:
        if getattr(options, name) <= 0:
            parser.error(f"{name}={getattr(options, name)}: give a number above 0")
    if options.warm_up_seconds < 0:
        parser.error(f"warm_up_seconds={options.warm_up_seconds}: give 0 or more")
    return options


class Round:
    """Measures rates with arrivals and prompts of its own."""

    def __init__(self, url: str, options: argparse.Namespace, number: int) -> None:
        self._url, self._number = url, number
        self._objective = Objective(options.first_token_ms, options.gap_ms)
        self._length = Length(options.warm_up_seconds, options.seconds, options.least_requests)
        self._seed = f"{options.seed}/{number}"
        self._asks = asks(rng_of(options.seed, "capacity", number))
        self._trials = itertools.count()

    async def measure(self, rate: float) -> Trial:
        """One trial, on an idle server."""
        await wait_until_idle(self._url)
        seed = f"{self._seed}/{next(self._trials)}"
        trial = await run_trial(self._url, rate, self._objective, self._length, self._asks, seed)
        show_trial(self._number, trial)
        return trial


async def measure_rounds(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, the result written after each. Raises ValueError if no rate keeps the objective."""
    names = (
        "first_token_ms",
        "gap_ms",
        "model",
        "serve_flag",
        "seconds",
        "least_requests",
        "most_rate",
        "tolerance",
        "seed",
    )
    result: dict[str, Any] = provenance() | {name: getattr(options, name) for name in names} | {"rounds": []}
    start = options.start_rate
    for number in range(options.rounds):
        trials = await search(Round(url, options, number).measure, start, options.most_rate, options.tolerance)
        best = best_kept(trials)
        if best is None:
            raise ValueError(
                f"no rate down to {LEAST_RATE:g} a second keeps a first token within {options.first_token_ms:g} ms "
                f"and gaps within {options.gap_ms:g} ms, 99 of 100; give a looser objective"
            )
        result["rounds"].append({"kept": best.to_json(), "trials": [trial.to_json() for trial in trials]})
        result["capacity"] = summary([each["kept"]["rate"] for each in result["rounds"]])
        write_json(options.output, result)
        start = best.rate
    return result


async def search(measure: Measure, start: float, most: float, tolerance: float) -> list[Trial]:
    """Trials that bracket the highest kept rate within a factor of 1 + tolerance, or up to `most`, in their order."""
    trials = [await measure(min(start, most))]
    step = 1.25
    while trials[-1].kept and trials[-1].rate < most:
        trials.append(await measure(min(most, trials[-1].rate * step)))
        step *= 1.25
    step = 1.25
    while best_kept(trials) is None and (low := min(trial.rate for trial in trials)) > LEAST_RATE:
        trials.append(await measure(max(LEAST_RATE, low / step)))
        step *= 1.25
    while (best := best_kept(trials)) is not None:
        missed = min((trial.rate for trial in trials if not trial.kept), default=None)
        if missed is None or missed <= best.rate * (1 + tolerance):
            break
        trials.append(await measure((best.rate * missed) ** 0.5))
    return trials


async def wait_until_idle(url: str) -> None:
    """The last trial's requests have left. Raises ValueError if they do not."""
    loop = asyncio.get_running_loop()
    until = loop.time() + IDLE_SECONDS
    while leaks := (await asyncio.to_thread(Scrape.of, url)).leaks():
        if loop.time() > until:
            raise ValueError(f"the server does not become idle: {'; '.join(leaks)}")
        await asyncio.sleep(0.1)


def summary(rates: Sequence[float]) -> dict[str, float | int]:
    """Median and range. The range of n rounds holds the true median with probability 1 - 2 ** (1 - n)."""
    return {
        "requests_per_second": round(statistics.median(rates), 3),
        "least": round(min(rates), 3),
        "most": round(max(rates), 3),
        "rounds": len(rates),
        "confidence": 1 - 2.0 ** (1 - len(rates)),
    }


def show_trial(number: int, trial: Trial) -> None:
    verdict = "kept" if trial.kept else "missed, cut short" if trial.cut_short else "missed"
    figures = f"p99 of first token {trial.first_token_p99_ms:.1f} ms, of gaps {trial.gap_p99_ms:.1f} ms"
    counts = f"n {trial.num_requests}, refused {trial.num_refused}, failed {trial.num_failed}"
    print(f"round {number + 1}: {trial.rate:.2f}/s  {figures}  {counts}  {verdict}", file=sys.stderr, flush=True)


def print_table(result: dict[str, Any]) -> None:
    """Each round's best rate, and what they say together."""
    names = ("round", "kept at, 1/s", "n", "first token p99, ms", "gap p99, ms", "tokens/s", "client late p99, ms")
    table = Table(*names, title="the highest rates that kept the objective")
    for number, each in enumerate(result["rounds"], 1):
        kept = each["kept"]
        figures = [f"{kept[name]:.1f}" for name in ("first_token_p99_ms", "gap_p99_ms", "tokens_per_second")]
        late = f"{kept['client_late_p99_ms']:.1f}"
        table.add_row(str(number), f"{kept['rate']:.2f}", str(kept["num_requests"]), *figures, late)
    console = Console(width=120)
    console.print(table)
    found = result["capacity"]
    at_least = "at least " if found["requests_per_second"] >= result["most_rate"] else ""
    console.print(
        f"{at_least}{found['requests_per_second']} requests a second (median of {found['rounds']} rounds; "
        f"{found['least']} to {found['most']} holds the median with {found['confidence']:.1%}); {result['machine']}, "
        f"client on the same cores, load average before {result['load_average_before']}, commit {result['commit']}"
    )
    late = max(each["kept"]["client_late_p99_ms"] for each in result["rounds"])
    if late > CLIENT_SHARE * result["first_token_ms"]:
        console.print(f"The client was up to {late:.0f} ms late (p99): it is part of what was measured.")


if __name__ == "__main__":
    sys.exit(main())
