"""Which software wrote a manifest: library versions and the commit of this repository."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("numpy", "phiserve", "safetensors", "tokenizers", "torch", "transformers")


@cache
def library_versions() -> dict[str, str]:
    """Python's version and those of the libraries that are installed. Imports none of them."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache  # the code that runs is the code that was loaded: a commit made meanwhile is not it
def git_commit() -> str | None:
    """The commit this code was checked out from, with '-dirty' behind it if it was changed; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
