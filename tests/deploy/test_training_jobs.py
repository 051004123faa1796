"""The commands of the Jobs, as the manifests have them, run for real on a small text and with small settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.deploy.manifests import ROOT, Object, containers, pod_templates

PODS = dict(pod_templates())
SHIPPED = ROOT / "models"


def container_of(folder: str, name: str) -> Object:
    (found,) = [
        container
        for pod, template in PODS.items()
        if pod.startswith(f"training/{folder}/")
        for container in containers(template)
        if container["name"] == name
    ]
    return found


def run(container: Object, mounted: Path, *smaller: str, status: int = 0) -> str:
    """Run a container's command with its volumes under one folder; the flags given last win. Its standard output."""

    def here(text: str, env: dict[str, str]) -> str:
        for name, value in env.items():
            text = text.replace(f"$({name})", value)
        for volume in ("/text", "/work", "/store"):
            text = text.replace(volume, str(mounted) + volume)
        return text

    env = {entry["name"]: here(entry.get("value", "1"), {}) for entry in container.get("env", [])}
    command = [here(word, env) for word in [*container["command"], *container.get("args", [])]]
    done = subprocess.run(
        [*command, *smaller],
        cwd=mounted / "work",
        env={
            **os.environ,
            **env,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    for volume in ("text", "work", "store"):
        (tmp_path / volume).mkdir()
    return tmp_path


@pytest.fixture
def train(mounted: Path) -> tuple[Object, Path]:
    """The train container with a python that only prints its arguments; and the folder of its run."""
    (mounted / "bin").mkdir()
    (mounted / "bin" / "python").write_text('#!/bin/sh\necho "$@"\n')
    (mounted / "bin" / "python").chmod(0o755)
    container = dict(container_of("train", "train"))
    script = container["command"][2].replace("exec python", f"exec {mounted}/bin/python")
    return {
        **container,
        "command": [*container["command"][:2], script, container["command"][3]],
    }, mounted / "work/candidate"


def test_a_training_pod_that_replaces_another_goes_on_from_the_last_saved_step(
    train: tuple[Object, Path], mounted: Path
) -> None:
    container, candidate = train
    saved = candidate / "resume" / "checkpoint-200"
    saved.mkdir(parents=True)
    (candidate / "train_config.json").touch()
    (saved / "trainer_state.json").touch()
    assert run(container, mounted).split()[-1] == "--resume"
    assert (candidate / "train_config.json").exists()


def test_a_training_pod_begins_anew_where_no_step_was_saved_whole(train: tuple[Object, Path], mounted: Path) -> None:
    container, candidate = train
    (candidate / "resume" / "checkpoint-200").mkdir(parents=True)
    (candidate / "train_config.json").touch()
    said = run(container, mounted).split()
    assert "--resume" not in said
    assert said[:4] == ["-m", "training.train", "--output-dir", str(candidate)]
    assert said[4:] == [argument.replace("/text", f"{mounted}/text") for argument in container["args"]]
    assert not (candidate / "train_config.json").exists()


def write_text(folder: Path) -> None:
    """Some of the language reference of this Python, in the three files that --dataset takes."""
    from training.corpora import load_corpus

    for split, documents in load_corpus("pydoc").documents.items():
        text = "<|endoftext|>".join(documents)
        (folder / f"{split}.txt").write_text(text[: 300_000 if split == "train" else 60_000])


@pytest.mark.slow
def test_a_model_is_trained_evaluated_and_held_against_the_one_in_production(mounted: Path) -> None:
    write_text(mounted / "text")
    store = ModelStore(mounted / "store")
    store.copy_from(ModelStore(SHIPPED), "tiny_iit")
    store.set_alias("tiny_iit", "production", "2")
    small = ("--num-prompts=20", "--new-tokens=40", "--num-bootstrap=100", "--num-threads=1", "--context=128")

    steps = ("--max-steps=2", "--eval-every=2", "--eval-tokens=2048", "--batch-size=2", "--block-size=128", "--no-bf16")
    run(container_of("train", "train"), mounted, *steps)
    run(container_of("publish", "fit-reference"), mounted, "--num-passages=60")
    run(container_of("publish", "evaluate-candidate"), mounted, *small)
    run(container_of("publish", "evaluate-incumbent"), mounted, *small)
    # Two steps make no model: the gate must say so, and the alias must stay where it is.
    said = run(container_of("publish", "publish"), mounted, status=1)
    assert "REFUSED" in said
    assert store.resolve("tiny_iit@production").version == "2"

    run(container_of("evaluate", "evaluate"), mounted, *small)
    (evaluation,) = (mounted / "work" / "evaluations").glob("*/evaluation.json")
    assert json.loads(evaluation.read_text())["report"]["name"] == "tiny_iit@2"
