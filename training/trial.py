"""One trial of a search, in a process of its own: a folder with trial.json becomes a folder with result.json.

    python -m training.trial FOLDER        (what training.search starts)

A trial that was killed goes on from its last saved step. It ends with the process that started it: that process holds
the other end of its standard input. A lock on the folder keeps a second trial out while a first one still ends.
"""

import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from model_store.environment import git_commit, library_versions
from training.config import TrainConfig
from training.record import read_record
from training.train import last_saved, saved_step, tokens_per_step, train, write_json
from training.trainer import Diverged

_LAST_RECORDS = 10  # training records that the reported gradient ratio is the mean of


@dataclass(frozen=True)
class TrialRequest:
    """What trial.json holds."""

    arm: str
    key: str
    threads: int
    keep_checkpoint: bool
    config: TrainConfig

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From FOLDER/trial.json."""
        values = json.loads((folder / "trial.json").read_text())
        return cls(**{**values, "config": TrainConfig(**values["config"])})

    def write(self, folder: Path) -> None:
        """Into FOLDER/trial.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "trial.json", asdict(self))


def main() -> int:
    """Run the trial in the folder of the command line. The status is training.train's."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    request = TrialRequest.read(folder)
    torch.set_num_threads(request.threads)
    with _locked(folder):
        try:
            return run_trial(folder, request)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


def run_trial(folder: Path, request: TrialRequest) -> int:
    """Train, or go on training, and leave result.json and the record. Raises ValueError for bad input."""
    if not (folder / "result.json").exists():
        status = _train_to_result(folder, request)
        if status:
            return status
    shutil.rmtree(folder / "run" / "resume", ignore_errors=True)
    if not request.keep_checkpoint:
        shutil.rmtree(folder / "run" / "checkpoint", ignore_errors=True)
    return 0


def _train_to_result(folder: Path, request: TrialRequest) -> int:
    begin = time.monotonic()
    run_dir = folder / "run"
    saved = last_saved(run_dir)
    if saved is None:
        shutil.rmtree(run_dir, ignore_errors=True)
    config = replace(request.config, output_dir=str(run_dir), resume=saved is not None)
    try:
        status = train(config)
        if status:
            return status
        result = _finished_result(request, run_dir)
    except Diverged as error:
        result = _result(request, run_dir, "diverged") | {"error": str(error)}
    first_step = 0 if saved is None else saved_step(saved)
    write_json(
        folder / "result.json",
        result | {"seconds": round(time.monotonic() - begin, 1), "resumed_from_step": first_step},
    )
    return 0


def pruned_result(folder: Path) -> dict[str, Any]:
    """What a trial that was stopped for good leaves: its record so far, and no held-out figure."""
    shutil.rmtree(folder / "run" / "resume", ignore_errors=True)
    return _result(TrialRequest.read(folder), folder / "run", "pruned")


def _result(request: TrialRequest, run_dir: Path, status: str) -> dict[str, Any]:
    """A line of results.jsonl, but for the figures of a whole run and the time it took."""
    records = read_record(run_dir / "record.jsonl")
    steps = max((record["step"] for record in records), default=0)
    return {
        "arm": request.arm,
        "seed": request.config.seed,
        "key": request.key,
        "status": status,
        "config": asdict(request.config),
        "commit": git_commit(),
        "versions": library_versions(),
        "threads": request.threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "steps": steps,
        "tokens_seen": steps * tokens_per_step(request.config),
        "dataset": json.loads((run_dir / "dataset.json").read_text()),
        "split": "valid",
        "held_out": None,
        "phi": None,
        "guards": None,
        "warnings": list(dict.fromkeys(record["warning"] for record in records if "warning" in record)),
        "curve": [
            [record["step"], record["eval_bits_per_byte"], record["eval_phi"]]
            for record in records
            if "eval_bits_per_byte" in record
        ],
    }


def _finished_result(request: TrialRequest, run_dir: Path) -> dict[str, Any]:
    """The whole line: held-out figures on the whole split, and the guards, held out and of the last records."""
    metrics = json.loads((run_dir / "metrics.json").read_text())
    trained = [record for record in read_record(run_dir / "record.jsonl") if "gradient_ratio" in record]
    trained = trained[-_LAST_RECORDS:]
    ratio = sum(record["gradient_ratio"] for record in trained) / len(trained) if trained else None
    return _result(request, run_dir, "finished") | {
        "held_out": {
            "bits_per_byte": metrics["bits_per_byte"],
            "nats_per_token": metrics["cross_entropy"],
            "num_tokens": metrics["num_tokens"],
            "num_bytes": metrics["num_bytes"],
        },
        "phi": {
            "phi": metrics["phi"],
            "phi01": metrics["phi01"],
            "null_mean": metrics["phi_null_mean"],
            "num_pairs": metrics["phi_num_pairs"],
        },
        "guards": {
            "phi_r": metrics["phi_r"],
            "effective_rank": metrics["effective_rank"],
            "gradient_ratio": ratio,
            "lambda_phi": trained[-1]["lambda_phi"] if trained else 0.0,
        },
    }


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: this ends when the other end is closed
    os._exit(1)  # as sudden as the parent's end may have been: what is saved is whole at any moment


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it up with the process, however that ends."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
