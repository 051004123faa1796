"""Where a step's time goes on a server of its own, under one load: the counters of --step-timing, before and after.

    python scripts/step_times.py --model models/tiny_iit/3 --prompts prompts.json --concurrency 1 32

--prompts: as `python -m loadtests.prompts` makes them. Prints tokens a second and, for each phase, the milliseconds of
a mean step. Nothing is scored.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from loadtests.client import Prompt, Sampling
from loadtests.measurement import Load, Server, measure
from loadtests.server import ServerProcess

PHASE = re.compile(r'phiserve_step_phase_seconds_total\{phase="(\w+)"\} (\S+)')
STEPS = re.compile(r"^phiserve_steps_total(?:\{.*\})? (\S+)$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny_iit/3")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=Path, required=True, help='JSON list of {"text": ..., "ids": [...]}')
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--requests-per-user", type=int, default=20)
    options = parser.parse_args()
    prompts = [Prompt(given["text"], given["ids"]) for given in json.loads(options.prompts.read_text())]
    flags = ("--dtype", options.dtype, "--step-timing", "--quality-sample", "0")
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(options.model, Path(folder) / "server.log", flags) as process,
    ):
        server = Server("ours", process.url, "phiserve")
        first = 0
        for concurrency in options.concurrency:
            warm, count = 2 * concurrency, max(40, options.requests_per_user * concurrency)
            sampling = Sampling(options.top_p, options.tokens)
            asyncio.run(measure(server, Load(sampling, concurrency, warm), prompts, first))
            before = counters(process.url)
            load = Load(sampling, concurrency, count)
            figures = asyncio.run(measure(server, load, prompts, first + warm))
            first += warm + count
            after = counters(process.url)
            print(f"{load.name}: {figures.tokens_per_second:,.0f} tokens/s;", milliseconds(before, after))


def counters(url: str) -> dict[str, float]:
    """Seconds so far of each phase, and the number of steps."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310
        text = answer.read().decode()
    steps = sum(float(found) for found in STEPS.findall(text))
    return {"steps": steps} | {name: float(seconds) for name, seconds in PHASE.findall(text)}


def milliseconds(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Of a mean step, by phase."""
    steps = after["steps"] - before["steps"]
    phases = [(name, after[name] - before.get(name, 0.0)) for name in after if name != "steps"]
    return ", ".join(f"{name} {1e3 * seconds / steps:.3f}" for name, seconds in phases) + f"; {steps:.0f} steps"


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
