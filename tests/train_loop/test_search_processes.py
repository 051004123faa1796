"""training.search as processes: killed and started again, interrupted, two on one storage, a sampler with pruning."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train_loop.runs import flags
from training.record import read_record

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _start(data: Path, folder: Path, *options: str, **changes: object) -> subprocess.Popen[str]:
    settings = flags(data, Path("unused"), **changes)
    for name in ("--output-dir", *(["--learning-rate"] if "learning_rate" in " ".join(options) else [])):
        place = settings.index(name)
        settings = settings[:place] + settings[place + 2 :]
    return subprocess.Popen(
        [sys.executable, "-m", "training.search", *settings, *options],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[str], status: int = 0) -> str:
    output = process.communicate()[0]
    assert process.returncode == status, output
    return output


def _wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Read the process's output until its bar shows this step or a later one."""
    assert process.stdout is not None
    text = ""
    while not any(int(shown) >= step for shown in re.findall(r"search:.*? (\d+)/\d+ \[", text)):
        piece = process.stdout.read(64)
        assert piece, text
        text += piece


def _results(study: Path) -> list[dict[str, Any]]:
    return read_record(study / "results.jsonl")


def _figures(study: Path) -> dict[tuple[str, int], Any]:
    return {(result["arm"], result["seed"]): (result["held_out"], result["curve"]) for result in _results(study)}


def test_a_search_killed_with_sigkill_goes_on_and_runs_nothing_twice(data: Path, tmp_path: Path) -> None:
    options = ("--space", "lambda_phi=0,0.5", "--seeds", "0-1", "--study")
    shared = {"max_steps": 50, "eval_every": 10}
    killed = _start(data, tmp_path, *options, "cut", "--workers", "2", **shared)
    _wait_for_step(killed, 2 * 50 + 40)  # amid the second round
    killed.kill()
    killed.communicate()
    done = {result["key"]: result for result in _results(tmp_path / "cut")}
    assert 1 <= len(done) < 4
    _end(_start(data, tmp_path, *options, "cut", "--workers", "2", **shared))
    results = _results(tmp_path / "cut")
    assert len(results) == len({result["key"] for result in results}) == 4
    assert all(result in results for result in done.values())
    assert any(result["resumed_from_step"] >= 10 for result in results)
    # Which process ran a trial, and whether it was cut, changes no bit of a figure.
    _end(_start(data, tmp_path, *options, "whole", "--workers", "1", **shared))
    assert _figures(tmp_path / "cut") == _figures(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("trials/*/run/resume"))


def test_a_killed_search_leaves_no_process_behind(data: Path, tmp_path: Path) -> None:
    run = _start(data, tmp_path, "--space", "lambda_phi=0", "--seeds", "0", "--study", "s", max_steps=5000)
    _wait_for_step(run, 5)
    (lock,) = tmp_path.glob("s/trials/*/lock")
    run.kill()
    run.communicate()
    # The trial holds its folder's lock as long as it lives: this returns when it has ended, and times out if it stays.
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def test_two_searches_on_one_storage_share_the_units(data: Path, tmp_path: Path) -> None:
    options = ("--space", "lambda_phi=0,0.5", "--seeds", "0-1", "--storage", f"sqlite:///{tmp_path / 'study.db'}")
    both = [_start(data, tmp_path, *options, "--study", name) for name in ("one", "two")]
    outputs = [_end(process) for process in both]
    assert all("4 runs, 4 finished" in output for output in outputs)
    # Each kept its trials in its own folder, as two machines would: no unit is in both, and both know all results.
    folders = [{path.name for path in (tmp_path / name / "trials").iterdir()} for name in ("one", "two")]
    assert not folders[0] & folders[1]
    assert len(folders[0] | folders[1]) == 4
    one, two = ({result["key"]: result for result in _results(tmp_path / name)} for name in ("one", "two"))
    assert one == two
    assert len(one) == 4


def test_ctrl_c_saves_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    options = ("--space", "lambda_phi=0", "--seeds", "0", "--study", "s")
    run = _start(data, tmp_path, *options, max_steps=300, eval_every=300)
    _wait_for_step(run, 5)
    run.send_signal(signal.SIGINT)
    output = _end(run, 130)
    assert "The same command goes on." in output
    assert "Traceback" not in output
    _end(_start(data, tmp_path, *options, max_steps=300, eval_every=300))
    (result,) = _results(tmp_path / "s")
    assert result["resumed_from_step"] >= 5


def test_a_sampler_with_pruning_runs_as_many_points_as_asked_and_no_more(data: Path, tmp_path: Path) -> None:
    options = ["--sampler", "tpe", "--trials", "4", "--pruner", "hyperband", "--workers", "2", "--seeds", "0-1"]
    options += ["--space", "learning_rate=1e-5:1e-2:log", "--study", "s"]
    shared = {"max_steps": 60, "eval_every": 5}
    first = _end(_start(data, tmp_path, *options, **shared))
    results = _results(tmp_path / "s")
    arms = {result["arm"] for result in results}
    assert len(arms) == 4
    assert {result["status"] for result in results} <= {"finished", "pruned"}
    assert "Selected" in first or "Lowest" in first
    again = _end(_start(data, tmp_path, *options, **shared))
    assert _results(tmp_path / "s") == results
    assert "8 runs" in again or any(result["status"] == "pruned" for result in results)


def test_a_trial_that_cannot_start_stops_the_search_with_its_reason(data: Path, tmp_path: Path) -> None:
    run = _start(data, tmp_path, "--space", "lambda_phi=0", "--study", "s", vocab_size=100_000)
    assert "error: trial lambda_phi=0-seed0" in (output := _end(run, 2))
    assert "vocab_size=100000" in output
    assert json.loads((tmp_path / "s" / "study.journal").read_text().splitlines()[0])
