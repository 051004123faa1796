"""Real processes: a run killed with SIGKILL, one interrupted with Ctrl-C, and one on two processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train_loop.runs import figures, flags, same, weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _start(arguments: list[str], folder: Path, launcher: tuple[str, ...] = ("-m",)) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *launcher, "training.train", *arguments],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Read the process's output until the bar shows this step or a later one (it is not drawn at each)."""
    assert process.stdout is not None
    text = ""
    while not any(int(shown) >= step for shown in re.findall(r"train:.*? (\d+)/\d+ \[", text)):
        piece = process.stdout.read(64)
        assert piece, text
        text += piece


def test_a_run_killed_with_sigkill_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    shared = {"max_steps": 60, "eval_every": 10}
    whole = _start(flags(data, tmp_path / "whole", **shared), tmp_path)
    assert whole.communicate()[0] is not None
    assert whole.returncode == 0
    cut = _start(flags(data, tmp_path / "cut", **shared), tmp_path)
    _wait_for_step(cut, 25)
    cut.kill()
    cut.communicate()
    resumed = _start(flags(data, tmp_path / "cut", resume=True, **shared), tmp_path)
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert same(weights(tmp_path / "whole", 60), weights(tmp_path / "cut", 60))
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")


def test_ctrl_c_saves_a_run_that_can_go_on(data: Path, tmp_path: Path) -> None:
    run = _start(flags(data, tmp_path / "run", max_steps=2000, eval_every=1000), tmp_path)
    _wait_for_step(run, 5)
    run.send_signal(signal.SIGINT)
    output = run.communicate()[0]
    assert run.returncode == 130, output
    assert f"--output-dir {tmp_path / 'run'} --resume" in output
    assert "Traceback" not in output
    saved = list((tmp_path / "run" / "resume").glob("checkpoint-*/trainer_state.json"))
    assert len(saved) == 1


def test_a_compiled_run_trains_like_an_eager_one(data: Path, tmp_path: Path) -> None:
    shared = {"lambda_phi": 0.5, "dropout": 0, "max_steps": 3, "eval_every": 3, "phi_max_share": 0.1}
    for name, options in (("eager", {}), ("compiled", {"compile": True})):
        run = _start(flags(data, tmp_path / name, **shared, **options), tmp_path)
        output = run.communicate()[0]
        assert run.returncode == 0, output
    eager, compiled = (
        [record for record in figures(tmp_path / name) if "gradient_ratio" in record] for name in ("eager", "compiled")
    )
    for one, other in zip(eager, compiled, strict=True):
        for figure in ("loss", "gradient_ratio", "phi_r"):
            assert one[figure] == pytest.approx(other[figure], rel=1e-3)


def test_two_processes_train_one_run(data: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    run = _start(flags(data, tmp_path / "run", max_steps=4, eval_every=2), tmp_path, launcher)
    output = run.communicate()[0]
    assert run.returncode == 0, output
    assert "4 steps of 256 tokens" in output
    assert output.count("Checkpoint:") == 1
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()
    assert [r["step"] for r in figures(tmp_path / "run") if "eval_bits_per_byte" in r] == [0, 2, 4]
