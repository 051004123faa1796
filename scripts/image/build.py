"""The image from the Dockerfile by buildah, with the packages that this machine's pip would take."""

import subprocess
import sys
from pathlib import Path

from image.base import BASE
from image.tools import Containers

PIP_PREFIXES = ("global.", "install.", ":env:.")


def build_image(containers: Containers, repository: Path, target: str, tag: str) -> str:
    """Build one target of the Dockerfile and return the image's id. The logs are beside the storage."""
    config = containers.folder / "pip.conf"
    settings = _pip_settings()
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    command = ["buildah", "build", "--isolation", "chroot", "--format", "docker", "--layers", "--pull-never"]
    command += ["--file", str(repository / "Dockerfile")]
    command += ["--build-arg", f"PYTHON_IMAGE={BASE}", "--build-arg", f"REVISION={revision(repository)}"]
    command += ["--secret", f"id=pip_config,src={config}"]
    if {"index-url", "extra-index-url", "find-links"} & settings.keys():
        # This machine has a place of its own for packages; torch comes from there, too.
        command += ["--build-arg", "TORCH_INDEX_URL="]
    for path in _local_paths(settings):
        command += ["--volume", f"{path}:{path}:ro"]
    containers.run("buildah", "rm", "--all", check=False)  # of a build that was cut off
    # The stages before the last get names: what has none is thrown away below, and they are what takes time to make.
    for stage in ("app", f"venv-{target}", target):
        name = tag if stage == target else f"localhost/phiserve-stage:{stage}"
        log = containers.folder / f"build-{stage}.log"
        containers.run_logged([*command, "--target", stage, "--tag", name, str(repository)], log)
    containers.run("podman", "image", "prune", "--force", timeout=600)
    return containers.podman("image", "inspect", "--format", "{{.Id}}", tag)


def _pip_settings() -> dict[str, str]:
    """What pip would use here: files, then the environment, which wins."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found: dict[str, str] = {}
    for prefix in PIP_PREFIXES:
        for line in listed:
            key, separator, value = line.partition("=")
            if separator and key.startswith(prefix):
                found[key.removeprefix(prefix)] = " ".join(value.strip("'").replace("\\n", " ").split())
    return found


def _local_paths(settings: dict[str, str]) -> list[Path]:
    """Folders and files of this machine that the settings name. An index's pages link to files beside its folder."""
    found = set()
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            found.add(path.parent if word.startswith("file://") else path)
    return sorted(found)


def revision(repository: Path) -> str:
    """The commit, with -dirty where the working tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
