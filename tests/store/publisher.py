"""A process that publishes, started by tests: `python -m tests.store.publisher ROOT SOURCE PAUSE`.

PAUSE says where to stop and wait for a line on standard input: at "copy:N" half of the Nth file is written, at "clock"
all files are there and no manifest, at "rename" only the rename is missing, at "rounds:N" nothing has begun and N
versions follow, each becoming `production` at once.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from model_store import checkpoint
from model_store.manifest import FileRecord
from model_store.staging import copy_and_hash
from model_store.store import ModelStore

# Which architectures there are is not what these processes are about, and asking costs seconds.
checkpoint.causal_architectures = lambda: {"llama": ("LlamaForCausalLM",)}  # type: ignore[assignment]


def pause() -> None:
    print("paused", flush=True)
    sys.stdin.readline()


def main(root: str, source: str, where: str) -> None:
    kind, _, number = where.partition(":")
    copied = 0

    def copy(origin: Path, destination: Path) -> FileRecord:
        nonlocal copied
        copied += 1
        if kind == "copy" and copied == int(number):
            data = origin.read_bytes()
            destination.write_bytes(data[: len(data) // 2])
            pause()
            destination.unlink()
        return copy_and_hash(origin, destination)

    def clock() -> datetime:
        if kind == "clock":
            pause()
        return datetime.now(UTC)

    def rename(origin: Path, destination: Path) -> None:
        pause()
        os.replace(origin, destination)

    if kind == "rename":
        os.rename = rename  # type: ignore[assignment]
    store = ModelStore(root, clock=clock, copy_file=copy)
    if kind == "rounds":
        pause()
    for _ in range(int(number) if kind == "rounds" else 1):
        published = store.publish(source, "m")
        store.set_alias("m", "production", published.version)
        print(published.version, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
