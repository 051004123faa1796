"""safetensors files, mapped into memory: names, stored types, shapes and bytes. No torch, no copy."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine.model_files import read_json

_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. dtype: as safetensors names it ("F32", "BF16", "F16", ...). data: its bytes, (n,)."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


def files_of(model_dir: Path) -> list[Path]:
    """The safetensors files of a model folder: those of its index, else model.safetensors. Empty when there is none."""
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any(Path(str(name)).name != name for name in names):
            raise ValueError(f"{index} names a file outside its folder: restore the file")
        return [model_dir / name for name in names]
    whole = model_dir / "model.safetensors"
    return [whole] if whole.is_file() else []


def read_tensors(model_dir: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name. ValueError for a broken file."""
    tensors: dict[str, StoredTensor] = {}
    for path in files_of(model_dir):
        tensors.update(_read_file(path))
    return tensors


def _read_file(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        return {name: _tensor(entry, data) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, struct.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): restore it") from error


def _tensor(entry: dict[str, Any], data: NDArray[np.uint8]) -> StoredTensor:
    dtype, sizes = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    bits = int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)
    if not 0 <= start <= end <= len(data) or (end - start) * 8 != math.prod(sizes) * bits:
        raise ValueError("a tensor lies outside the file")
    return StoredTensor(dtype, sizes, data[start:end])
