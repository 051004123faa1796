"""The native runner against the torch runner: same weights, prompts, threads and dtype, in turn in each round. No HTTP.

Run: python scripts/benchmark_runners.py MODEL_DIR [--threads 2] [--rounds 5]. Prints the load before it starts, then
for each work the median output tokens per second of both (prompts included), the median of the rounds' ratios with
their range, and how many texts were equal. Both compute in float32.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.runner import Runner, RunnerOptions

PROMPT, NEW = 64, 128
RUNNERS = ("native", "torch")
WORKS = [(name, params, n) for name, params in (("greedy", (0.0, 1.0)), ("top_p .9", (1.0, 0.9))) for n in (1, 8, 32)]


def run(runner: Runner, sampling: tuple[float, float], at_once: int) -> tuple[float, dict[int, list[int]]]:
    """Output tokens per second of one batch of requests, and their tokens."""
    engine = Engine(runner, EngineLimits(prefix_caching=False))
    rng = np.random.default_rng(at_once)
    temperature, top_p = sampling
    for i in range(at_once):
        params = SamplingParams(max_new_tokens=NEW, temperature=temperature, top_p=top_p, seed=i, ignore_eos=True)
        engine.add(EngineRequest(i, rng.integers(runner.vocab_size, size=PROMPT).tolist(), params))
    texts: dict[int, list[int]] = {i: [] for i in range(at_once)}
    started = time.perf_counter()
    while engine.has_work:
        for delta in engine.step():
            texts[delta.request_id] += delta.token_ids
    return at_once * NEW / (time.perf_counter() - started), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.2f}; threads {args.threads}; rounds {args.rounds}; float32")
    options = RunnerOptions(dtype="float32", num_threads=args.threads, max_slots=32)
    runners = {name: load_runner(args.model, name, options).runner for name in RUNNERS}
    for name, sampling, at_once in WORKS:
        speeds: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
        texts = {}
        for round_number in range(args.rounds + 1):
            for runner in RUNNERS:
                speed, texts[runner] = run(runners[runner], sampling, at_once)
                if round_number:  # the first round warms up
                    speeds[runner].append(speed)
        ratios = [a / b for a, b in zip(speeds["native"], speeds["torch"], strict=True)]
        equal = sum(texts["native"][i] == texts["torch"][i] for i in range(at_once))
        native, torch = (statistics.median(speeds[runner]) for runner in RUNNERS)
        print(
            f"{name:9} {at_once:3} at once: native {native:7.0f}  torch {torch:7.0f}  ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  equal {equal} of {at_once}"
        )


if __name__ == "__main__":
    main()
