"""Write the points files of the lambda study: the plan's arms into files that training.search reads.

    python docs/studies/lambda/write_points.py                        the files without tuned rates, beside it
    python docs/studies/lambda/write_points.py RESULTS.jsonl... DIR   screen.json and confirm.json with tuned rates

The second form takes, for each arm, the learning rate with the lowest mean held-out bits per byte over the tuning
seeds; a rate within 0.002 of it goes before it where it is nearer to the middle of the grid.
"""

import json
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

BASE: dict[str, Any] = {
    "preset": "tiny_iit",
    "vocab_size": 8192,
    "block_size": 128,
    "batch_size": 16,
    "max_steps": 300,
    "learning_rate": 3e-3,
    "dropout": 0.1,
    "lambda_phi": 0.0,
    "bf16": True,
    "compile": True,
    "eval_every": 100,
    "eval_tokens": 16384,
}
RATES = (1.5e-3, 3e-3, 6e-3)
LOW_RATE = 7.5e-4  # the plan's one extension: arm none chose the grid's lower edge
TIED = 0.002
SCREEN: dict[str, dict[str, Any]] = {
    "none": {},
    "l0.001": {"lambda_phi": 0.001},
    "l0.01": {"lambda_phi": 0.01},
    "l0.05": {"lambda_phi": 0.05},
    "l0.1": {"lambda_phi": 0.1},
    "l0.3": {"lambda_phi": 0.3},
    "sham": {"lambda_phi": 0.01, "phi_sham": True},
    "l0.01-linear": {"lambda_phi": 0.01, "lambda_schedule": "linear"},
    "l0.01-cosine": {"lambda_phi": 0.01, "lambda_schedule": "cosine"},
    "none-dropout0.25": {"dropout": 0.25},
    "l0.01-dropout0.25": {"lambda_phi": 0.01, "dropout": 0.25},
}
CONFIRM = ("none", "l0.01", "sham")
# The old report's settings where they were not the thing compared: dropout 0.25, learning rate 2e-4.
CONFOUND = {
    f"l{value}-{steps}steps": {"lambda_phi": value, "max_steps": steps, "dropout": 0.25, "learning_rate": 2e-4}
    for steps in (100, 2000)
    for value in (0.05, 0.01)
}
SEEDS = {"tuning": [900], "screen": list(range(5)), "confirm": list(range(100, 110)), "confound": [200, 201, 202]}


def main(arguments: list[str]) -> int:
    """0: written; 2: bad input."""
    try:
        if not arguments:
            write_registered(Path(__file__).parent)
        elif len(arguments) > 1:
            write_tuned([Path(results) for results in arguments[:-1]], Path(arguments[-1]))
        else:
            raise ValueError(f"arguments={arguments}: give none, or files of results and a folder")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_registered(folder: Path) -> None:
    """The files as registered: rates not tuned yet."""
    for name, rates in (("tuning", RATES), ("tuning-low", (LOW_RATE,))):
        _write(
            folder,
            name,
            {f"{arm},lr={rate:g}": {**SCREEN[arm], "learning_rate": rate} for arm in SCREEN for rate in rates},
        )
    _write(folder, "screen", SCREEN)
    _write(folder, "confirm", {arm: SCREEN[arm] for arm in CONFIRM})
    _write(folder, "confound", CONFOUND)


def write_tuned(results: list[Path], folder: Path) -> None:
    """Screen and confirmation with each arm's rate. Raises ValueError where a tuning run is missing."""
    figures: dict[str, dict[float, list[float]]] = {}
    for line in (json.loads(text) for file in results for text in file.read_text().splitlines()):
        arm, _, _ = line["arm"].partition(",lr=")
        value = line["held_out"]["bits_per_byte"] if line["status"] == "finished" else math.inf
        figures.setdefault(arm, {}).setdefault(line["config"]["learning_rate"], []).append(value)
    tuned = {}
    for arm, settings in SCREEN.items():
        rates = {rate: fmean(values) for rate, values in figures.get(arm, {}).items()}
        if not set(RATES) <= set(rates) or math.isinf(min(rates.values())):
            raise ValueError(f"arm={arm!r} in {[str(file) for file in results]}: tuned at {sorted(rates)}, needs {RATES} with a finished run")
        best = min(rates.values())
        rate = min((r for r in rates if rates[r] <= best + TIED), key=lambda r: (abs(math.log(r / RATES[1])), rates[r]))
        tuned[arm] = {**settings, "learning_rate": rate}
        print(f"{arm:20} {rate:g}   " + "  ".join(f"{r:g}: {rates[r]:.4f}" for r in sorted(rates)))
    _write(folder, "screen", tuned)
    _write(folder, "confirm", {arm: tuned[arm] for arm in CONFIRM})


def _write(folder: Path, name: str, arms: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    points = {"base": BASE, "seeds": SEEDS[name.partition("-")[0]], "arms": arms}
    (folder / f"{name}.json").write_text(json.dumps(points, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
