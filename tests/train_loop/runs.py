"""A tiny training run on text made here: what the tests of the loop share."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from training.config import TrainConfig, flag_parser

_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "li",
    "mo",
    "nu",
    "pe",
    "qui",
    "ra",
    "so",
    "ta",
    "ul",
    "ve",
    "wi",
    "xo",
    "ya",
    "zen",
)


def write_text(folder: Path, num_documents: int = 60) -> Path:
    """train.txt, valid.txt and test.txt of made-up sentences."""
    rng = random.Random(0)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(200)]
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_documents), ("valid", 8), ("test", 8)):
        documents = [
            " ".join(f"{' '.join(rng.choices(words, k=10)).capitalize()}." for _ in range(12)) for _ in range(count)
        ]
        (folder / f"{split}.txt").write_text("<|endoftext|>".join(documents))
    return folder


def flags(data: Path, output_dir: Path, **changes: object) -> list[str]:
    """Command line of a run of some seconds."""
    values: dict[str, object] = {
        "dataset": data,
        "output-dir": output_dir,
        "vocab-size": 512,
        "block-size": 32,
        "batch-size": 4,
        "max-steps": 10,
        "eval-every": 5,
        "eval-tokens": 1024,
        "log-every": 1,
        "warmup-steps": 2,
        "learning-rate": 3e-3,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    line = []
    for name, value in values.items():
        line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return line


def config_of(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that a command line stands for."""
    return TrainConfig(**vars(flag_parser().parse_args(arguments)))


def weights(run: Path, step: int) -> dict[str, Any]:
    """The weights saved at a step."""
    return load_file(run / "resume" / f"checkpoint-{step}" / "model.safetensors")


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two sets of weights agree in every bit."""
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def figures(run: Path) -> list[dict[str, Any]]:
    """The record without what depends on the clock."""
    timed = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
    lines = (run / "record.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
