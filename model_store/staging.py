"""Bytes safely onto a disk: hashed copies, fsync, and private folders that vanish with the process that made them.

Knows nothing of models. A staging folder lies under `.staging` of the root, so that renaming it into place is atomic.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.manifest import FileRecord

STAGING_AREA = ".staging"
_CHUNK_BYTES = 1 << 20

CopyFile = Callable[[Path, Path], FileRecord]


def copy_and_hash(source: Path, destination: Path) -> FileRecord:
    """Copy one regular file to a new path and force it to disk; the record is of the bytes that were written."""
    digest, size = hashlib.sha256(), 0
    # A file exchanged for a link since it was listed must not be followed.
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as reader, destination.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += writer.write(chunk)
        os.fsync(writer.fileno())
    return FileRecord(digest.hexdigest(), size)


def hash_file(path: Path) -> FileRecord:
    """Record of a regular file as it is."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, over what it held, and force it to disk. Not atomic: for files nobody can see yet."""
    with path.open("wb") as writer:
        writer.write(data)
        os.fsync(writer.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new content atomically: a reader sees the old bytes or the new ones."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        write_file(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Force a folder's own entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Force the entries of a folder and of every folder below it to disk, deepest first."""
    for path, _, _ in os.walk(folder, topdown=False):
        flush_folder(Path(path))


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """A new folder on the root's file system, removed on leaving unless it was renamed away.

    What a killed process left behind is removed first: each folder has a lock file, held for as long as its process
    lives, and the kernel lets go of the lock however the process ends.
    """
    area = root / STAGING_AREA
    area.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(area)
    folder, lock = _locked_folder(area)
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _locked_folder(area: Path) -> tuple[Path, int]:
    while True:
        folder = area / secrets.token_hex(8)
        lock = os.open(_lock_path(folder), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _lock_path(folder).exists():
            return folder, lock
        os.close(lock)  # another process took it for abandoned between the two calls above


def _remove_abandoned(area: Path) -> None:
    for path in area.glob("*.lock"):
        try:
            lock = os.open(path, os.O_RDWR)
        except (FileNotFoundError, PermissionError):  # gone meanwhile, or another user's to remove
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.with_suffix(""))
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _lock_path(folder).unlink(missing_ok=True)


def _lock_path(folder: Path) -> Path:
    return folder.with_suffix(".lock")
