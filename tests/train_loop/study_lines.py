"""Made-up lines of results.jsonl: what the tests of reports and comparisons share."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import TrainConfig

TOKENS, BYTES = 1000, 3700


def line(arm: str, seed: int, bits: float | None, **settings: Any) -> dict[str, Any]:
    """A finished run, or a diverged one where bits is None. Settings of TrainConfig; the rest is the same for all."""
    config = TrainConfig(seed=seed, **{"lambda_phi": 0.0, "max_steps": 300, **settings})
    nats = None if bits is None else bits * math.log(2) * BYTES / TOKENS
    held_out = {"bits_per_byte": bits, "nats_per_token": nats, "num_tokens": TOKENS, "num_bytes": BYTES}
    phi = {"phi": 0.1 + config.lambda_phi, "phi01": 0.02, "null_mean": 0.004, "num_pairs": 4000}
    guards = {"phi_r": 0.01, "effective_rank": 9.0, "gradient_ratio": None, "lambda_phi": config.lambda_phi}
    return {
        "arm": arm, "seed": seed, "key": config.key(), "status": "diverged" if bits is None else "finished",
        "config": dataclasses.asdict(config), "commit": "c0ffee", "versions": {"torch": "2.13"}, "threads": 1,
        "device": "cpu", "steps": config.max_steps, "tokens_seen": 0, "split": "valid",
        "dataset": {"name": "made up", "splits": {"valid": {"sha256": "ab" * 32}}},
        "held_out": None if bits is None else held_out, "phi": None if bits is None else phi,
        "guards": None if bits is None else guards, "warnings": [], "seconds": 1.0,
        "curve": [[0, 3.0, 0.0], [config.max_steps, bits or 9.0, 0.1]],
    }  # fmt: skip


def arm(name: str, seeds: Sequence[int], effect: float, **settings: Any) -> list[dict[str, Any]]:
    """Runs whose seeds matter much (0.1) and alike in each arm, with an effect and a noise of 0.002 of their own."""
    own = random.Random(name)
    return [line(name, s, 2 + random.Random(s).gauss(0, 0.1) + effect + own.gauss(0, 0.002), **settings) for s in seeds]


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """results.jsonl."""
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path
