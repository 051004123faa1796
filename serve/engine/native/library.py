"""The native library, loaded and typed. Every C struct of *.h that crosses the border has its twin here."""

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from serve.engine.native.build import COMMAND, FOLDER, LIBRARY_NAME, source_hash

FORMATS = ["float32", "bfloat16", "int8"]
STORED_TYPES = {"F32": 0, "BF16": 1, "F16": 2}
PARTS = ["embedding", "head", "final_norm", "attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"]


class Config(ctypes.Structure):
    """native::Config."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in ["vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"]
        ),
        *((name, c_int32) for name in ["intermediate_size", "max_model_len", "max_slots", "num_blocks", "num_threads"]),
        ("format", c_int32),
        ("norm_eps", c_float),
        ("padding", c_int32),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("kernels", c_char_p),
    ]


class SlotParams(ctypes.Structure):
    """native::SamplingParams."""

    _fields_ = [
        ("seed", c_uint64),
        ("top_p", c_double),
        ("typical_p", c_double),
        *((name, c_float) for name in ["temperature", "min_p"]),
        *((name, c_float) for name in ["repetition_penalty", "frequency_penalty", "presence_penalty"]),
        *((name, c_int32) for name in ["top_k", "ngram_size", "num_logprobs", "num_biases", "padding"]),
        ("bias_ids", c_void_p),
        ("bias_values", c_void_p),
    ]


class Batch(ctypes.Structure):
    """native::Batch."""

    _fields_ = [
        *((name, c_int64) for name in ["num_rows", "num_token_ids", "num_table_slots", "table_width", "num_samples"]),
        *(
            (name, c_void_p)
            for name in ["slots", "num_tokens", "start_positions", "token_ids", "sample", "block_tables"]
        ),
    ]


class Results(ctypes.Structure):
    """native::Results."""

    _fields_ = [
        *((name, c_void_p) for name in ["token_ids", "logprobs", "entropies", "top_ids", "top_logprobs"]),
        ("top_width", c_int64),
        ("logits", c_void_p),
        ("sample_seconds", c_double),
    ]


def why_missing(path: Path = FOLDER / LIBRARY_NAME) -> str | None:
    """Why the library cannot be used, in a sentence, or None."""
    if not path.is_file():
        return f"its library is not built: run {COMMAND}"
    try:
        library = open_library(path, path.stat().st_mtime_ns)
    except (OSError, AttributeError) as error:
        return f"its library cannot be loaded ({error}): run {COMMAND}"
    if library.native_source_hash().decode() != source_hash():
        return f"its library was built from other sources than these: run {COMMAND}"
    return None


def load_library(path: Path = FOLDER / LIBRARY_NAME) -> ctypes.CDLL:
    """The library. ValueError with the remedy when it is missing or stale."""
    reason = why_missing(path)
    if reason is not None:
        raise ValueError(f"runner is 'native': {reason}")
    return open_library(path, path.stat().st_mtime_ns)


@cache
def open_library(path: Path, changed_ns: int) -> ctypes.CDLL:
    """Load and type it, once for each version of the file. Calls release the interpreter's lock."""
    library = ctypes.CDLL(str(path))
    for name in ("native_source_hash", "native_last_error", "native_kernels"):
        getattr(library, name).restype = c_char_p
    library.native_kernels.argtypes = [c_char_p]
    library.native_create.argtypes = [POINTER(Config), POINTER(c_void_p)]
    library.native_destroy.argtypes, library.native_destroy.restype = [c_void_p], None
    library.native_set_part.argtypes = [c_void_p, c_int32, c_int64, c_void_p, c_int32, c_int64, c_int64]
    library.native_check_complete.argtypes = [c_void_p]
    library.native_add_request.argtypes = [c_void_p, c_int64, POINTER(SlotParams), c_void_p, c_int64, c_void_p, c_int64]
    library.native_remove_request.argtypes = [c_void_p, c_int64]
    library.native_step.argtypes = [c_void_p, POINTER(Batch), POINTER(Results)]
    for name in ("create", "set_part", "check_complete", "add_request", "remove_request", "step"):
        getattr(library, f"native_{name}").restype = c_int
    return library


def check(library: ctypes.CDLL, code: int) -> None:
    """Raise what a return code stands for, with the library's message."""
    if code == 0:
        return
    message = library.native_last_error().decode()
    raise {1: ValueError, 2: MemoryError}.get(code, RuntimeError)(message)
