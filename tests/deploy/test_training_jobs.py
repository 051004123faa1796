"""The commands of the Jobs, as the manifests have them, run for real on a small text and with small settings."""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from subprocess import run as run_command

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


def start(container: Object, mounted: Path, *smaller: str, secrets: Mapping[str, str] | None = None) -> Popen[str]:
    """Start a container's command with its volumes under one folder; of the flags, those given last win.

    secrets: values of what its environment takes from elsewhere, by name.
    """

    def here(text: str, env: dict[str, str]) -> str:
        for name, value in env.items():
            text = text.replace(f"$({name})", value)
        for volume in ("/text", "/artifacts", "/store"):
            text = text.replace(volume, str(mounted) + volume)
        return text

    given = secrets or {}
    env = {entry["name"]: here(entry.get("value", given.get(entry["name"], "1")), {}) for entry in container["env"]}
    command = [here(word, env) for word in [*container["command"], *container.get("args", [])]]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Popen(
        [*command, *smaller],
        cwd=mounted / "artifacts",
        env={**os.environ, **env, "PYTHONPATH": str(ROOT), "PATH": path},
        stdout=PIPE,
        stderr=STDOUT,
        text=True,
    )


def finish(process: Popen[str], status: int = 0) -> str:
    """What the process said, once it has ended as it should."""
    said, _ = process.communicate(timeout=280)
    assert process.returncode == status, said
    return said


def run(container: Object, mounted: Path, *smaller: str, status: int = 0) -> str:
    return finish(start({"env": [], **container}, mounted, *smaller), status)


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    for volume in ("text", "artifacts", "store"):
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
    }, mounted / "artifacts/candidate"


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
    assert [flag.split("=")[0] for flag in said[4:]] == [flag.split("=")[0] for flag in container["args"]]
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
    store.set_alias("tiny_iit", "production", "3")
    small = ("--num-prompts=20", "--new-tokens=40", "--num-bootstrap=100", "--num-threads=1", "--context=128")

    steps = ("--max-steps=2", "--eval-every=2", "--eval-tokens=2048", "--batch-size=2", "--block-size=128", "--no-bf16")
    here = ("--metrics-host=127.0.0.1", "--metrics-port=0")
    assert "Metrics: http://127.0.0.1:" in run(container_of("train", "train"), mounted, *steps, *here)
    run(container_of("publish", "evaluate-candidate"), mounted, *small)
    run(container_of("publish", "evaluate-incumbent"), mounted, *small)
    # Two steps make no model: the gate must say so, and the alias must stay where it is.
    said = run(container_of("publish", "publish"), mounted, status=1)
    assert "REFUSED" in said
    assert store.resolve("tiny_iit@production").version == "3"

    run(container_of("evaluate", "evaluate"), mounted, *small)
    (evaluation,) = (mounted / "artifacts" / "evaluations").glob("*/evaluation.json")
    assert json.loads(evaluation.read_text())["report"]["model"] == "tiny_iit@3"


@pytest.fixture
def postgresql() -> Iterator[str]:
    """URL of an empty database of a real PostgreSQL on this machine."""
    pytest.importorskip("psycopg2", reason="install it with: pip install psycopg2-binary")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("PostgreSQL is not here; install it with: apt-get install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="search-db-"))
    if user is not None:
        shutil.chown(home, user)
    run_command(
        [folders[-1] / "initdb", "--auth=trust", "--username=search", "--no-sync", home / "data"],
        cwd=home,
        user=user,
        check=True,
        capture_output=True,
    )
    flags = ("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={home}", "-c", "fsync=off")
    server = Popen(
        [folders[-1] / "postgres", "-D", home / "data", "-p", str(port), *flags],
        cwd=home,
        user=user,
        stderr=PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if "ready to accept connections" in line:
            break
    else:
        pytest.fail("".join(said))
    yield f"postgresql+psycopg2://search@127.0.0.1:{port}/postgres"
    server.terminate()
    server.communicate(timeout=60)
    shutil.rmtree(home)


@pytest.mark.slow
def test_pods_of_a_search_share_its_trials_over_postgresql(mounted: Path, postgresql: str) -> None:
    write_text(mounted / "text")
    container = container_of("search", "search")
    small = (
        *(
            "--seeds=0",
            "--space=lambda_phi=0,0.01",
            "--threads=1",
            "--max-steps=2",
            "--eval-every=2",
            "--eval-tokens=256",
        ),
        *("--batch-size=2", "--block-size=64", "--vocab-size=512", "--preset=tiny_iit"),
    )
    pods = [start(container, mounted, *small, secrets={"STORAGE_URL": postgresql}) for _ in range(2)]
    for pod in pods:
        finish(pod)
    results = [json.loads(line) for line in (mounted / "artifacts/lambda/results.jsonl").read_text().splitlines()]
    assert [result["status"] for result in results] == ["finished", "finished"]
    assert sorted(result["config"]["lambda_phi"] for result in results) == [0, 0.01]
    assert len(list((mounted / "artifacts/lambda/trials").iterdir())) == 2
