"""Two groups of runs, or two checkpoints, against each other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train_loop.study_lines import arm, write
from training.compare import main


def test_groups_are_paired_by_seed_and_given_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "results.jsonl", arm("none", range(5), 0.0) + arm("l", range(5), -0.02, lambda_phi=0.01))
    assert main([f"{path}:l", f"{path}:none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [0, 1, 2, 3, 4]
    assert found["pairs"]["difference"]["high"] < 0
    assert "5 runs" not in found["conditions"]
    assert "10 runs" in found["conditions"]


def test_unlike_groups_are_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = arm("a", range(3), 0.0, max_steps=100) + arm("b", range(3), 0, lambda_phi=0.01)
    path = write(tmp_path / "results.jsonl", lines)
    assert main([f"{path}:a", f"{path}:b"]) == 1
    assert "2 things differ: lambda_phi, max_steps" in capsys.readouterr().out
    assert main([str(path), f"{path}:b"]) == 2
    assert "name one behind a colon" in capsys.readouterr().err


def test_a_checkpoint_is_better_than_its_copy_with_noise(
    finished_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, noisy = finished_run / "checkpoint", tmp_path / "noisy"
    shutil.copytree(good, noisy)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(noisy / "model.safetensors")
    noise = {name: w + 0.2 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noise, noisy / "model.safetensors", {"format": "pt"})
    flags = ["--dataset", str(data), "--passages", "3", "--json"]
    assert main([str(good), str(noisy), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole_difference"]["high"] < 0
    assert found["bits_per_byte"][0] < found["bits_per_byte"][1]
    assert main([str(good), str(good), *flags]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["whole_difference"]["value"], same["pairs"]["t_p"]) == (0.0, 1.0)


def test_a_checkpoint_is_not_compared_with_runs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished_run / "checkpoint"), "runs"]) == 2
    assert "give two alike" in capsys.readouterr().err
