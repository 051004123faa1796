"""The manifests as they are written and as kustomize renders them. No cluster, no network."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
# Made by scripts/verify-manifests.
TOOLS = ROOT / "build" / "manifest-tools" / "bin"
# What somebody applies, and the namespace it goes to.
APPLIED = {
    "overlays/cpu": "phiserve",
    "overlays/gpu": "phiserve",
    "overlays/keda": "phiserve",
    "overlays/dev": "phiserve-dev",
    "store": "phiserve",
    "training/volumes": "phiserve",
    "training/train": "phiserve",
    "training/publish": "phiserve",
    "training/search": "phiserve",
    "training/evaluate": "phiserve",
}

Object = dict[str, Any]


def tool(name: str) -> str:
    """Path of a command; the test is skipped where there is none."""
    found = TOOLS / name
    path = str(found) if found.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not here; install it with: scripts/verify-manifests")
    return path


def render(folder: str) -> list[Object]:
    """Every object that `kubectl apply -k k8s/FOLDER` would send."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", K8S / folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns of a field that is deprecated"
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


@functools.cache
def written() -> tuple[tuple[Path, Object], ...]:
    """Every object in the files, patches and kustomizations left out."""
    found = []
    for path in sorted(K8S.rglob("*.yaml")):
        if "overlays" not in path.parts and path.name not in ("kustomization.yaml", "checkov_exceptions.yaml"):
            found += [(path, document) for document in yaml.safe_load_all(path.read_text())]
    return tuple(found)


def one(kind: str, folder: str = "base") -> Object:
    """The only object of a kind under a folder."""
    (found,) = [document for path, document in written() if document["kind"] == kind and K8S / folder in path.parents]
    return found


def pod_templates() -> Iterator[tuple[str, Object]]:
    """A name, and the template (metadata and spec) of every pod."""
    for path, document in written():
        template = document if document["kind"] == "Pod" else document.get("spec", {}).get("template")
        if document["kind"] == "CronJob":
            template = document["spec"]["jobTemplate"]["spec"]["template"]
        if template is not None:
            yield f"{path.relative_to(K8S)}:{document['metadata']['name']}", template


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines, as kustomize reads them."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)
