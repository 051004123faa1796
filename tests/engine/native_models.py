"""Tiny Llama models as the native runner reads them, and the library they need."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from serve.engine.native import library
from serve.engine.native.build import BuildError, build, find_compiler
from serve.engine.native.weights import StoredTensor
from serve.engine.native_runner import NativeRunner
from serve.engine.runner import RunnerOptions, StepBatch

_SIZES = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "tied": {**_SIZES, "tie_word_embeddings": True},
    "grouped": {**_SIZES, "rope_theta": 500.0},
    "every_head_its_own": {**_SIZES, "num_key_value_heads": 4, "head_dim": 32},
    "one_key_head_for_twelve": {**_SIZES, "num_attention_heads": 12, "num_key_value_heads": 1, "head_dim": 6},
}

KERNELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


def require_library() -> None:
    """Build the library where it is missing or stale; skip where there is no compiler."""
    if library.why_missing() is None:
        return
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    build()


def available_kernels() -> list[str]:
    """The instruction sets of this processor that the library has."""
    opened = library.load_library()
    return [name for name in KERNELS if opened.native_kernels(name.encode()) is not None]


@cache
def model(kind: str, dtype: torch.dtype = torch.float64) -> transformers.LlamaForCausalLM:
    """A random model, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIGS[kind]))
        for name, weight in made.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    return made.to(dtype).eval()


def tensors(kind: str) -> dict[str, StoredTensor]:
    """Its weights as a float32 file would hold them."""
    state = model(kind, torch.float32).state_dict()
    return {
        n: StoredTensor("F32", tuple(t.shape), t.contiguous().view(-1).view(torch.uint8).numpy())
        for n, t in state.items()
    }


def native(
    kind: str,
    kernels: str | None = None,
    dtype: str = "float32",
    threads: int = 1,
    broken_id: int | None = None,
    broken_part: str = "lm_head.weight",
    broken_by: float = np.nan,
    **options,
) -> NativeRunner:
    """A native runner of it. broken_id: an id whose row of broken_part holds one number that is not finite."""
    options = RunnerOptions(**{"max_slots": 5, "num_blocks": 60, **options}, dtype=dtype, num_threads=threads)
    config = model(kind, torch.float32).config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    weights = tensors(kind)
    if broken_id is not None:
        whole = weights[broken_part]
        data = whole.data.copy()
        data.view(np.float32).reshape(whole.shape)[broken_id, 20] = broken_by
        weights[broken_part] = StoredTensor(whole.dtype, whole.shape, data)
    return NativeRunner(config, weights, options, eos_token_ids=(2,), kernels=kernels)


def save(kind: str, folder: Path) -> Path:
    """Its Hugging Face folder."""
    model(kind, torch.float32).save_pretrained(folder)
    return folder


def step(runner, rows: list[tuple[int, int, list[int]]], sample: list[int] | None = None) -> StepBatch:
    """A batch of (slot, start position, token ids). Slot s has the blocks s * M .. (s + 1) * M - 1, M = 12."""
    width = -(-runner.max_model_len // runner.block_size)
    tables = np.zeros((runner.max_slots, width), np.int32)
    for slot in range(runner.max_slots):
        tables[slot, :12] = np.arange(slot * 12, slot * 12 + 12)
    wanted = np.array(sample if sample is not None else [1] * len(rows), np.uint8)
    return StepBatch(
        np.array([slot for slot, _, _ in rows], np.int32),
        np.array([len(ids) for _, _, ids in rows], np.int32),
        np.array([start for _, start, _ in rows], np.int32),
        np.array([t for _, _, ids in rows for t in ids], np.int32),
        wanted,
        tables,
        int(wanted.sum()),
    )
