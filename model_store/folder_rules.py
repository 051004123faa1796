"""Which files a checkpoint folder may hold, decided by name, kind and size alone. Opens no file."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_store.manifest import MANIFEST_FILE

DEFAULT_MAX_BYTES = 64 * 2**30
MAX_FILES = 1000

# What loads by running code found in the file: one of these is enough to take over the machine that loads it.
PICKLES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".pdparams"}
)
OTHER_WEIGHTS = frozenset(
    {".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".pb", ".tflite", ".mlmodel", ".gguf", ".ggml"}
)
CODE = frozenset(
    {".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe", ".ipynb", ".js", ".jar", ".whl"}
)
ALLOWED = frozenset(
    {".safetensors", ".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".csv", ".png", ".jpg", ".jpeg", ".svg"}
)
ALLOWED_WITHOUT_SUFFIX = frozenset({"LICENSE", "LICENCE", "NOTICE", "COPYING", "AUTHORS"})

_CONVERT = (
    "load it where you trust it and save it again with model.save_pretrained(FOLDER) and "
    "tokenizer.save_pretrained(FOLDER), which write safetensors, then give that folder"
)


@dataclass(frozen=True, slots=True)
class FolderListing:
    """files: relative paths to keep, sorted. left_out: what is not part of a checkpoint and stays behind."""

    files: tuple[str, ...]
    left_out: tuple[str, ...]


def list_checkpoint_files(folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> FolderListing:
    """Every file to keep. ValueError, naming the file and the remedy, for anything a checkpoint must not hold.

    Hidden files and folders (.git, .gitattributes, .cache) and a store's manifest.json are left out, not refused.
    """
    if not folder.is_dir():
        raise ValueError(f"source {str(folder)!r} is not a folder; give a folder saved with save_pretrained")
    files: list[str] = []
    left_out: list[str] = []
    num_bytes = 0
    for relative, entry in _walk(folder, ""):
        if entry.name.startswith(".") or relative == MANIFEST_FILE:
            left_out.append(relative)
            continue
        status = entry.stat(follow_symlinks=False)
        _refuse_by_kind(relative, status.st_mode)
        refuse_by_name(relative)
        files.append(relative)
        num_bytes += status.st_size
        if len(files) > MAX_FILES:
            raise ValueError(
                f"source {str(folder)!r} holds more than {MAX_FILES} files; give a folder with one checkpoint"
            )
    refuse_by_size(folder, num_bytes, max_bytes)
    return FolderListing(tuple(sorted(files)), tuple(sorted(left_out)))


def refuse_by_size(folder: Path, num_bytes: int, max_bytes: int) -> None:
    """ValueError if there is more than was allowed."""
    if num_bytes > max_bytes:
        raise ValueError(
            f"source {str(folder)!r} holds {num_bytes} bytes, more than max_bytes={max_bytes}; "
            "raise the limit (--max-bytes) if this is the checkpoint you mean"
        )


def refuse_by_name(relative: str) -> None:
    """ValueError if a file of this name has no place in a checkpoint."""
    name = os.path.basename(relative)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in PICKLES:
        raise ValueError(
            f"{relative!r} is refused: {suffix} files may hold a pickle, which runs code when loaded. Remedy: if it "
            f"holds weights, {_CONVERT}; if it is trainer state (optimizer.pt, training_args.bin), remove it"
        )
    if suffix in OTHER_WEIGHTS:
        raise ValueError(
            f"{relative!r} is refused: only safetensors weights are kept. Remedy: {_CONVERT}, or remove it"
        )
    if suffix in CODE:
        raise ValueError(
            f"{relative!r} is refused: a checkpoint that brings code would run it where it is served. Remedy: use a "
            "model whose architecture transformers itself has, and remove the code"
        )
    if suffix not in ALLOWED and name not in ALLOWED_WITHOUT_SUFFIX:
        raise ValueError(f"{relative!r} is refused: it is no kind of file that a checkpoint needs. Remedy: remove it")


def _refuse_by_kind(relative: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise ValueError(
            f"{relative!r} is refused: it is a symbolic link, and what it points to can change. Remedy: copy the "
            "folder with its links resolved (cp -rL SOURCE COPY) and give the copy"
        )
    if not stat.S_ISREG(mode):
        raise ValueError(f"{relative!r} is refused: it is not a regular file. Remedy: remove it")


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All that is not a folder, and hidden folders as one entry each; symbolic links are not followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            relative = prefix + entry.name
            if not relative.isprintable():
                raise ValueError(f"{relative!r} is refused: its name cannot be printed. Remedy: rename or remove it")
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _walk(Path(entry.path), relative + "/")
            else:
                yield relative, entry
