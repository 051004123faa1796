"""Finished runs as lines of results, from searches and run folders, and what differs between two of them.

Reads results.jsonl and what training.train leaves; runs nothing and knows no statistics.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import NOT_COMPUTED, TrainConfig
from training.record import read_record

Result = dict[str, Any]

# Compared by what they stand for: the text by its hashes; the seed is what pairs runs.
_NOT_COMPARED = (*NOT_COMPUTED, "dataset", "seed", "log_every")
_PHI_FIELDS = tuple(
    spec.name
    for spec in dataclasses.fields(TrainConfig)
    if spec.name.startswith(("lambda_", "phi_")) and spec.name not in ("lambda_phi", "phi_rank", "phi_lag")
)
_ENVIRONMENT = ("commit", "versions", "threads", "device", "split")


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Every run under the paths: results.jsonl, folders that hold one, and run folders. Each run once.

    Raises ValueError for a path that is none of these, and for two different results of the same run.
    """
    found: dict[tuple[str, str], Result] = {}
    for path in paths:
        for result in _read(path):
            name = (result["arm"], result["key"])
            other = found.setdefault(name, result)
            if other["held_out"] != result["held_out"]:
                raise ValueError(
                    f"runs: arm {result['arm']!r}, seed {result['seed']} has two results, of commits {other['commit']} "
                    f"and {result['commit']}; give one of them"
                )
    if not found:
        raise ValueError(f"runs={[str(path) for path in paths]}: no run has ended there yet; wait, or name another")
    return list(found.values())


def _read(path: Path) -> list[Result]:
    file = path / "results.jsonl" if path.is_dir() else path
    if file.suffix == ".jsonl" and file.is_file():
        return [_checked(line, file) for line in read_record(file)]
    if (path / "result.json").is_file():
        return [_checked(json.loads((path / "result.json").read_text()), path)]
    if (path / "metrics.json").is_file():
        return [_run_folder(path)]
    raise ValueError(f"runs={str(path)!r}: give a results.jsonl, a folder with one, or the folder of a finished run")


def _checked(result: Result, source: Path) -> Result:
    missing = [name for name in ("arm", "seed", "key", "status", "config", "held_out", "curve") if name not in result]
    if missing:
        raise ValueError(f"runs={str(source)!r}: a line lacks {', '.join(missing)}; give what training.search writes")
    return result


def _run_folder(folder: Path) -> Result:
    """A run of training.train as a line of results. Such a folder does not record commit, versions and threads."""
    config = TrainConfig(**json.loads((folder / "train_config.json").read_text()))
    metrics = json.loads((folder / "metrics.json").read_text())
    records = read_record(folder / "record.jsonl")
    return {
        "arm": f"lambda{config.lambda_phi:g}-{replace(config, seed=0).key()[:6]}",
        "seed": config.seed,
        "key": config.key(),
        "status": "finished",
        "config": dataclasses.asdict(config),
        "commit": None,
        "versions": None,
        "threads": None,
        "device": None,
        "steps": config.max_steps,
        "dataset": json.loads((folder / "dataset.json").read_text()),
        "split": "valid",
        "held_out": {name: metrics[name] for name in ("bits_per_byte", "num_tokens", "num_bytes")}
        | {"nats_per_token": metrics["cross_entropy"]},
        "phi": {
            "phi": metrics["phi"],
            "phi01": metrics["phi01"],
            "null_mean": metrics["phi_null_mean"],
            "num_pairs": metrics["phi_num_pairs"],
        },
        "guards": {name: metrics.get(name) for name in ("phi_r", "effective_rank")} | {"gradient_ratio": None},
        "warnings": list(dict.fromkeys(record["warning"] for record in records if "warning" in record)),
        "curve": [[r["step"], r["eval_bits_per_byte"], r["eval_phi"]] for r in records if "eval_bits_per_byte" in r],
    }


def finished(results: Iterable[Result], arm: str) -> dict[int, Result]:
    """The arm's finished runs by seed. Raises ValueError where two runs of one arm share a seed."""
    by_seed: dict[int, Result] = {}
    for result in results:
        if result["arm"] == arm and result["status"] == "finished":
            if result["seed"] in by_seed:
                raise ValueError(
                    f"arm={arm!r}: two runs have seed {result['seed']}; give the parts of a study by turns"
                )
            by_seed[result["seed"]] = result
    return by_seed


def differing(a: Result, b: Result) -> list[str]:
    """Names of the settings and conditions that differ between two runs, the seed and names of folders left out."""
    of_a, of_b = _in_force(a["config"], b["config"]), _in_force(b["config"], a["config"])
    names = [name for name in sorted({*of_a, *of_b} - set(_NOT_COMPARED)) if of_a.get(name) != of_b.get(name)]
    names += [name for name in _ENVIRONMENT if a.get(name) != b.get(name)]
    if a["dataset"]["splits"] != b["dataset"]["splits"]:
        names.append("dataset")
    same_tokens = "dataset" in names or a["held_out"]["num_tokens"] == b["held_out"]["num_tokens"]
    return names if same_tokens or {"tokenizer", "vocab_size"} & set(names) else [*names, "held-out tokens"]


def _in_force(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that act. At lambda 0 nothing of the objective does, so it has the other run's settings of it."""
    values = dict(config)
    if config["lambda_phi"] == 0:
        values |= {name: other.get(name) for name in _PHI_FIELDS}
    if values["lambda_schedule"] not in ("linear", "cosine"):
        values.pop("lambda_final", None)
    if values["lambda_schedule"] != "closed_loop":
        values.pop("lambda_target_share", None)
    # lambda's schedule is one thing with where it ends.
    shape = [values.pop(name, None) for name in ("lambda_schedule", "lambda_final", "lambda_target_share")]
    return values | {"lambda_schedule": shape}


def num_training_tokens(config: Mapping[str, Any]) -> int:
    """Tokens that one process trains on in the whole run."""
    return int(config["max_steps"] * config["batch_size"] * config["block_size"] * config["gradient_accumulation"])


def rerun_command(result: Result) -> str:
    """The command that gives the same number again: CPU, same versions, same number of threads."""
    words = []
    for spec in dataclasses.fields(TrainConfig):
        value = result["config"].get(spec.name, spec.default)
        if spec.name in ("output_dir", "resume", "publish") or (value == spec.default and spec.name != "seed"):
            continue
        flag = spec.name.replace("_", "-")
        words.append(
            f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {shlex.quote(str(value))}"
        )
    threads = "" if result["threads"] is None else f"OMP_NUM_THREADS={result['threads']} "
    return f"{threads}python -m training.train {' '.join(words)}"
