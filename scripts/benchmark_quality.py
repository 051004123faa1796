"""What scoring costs: three busy servers take turns on the machine, the others stopped meanwhile.

    python scripts/benchmark_quality.py --model models/tiny_iit/3

off      a server that scores nothing (--quality-sample 0)
metrics  a server that scores for /metrics within its default budget
asked    a server with "quality": true in every request: the reader waits for the score

Each has 32 clients that never rest. A turn is so short that the machine's own ups and downs meet all three alike.
Prints the mean tokens per second of each, and of metrics/off and asked/off the geometric mean ratio over the rounds
with a 95 % interval (Student's t). About 13 minutes at its defaults.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from scipy import stats
from tqdm import tqdm

from loadtests.processes import tree_behind
from loadtests.server import ServerProcess

CLIENTS = 32
KINDS = ("off", "metrics", "asked")
BUDGET = 0.01 / len(KINDS)
"""The default of --quality-budget, less what a server would save up while the others work."""
SETTLE_SECONDS = 0.1
FIRST_ROUNDS = 20  # not counted: full budgets, cold caches
TOKENS = "phiserve_sampled_tokens_total"
SCORES = "phiserve_quality_choices_total"


class BusyServer:
    """A server's clients, and its processes, which can be stopped. Runs when made."""

    def __init__(self, server: ServerProcess, quality: bool) -> None:
        self._url, self._quality = server.url, quality
        self._ended, self._failure = False, ""
        self._pids = [process.pid for process in tree_behind(server.port)]
        for number in range(CLIENTS):
            threading.Thread(target=self._ask_on, args=(number,), daemon=True).start()

    def _ask_on(self, number: int) -> None:
        for i in itertools.count():
            asked = {
                "prompt": "Once upon a time",
                "max_new_tokens": 64 + (number * 37 + i * 61) % 193,
                "ignore_eos": True,
                "seed": number + 100 * i,
                "quality": self._quality,
            }
            body = json.dumps(asked).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{self._url}/generate", body, headers)  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
                    json.load(answer)
            except OSError as error:
                if not self._ended:
                    self._failure = str(error)
                return

    def turn(self, seconds: float) -> float:
        """Tokens a second, in a turn of its own."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        before, began = self._tokens(), time.perf_counter()
        time.sleep(seconds)
        after, ended = self._tokens(), time.perf_counter()
        self.send(signal.SIGSTOP)
        if self._failure:
            raise ValueError(f"a request failed ({self._failure}): with a client less it would be another load")
        return (after - before) / (ended - began)

    def _tokens(self) -> float:
        return sum(float(line.split()[-1]) for line in self.metrics() if line.startswith(TOKENS))

    def scores(self) -> str:
        """What became of the scores for metrics."""
        lines = (line for line in self.metrics() if line.startswith(SCORES))
        return ", ".join(line.split('result="')[1].replace('"}', "") for line in lines)

    def metrics(self) -> list[str]:
        """The lines of /metrics."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=30) as answer:  # noqa: S310
            return str(answer.read().decode()).splitlines()

    def send(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """From here on a refused request is no failure."""
        self._ended = True
        self.send(signal.SIGCONT)


def ratio(name: str, values: list[float]) -> str:
    """Geometric mean with its interval: in logarithms, as much above 1 as below it is no difference."""
    logs = [math.log(value) for value in values]
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, mean, high = (math.exp(statistics.mean(logs) + side * half) for side in (-1, 0, 1))
    return f"{name}/off {mean:.4f} [{low:.4f}, {high:.4f}], n={len(logs)} rounds, {CLIENTS} clients"


def measure(servers: dict[str, BusyServer], rounds: int, seconds: float) -> None:
    """Print everything."""
    time.sleep(2)
    for server in servers.values():
        server.send(signal.SIGSTOP)
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    order, draw = list(KINDS), random.Random(0)
    for number in tqdm(range(FIRST_ROUNDS + rounds), unit="round", disable=not sys.stderr.isatty()):
        draw.shuffle(order)
        for kind in order:
            speed = servers[kind].turn(seconds)
            if number >= FIRST_ROUNDS:
                speeds[kind].append(speed)
    print(", ".join(f"{kind} {statistics.mean(speeds[kind]):.0f}" for kind in KINDS), "tokens/s on average")
    for kind in KINDS[1:]:
        print(ratio(kind, [a / b for a, b in zip(speeds[kind], speeds["off"], strict=True)]))
    servers["metrics"].send(signal.SIGCONT)
    print("scores for metrics:", servers["metrics"].scores())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny_iit/3")
    parser.add_argument("--rounds", type=int, default=400, help="turns of each kind that count, at least 2")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}: an interval needs at least 2")
    flags = {
        "off": ("--quality-sample", "0"),
        "metrics": ("--quality-budget", str(BUDGET)),
        "asked": ("--quality-sample", "0"),
    }
    print(f"load average before: {os.getloadavg()[0]:.2f}")
    try:
        run(options, flags)
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace, flags: dict[str, tuple[str, ...]]) -> None:
    """Start the servers, measure, end them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {
            kind: stack.enter_context(ServerProcess(options.model, folder / f"{kind}.log", flags[kind]))
            for kind in KINDS
        }
        servers = {}
        for kind, process in processes.items():
            servers[kind] = BusyServer(process, quality=kind == "asked")
            stack.callback(servers[kind].end)
        measure(servers, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
