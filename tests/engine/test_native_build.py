"""The library's build and its loading: what is missing, stale or broken is named, with the remedy."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.engine.native import build, library
from serve.engine.native.weights import read_tensors
from serve.engine.native_runner import NativeRunner
from serve.engine.runner import RunnerOptions
from tests.engine.native_models import model, native, require_library, save, tensors


def test_without_a_compiler_the_build_says_what_to_install(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler-here")
    monkeypatch.setattr("sys.argv", ["build", "--output", str(tmp_path)])
    assert build.main() == 1
    assert "CXX is 'no-such-compiler-here', which is not a command here; install one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_leaves_the_old_library(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / build.LIBRARY_NAME).write_bytes(b"old")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match="the compiler failed: false -O3"):
        build.build(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [build.LIBRARY_NAME]


def test_a_missing_a_broken_and_a_stale_library_are_told_apart(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / build.LIBRARY_NAME
    assert library.why_missing(path) == f"its library is not built: run {build.COMMAND}"
    path.write_bytes(b"not a library")
    assert "its library cannot be loaded" in (library.why_missing(path) or "")
    require_library()
    shutil.copy(build.FOLDER / build.LIBRARY_NAME, tmp_path / "other.so")
    assert library.why_missing(tmp_path / "other.so") is None
    monkeypatch.setattr(library, "source_hash", lambda: "0" * 16)
    assert "built from other sources than these" in (library.why_missing(tmp_path / "other.so") or "")
    with pytest.raises(ValueError, match="runner is 'native': its library was built from other sources"):
        library.load_library(tmp_path / "other.so")


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_weights_are_read_as_they_were_saved_in_one_file_or_many(tmp_path: Path, shards: str) -> None:
    trained = model("grouped", torch.float32)
    trained.save_pretrained(tmp_path, max_shard_size=shards)
    tensors = read_tensors(tmp_path)
    for name, weight in trained.state_dict().items():
        np.testing.assert_array_equal(tensors[name].data.view(np.float32).reshape(tensors[name].shape), weight)


def test_a_cut_or_garbled_weights_file_is_named(tmp_path: Path) -> None:
    path = save("tied", tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    for broken in (b"", whole[:5], whole[:50], whole[:-8], struct.pack("<Q", len(header)) + header + bytes(16)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 40, "head_dim": 12}, "'model.embed_tokens.weight': embedding is 100 x 48, not 100 x 40"),
        ({"num_hidden_layers": 3}, "have no 'model.layers.2"),
        ({"num_key_value_heads": 3}, "num_heads is not a multiple of num_kv_heads"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(change, message: str) -> None:
    require_library()
    config = model("grouped").config.to_dict() | change
    with pytest.raises(ValueError, match=message):
        NativeRunner(config, tensors("grouped"), RunnerOptions(max_slots=2, num_threads=1))


def test_an_unknown_instruction_set_and_an_unknown_dtype_are_refused() -> None:
    require_library()
    with pytest.raises(ValueError, match="kernels is 'sse9'"):
        native("tied", kernels="sse9")
    with pytest.raises(ValueError, match="dtype is 'float16': the native runner has auto, float32, bfloat16, int8"):
        native("tied", dtype="float16")
