"""Evaluations made of given figures, as training.evaluate would write them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.evaluation import Evaluation, read_evaluation
from tests.store.folders import write_checkpoint

NUM_PASSAGES = 60
NUM_PROMPTS = 80


def content(
    weights_sha256: str = "a" * 64,
    *,
    bits: float = 2.0,
    score: float = 0.8,
    noise_bits: float = 0.0,
    noise_score: float = 0.0,
    scores: Sequence[float | None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """bits, score: means; noise: standard deviation of what differs by seed. What is common to all models is large."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    num_bytes = common.integers(200, 2000, NUM_PASSAGES)
    rates = bits + common.normal(0, 0.2, NUM_PASSAGES) + own.normal(0, noise_bits, NUM_PASSAGES)
    drawn = score + common.normal(0, 0.04, NUM_PROMPTS) + own.normal(0, noise_score, NUM_PROMPTS)
    return {
        "format": 2,
        "weights_sha256": weights_sha256,
        "generation_config_sha256": None,
        "protocol": {
            "splits": [{"name": "valid", "sha256": "b" * 64, "num_bytes": int(num_bytes.sum())}],
            "context": 512,
            "stride": 512,
            "prompts_sha256": "c" * 64,
            "num_prompts": NUM_PROMPTS,
            "prompt_tokens": 32,
            "new_tokens": 128,
            "seed": 0,
            "quality_reference_sha256": "d" * 64,
        },
        "passages": [
            {"num_bytes": int(size), "nats": float(rate * size * np.log(2))}
            for size, rate in zip(num_bytes, rates, strict=True)
        ],
        "prompt_scores": [float(value) for value in np.clip(drawn, 0, 1)] if scores is None else list(scores),
        "report": {},
    }


def evaluation(folder: Path, **figures: Any) -> Evaluation:
    path = folder / "evaluation.json"
    path.write_text(json.dumps(content(**figures)))
    return read_evaluation(path)


def evaluated_checkpoint(folder: Path, weights: int, **figures: Any) -> Path:
    """A checkpoint of other weights for every number, with an evaluation that belongs to them."""
    write_checkpoint(folder, seed=weights)
    sha256 = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else None
        for name in ("model.safetensors", "generation_config.json")
    ]
    figures = content(str(sha256[0]), **figures) | {"generation_config_sha256": sha256[1]}
    (folder / "evaluation.json").write_text(json.dumps(figures))
    return folder
