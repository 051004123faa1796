"""What scoring costs: 32 clients of two servers side by side, rounds of three kinds interleaved in changing order.

    python scripts/benchmark_quality.py --model models/tiny_iit/3

off      a server that scores nothing (--quality-sample 0)
metrics  a server that scores for /metrics within its default budget
asked    the first server again, with "quality": true in every request: the reader waits for the score

Prints the tokens per second of each round and, of metrics/off and asked/off, the mean ratio with a 95 % interval over
rounds (Student's t). About 7 minutes at its defaults.
"""

import argparse
import json
import math
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from scipy import stats

CLIENTS = 32
KINDS = ("off", "metrics", "asked")
MEAN_TOKENS = 160
SHARE = 0.01  # the default of --quality-budget


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`python -m serve` with these flags, ready to answer."""

    def __init__(self, model: str, *flags: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "serve", "--model", model, "--port", str(self.port), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit("the server ended: see its message above")
            try:
                self.get("/readyz")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.stop()
        raise SystemExit("the server was not ready within 60 s")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def generate(self, asked: dict[str, object]) -> int:
        """Tokens written."""
        url, body = f"http://127.0.0.1:{self.port}/generate", json.dumps(asked).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            return int(json.load(answer)["usage"]["completion_tokens"])

    def results(self) -> str:
        """What became of the scores for metrics."""
        name = "phiserve_quality_choices_total"
        lines = (line for line in self.get("/metrics").splitlines() if line.startswith(name))
        return ", ".join(line.split('result="')[1].replace('"}', "") for line in lines)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def tokens_per_second(server: Server, requests: int, quality: bool) -> float:
    """Each client sends its requests one after the other, of 64 to 256 tokens, the same in every round."""

    def client(number: int) -> int:
        total = 0
        for i in range(requests):
            asked = {
                "prompt": "Once upon a time",
                "max_new_tokens": 64 + (number * 37 + i * 61) % 193,
                "ignore_eos": True,
                "seed": number + 100 * i,
                "quality": quality,
            }
            total += server.generate(asked)
        return total

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        total = sum(pool.map(client, range(CLIENTS)))
    return total / (time.perf_counter() - started)


def ratio(name: str, values: list[float]) -> str:
    """Mean with its interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{name}/off {mean:.4f} [{mean - half:.4f}, {mean + half:.4f}], n={len(values)} rounds, {CLIENTS} clients"


def measure(servers: dict[str, Server], rounds: int, seconds: float) -> None:
    """Print everything."""
    for kind in KINDS:
        tokens_per_second(servers[kind], 1, False)  # warm
    speed = tokens_per_second(servers["off"], 2, False)
    requests = max(1, round(speed * seconds / (CLIENTS * MEAN_TOKENS)))
    ratios: dict[str, list[float]] = {"metrics": [], "asked": []}
    for number in range(rounds):
        order = [KINDS[(number + i) % 3] for i in range(3)][:: 1 if number % 2 else -1]
        speeds = {kind: tokens_per_second(servers[kind], requests, kind == "asked") for kind in order}
        for kind, values in ratios.items():
            values.append(speeds[kind] / speeds["off"])
        print(f"round {number}:", ", ".join(f"{kind} {speeds[kind]:.0f}" for kind in KINDS), "tokens/s", flush=True)
    for kind, values in ratios.items():
        print(ratio(kind, values))
    print("scores for metrics:", servers["metrics"].results())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny_iit/3")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each kind, at least 2")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}: an interval needs at least 2")
    off = Server(options.model, "--quality-sample", "0")
    try:
        # It works in one round of three and would save the budget of the others: so it gets a third of it.
        metrics = Server(options.model, "--quality-budget", str(SHARE / len(KINDS)))
        try:
            measure({"off": off, "asked": off, "metrics": metrics}, options.rounds, options.seconds)
        finally:
            metrics.stop()
    finally:
        off.stop()


if __name__ == "__main__":
    main()
