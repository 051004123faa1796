"""Hold a version's folder against its manifest: every byte of every file, and nothing more than them. Reads only."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_store.manifest import MANIFEST_FILE, FileRecord, Manifest, parse_manifest
from model_store.staging import hash_file


@dataclass(frozen=True, slots=True)
class Problem:
    """file: path relative to the version's folder, '/' between parts."""

    file: str
    kind: Literal["changed", "missing", "extra", "manifest"]
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. num_files and num_bytes count what was read and agreed."""

    name: str
    version: str
    problems: tuple[Problem, ...]
    num_files: int
    num_bytes: int

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_folder(folder: Path, name: str, version: str) -> Verification:
    """Compare a folder with its manifest, which must be the manifest of this name and version."""
    try:
        manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    except ValueError as error:
        return Verification(name, version, (Problem(MANIFEST_FILE, "manifest", str(error)),), 0, 0)
    problems = list(_misplaced(manifest, name, version))
    present = set(_files(folder)) - {MANIFEST_FILE}
    for file in sorted(present - manifest.files.keys()):
        problems.append(Problem(file, "extra", "it is not in the manifest"))
    num_files = num_bytes = 0
    for file, record in sorted(manifest.files.items()):
        problem = (
            _compare(folder, file, record) if file in present else Problem(file, "missing", "it is in the manifest")
        )
        if problem:
            problems.append(problem)
        else:
            num_files, num_bytes = num_files + 1, num_bytes + record.size
    return Verification(name, version, tuple(problems), num_files, num_bytes)


def _misplaced(manifest: Manifest, name: str, version: str) -> Iterator[Problem]:
    if (manifest.name, manifest.version) != (name, version):
        yield Problem(MANIFEST_FILE, "manifest", f"it is the manifest of {manifest.reference}, not of {name}@{version}")


def _compare(folder: Path, file: str, record: FileRecord) -> Problem | None:
    path = folder / file
    if path.is_symlink() or not path.is_file():
        return Problem(file, "changed", "it is no regular file any more")
    found = hash_file(path)
    if found.size != record.size:
        return Problem(file, "changed", f"it has {found.size} bytes, the manifest says {record.size}")
    if found.sha256 != record.sha256:
        return Problem(file, "changed", f"its sha256 is {found.sha256}, the manifest says {record.sha256}")
    return None


def _files(folder: Path, prefix: str = "") -> Iterator[str]:
    """All that is not a folder, and folders that are empty: nothing put there escapes. Links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and os.listdir(entry.path):
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name
