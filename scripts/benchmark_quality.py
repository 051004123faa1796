"""What scoring every generation costs: 32 clients of one server, rounds with and without "quality" interleaved.

    python scripts/benchmark_quality.py --model models/tiny_iit/1 --rounds 10

Prints the tokens per second of each round and the mean ratio on/off with a 95 % interval over pairs of rounds (normal).
With "quality" the reader waits for the score and its JSON is written, so this is
no less than scoring for metrics costs.
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

CLIENTS = 32


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(model: str, port: int) -> "subprocess.Popen[bytes]":
    """A server that scores only what it is asked to, ready to answer."""
    flags = ["--model", model, "--port", str(port), "--quality-sample", "0"]
    process = subprocess.Popen([sys.executable, "-m", "serve", *flags], stdout=subprocess.DEVNULL)
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended: see its message above")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    process.terminate()
    raise SystemExit("the server was not ready within 60 s")


def tokens_per_second(port: int, requests: int, quality: bool) -> float:
    """Each client sends its requests one after the other, of 64 to 256 tokens, the same in every round."""

    def client(number: int) -> int:
        total = 0
        for i in range(requests):
            tokens = 64 + (number * 37 + i * 61) % 193
            asked = {
                "prompt": "Once upon a time",
                "max_new_tokens": tokens,
                "ignore_eos": True,
                "seed": number + 100 * i,
            }
            body = json.dumps(asked | {"quality": quality}).encode()
            url = f"http://127.0.0.1:{port}/generate"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
                total += json.load(answer)["usage"]["completion_tokens"]
        return total

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        total = sum(pool.map(client, range(CLIENTS)))
    return total / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny_iit/1")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of rounds, at least 8")
    parser.add_argument("--requests", type=int, default=4, help="requests of each client in a round")
    options = parser.parse_args()
    if options.rounds < 8:
        parser.error(f"--rounds is {options.rounds}: a normal interval needs at least 8")
    port = free_port()
    server = start(options.model, port)
    try:
        tokens_per_second(port, 1, True)  # warm
        ratios = []
        for pair in range(options.rounds):
            order = (True, False) if pair % 2 else (False, True)
            speed = {quality: tokens_per_second(port, options.requests, quality) for quality in order}
            ratios.append(speed[True] / speed[False])
            print(f"round {pair}: on {speed[True]:.0f} tokens/s, off {speed[False]:.0f}, ratio {ratios[-1]:.4f}")
    finally:
        server.terminate()
        server.wait(60)
    half = 1.96 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    mean = statistics.mean(ratios)
    print(f"on/off {mean:.4f} [{mean - half:.4f}, {mean + half:.4f}], n={len(ratios)} pairs, {CLIENTS} clients")


if __name__ == "__main__":
    main()
