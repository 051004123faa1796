"""The seam between the engine and whatever runs the model. Plain numpy; no torch, no clocks, no HTTP.

The engine decides what is computed; a runner computes it and draws the tokens. A runner keeps the KV pool and, per
slot, the sampling state (parameters, seed, penalty counts). It never sees queues, deadlines or request ids.

Life of a slot
    add_request(slot, ...)        when a request is admitted, and again (maybe to another slot) after a preemption,
                                  then with the tokens it had generated before in output_ids
    execute(batch) ...            any number of rows for that slot, at most one a batch
    remove_request(slot)          when it ends or is preempted; the slot may be reused at once
The engine tells a runner nothing about blocks being freed or shared: block tables say it all.

A step
    Row r computes num_tokens[r] tokens of slot slots[r], at positions start_positions[r] and up. Their ids are the next
    num_tokens[r] entries of token_ids (rows are laid one after another). For each of these positions p the runner
    writes keys and values to block block_tables[slot, p // block_size], offset p % block_size, and attends to the
    positions 0..p of the slot's table: all of those before start_positions[r] were written by an earlier step, maybe by
    another slot (prefix caching). Rows may be decodes (1 token), whole prompts or chunks of prompts, in any mix.
    Rows never read what another row of the same batch writes.
    Where sample[r] is 1 the runner draws the next token from the logits of the row's last token, by the rule in
    sampling.py's docstring, and appends it to the slot's own record: its counts, and num_generated, the index of the
    next draw. The engine feeds that token back in a later row.

A native runner lives in serve/engine/native_runner.py and offers the loader two functions:
    why_unsupported(model_dir: Path) -> str | None    a sentence ("its library is not built: run ...",
                                                      "architecture X is not one of ..."), or None when it can serve it
    load_native_runner(model_dir: Path, options: RunnerOptions) -> Runner
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serve.engine.request import SamplingParams

BLOCK_SIZE = 16
"""Tokens in a block of the KV pool."""

BROKEN_LOGITS = "the model's logits are not all numbers: its weights are broken"
"""What every runner's execute() says, in a RuntimeError, of a distribution that no token can be drawn from."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """What a runner is told when it is made.

    max_slots: the most requests that run at once; slots are 0..max_slots-1.
    num_blocks: blocks of BLOCK_SIZE tokens in the KV pool. None: room for max_slots requests of
        min(max_model_len, 1024) tokens, and never less than one request of max_model_len.
    max_model_len: the longest prompt plus output. None: what the model's config says.
    dtype: "float32", "bfloat16", "int8" (native only), "float16" or "float64" (torch only), or "auto": the runner's own
        choice, which it states in Runner.dtype.
    device: "cpu" or "cuda" (torch only).
    num_threads: threads for the computation. None leaves the library's default.
    """

    max_slots: int = 32
    num_blocks: int | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    device: str = "cpu"
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_slots", "num_blocks", "max_model_len", "num_threads"):
            value = getattr(self, name)
            if value is None and name != "max_slots":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")


def default_num_blocks(max_slots: int, max_model_len: int) -> int:
    """The pool's size when nobody gave one: see RunnerOptions.num_blocks."""
    per_request = -(-min(max_model_len, 1024) // BLOCK_SIZE)
    return max(max_slots * per_request, -(-max_model_len // BLOCK_SIZE))


@dataclass(slots=True)
class StepBatch:
    """What one step computes. R rows, T tokens, S slots, M blocks in the longest allowed request.

    All arrays are C-contiguous and belong to the engine: read them during execute() only, never write, never keep.
    slots, num_tokens, start_positions: int32 (R,). token_ids: int32 (T,), T = sum of num_tokens. sample: uint8 (R,).
    block_tables: int32 (S, M), indexed by SLOT, not by row. It is one array for the engine's whole life, changed in
        place only where a request gains a block, so a native runner may take its address once. Entries past a
        request's blocks are stale: never read them.
    num_samples: how many entries of sample are 1.
    """

    slots: NDArray[np.int32]
    num_tokens: NDArray[np.int32]
    start_positions: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    sample: NDArray[np.uint8]
    block_tables: NDArray[np.int32]
    num_samples: int


@dataclass(slots=True)
class StepOutput:
    """What came of it: N = num_samples entries, in the order of the rows with sample = 1.

    token_ids: int32 (N,). logprobs: float32 (N,), nats, of the chosen token in the model's own distribution
    (temperature 1, before penalties and truncation). entropies: float32 (N,), nats, of that same distribution.
    top_logprobs: None, or N entries: for a row that asked (params.num_logprobs >= 1) its likeliest
        (token id, log-probability), best first, of that same distribution; an empty list for the others.
    sample_seconds: the part of the step spent on drawing tokens, for the step-time breakdown; 0.0 if not measured.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    top_logprobs: list[list[tuple[int, float]]] | None = None
    sample_seconds: float = 0.0


@runtime_checkable
class Runner(Protocol):
    """A model that is ready to compute steps. Used by one thread.

    name: "torch" or "native". dtype: what weights and arithmetic are in, for people ("float32", "bf16 weights").
    eos_token_ids: from generation_config.json, else config.json; may be empty.
    vocab_size: the number of logits. max_model_len: prompt plus output. block_size: BLOCK_SIZE.
    num_blocks: ids 0..num_blocks-1 are the engine's to hand out (padding blocks of a runner come on top).
    """

    name: str
    dtype: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_slots: int
    eos_token_ids: tuple[int, ...]

    def add_request(
        self, slot: int, prompt_ids: Sequence[int], params: SamplingParams, seed: int, output_ids: Sequence[int] = ()
    ) -> None:
        """Set a free slot's sampling state. seed replaces params.seed, which may be None (the engine drew one).

        output_ids: tokens already generated (a request that was preempted). Penalties see them as generated and the
        next draw has index len(output_ids). Raises ValueError for parameters the runner cannot honour: the engine
        then fails that request only.
        """
        ...

    def remove_request(self, slot: int) -> None:
        """Forget a slot's sampling state."""
        ...

    def execute(self, batch: StepBatch) -> StepOutput:
        """Compute one step. An exception leaves the runner usable for slots added afterwards."""
        ...
