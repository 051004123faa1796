"""Tiny models, a runner without a model, and ways to run an engine to the end."""

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import transformers

from serve.engine.engine import Engine
from serve.engine.request import EngineRequest, SamplingParams, TokenDelta
from serve.engine.runner import BLOCK_SIZE, StepBatch, StepOutput

VOCAB = 97
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large random weights: a tiny model with transformers' usual ones would say nearly the same after every text.
    "initializer_range": 0.35,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _gpt2() -> transformers.PreTrainedConfig:
    return transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.35, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip


CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "llama_all_heads": lambda: transformers.LlamaConfig(**{**_SIZES, "num_key_value_heads": 4}),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES),
    "qwen2_sliding_above": lambda: transformers.Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=16),
    "mistral_sliding": lambda: transformers.MistralConfig(**_SIZES, sliding_window=9),
    "gpt2": _gpt2,
}


@cache
def tiny_model(kind: str, dtype: torch.dtype = torch.float64) -> transformers.PreTrainedModel:
    """A random model, the same each time. float64, so that no rounding decides between two tokens."""
    config = CONFIGS[kind]()
    with torch.random.fork_rng():
        torch.manual_seed(20 + len(kind))
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def fresh_model(kind: str, dtype: torch.dtype = torch.float64) -> transformers.PreTrainedModel:
    """tiny_model again, for a runner to change."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(dtype).eval()
    model.load_state_dict(tiny_model(kind, dtype).state_dict())
    return model


def next_token(context: Sequence[int], seed: int) -> int:
    """The text that ContextRunner writes: any change of the context or the seed changes what follows."""
    digest = hashlib.blake2b(np.array([seed, *context], dtype=np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def text_of_context_runner(prompt: Sequence[int], seed: int, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
    """What ContextRunner must generate for a request, computed without any cache."""
    context = list(prompt)
    while len(context) < len(prompt) + max_new_tokens:
        context.append(next_token(context, seed))
        if context[-1] in stop_ids:
            break
    return context[len(prompt) :]


class ContextRunner:
    """A Runner without a model: its "keys" are the token ids, read back through the block table.

    So a block that is shared, freed or overwritten wrongly changes the text. Fast enough for property tests.
    """

    name, dtype, vocab_size, block_size, eos_token_ids = "context", "none", VOCAB, BLOCK_SIZE, (2,)

    def __init__(self, max_slots: int = 4, num_blocks: int = 8, max_model_len: int = 256) -> None:
        self.max_slots, self.num_blocks, self.max_model_len = max_slots, num_blocks, max_model_len
        self.pool = np.full((num_blocks, BLOCK_SIZE), -1)
        self.seeds: dict[int, int] = {}
        self.steps: list[list[tuple[int, int, int]]] = []  # (slot, start, count) of each row of each step

    def add_request(
        self, slot: int, prompt_ids: Sequence[int], params: SamplingParams, seed: int, output_ids: Sequence[int] = ()
    ) -> None:
        assert slot not in self.seeds
        if params.top_k == 666:
            raise ValueError("top_k is 666: not here")
        self.seeds[slot] = seed

    def remove_request(self, slot: int) -> None:
        del self.seeds[slot]

    def execute(self, batch: StepBatch) -> StepOutput:
        assert batch.block_tables.shape == (self.max_slots, -(-self.max_model_len // BLOCK_SIZE))
        assert len(batch.token_ids) == batch.num_tokens.sum()
        assert len(set(batch.slots.tolist())) == len(batch.slots)
        self.steps.append(list(zip(*(a.tolist() for a in (batch.slots, batch.start_positions, batch.num_tokens)))))  # noqa: B905
        written, at = set(), 0
        contexts = []
        for slot, start, count in self.steps[-1]:
            table = batch.block_tables[slot]
            for position in range(start, start + count):
                place = (int(table[position // BLOCK_SIZE]), position % BLOCK_SIZE)
                assert place not in written, "two rows write one place"
                written.add(place)
                self.pool[place] = batch.token_ids[at]
                at += 1
            contexts.append((slot, table, start + count))
        tokens = []
        for (slot, table, length), sample in zip(contexts, batch.sample, strict=True):
            if sample:
                positions = np.arange(length)
                context = self.pool[table[positions // BLOCK_SIZE], positions % BLOCK_SIZE]
                assert (context >= 0).all()
                tokens.append(next_token(context.tolist(), self.seeds[slot]))
        assert len(tokens) == batch.num_samples
        zeros = np.zeros(len(tokens), dtype=np.float32)
        return StepOutput(np.array(tokens, dtype=np.int32), zeros, zeros)


class Collected:
    """The deltas of every request, joined."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.entropies: dict[int, list[float]] = {}
        self.reasons: dict[int, str] = {}

    def take(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            assert delta.request_id not in self.reasons, "a delta after the last"
            assert len(delta.token_ids) == len(delta.logprobs) == len(delta.entropies)
            self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
            self.logprobs.setdefault(delta.request_id, []).extend(delta.logprobs)
            self.entropies.setdefault(delta.request_id, []).extend(delta.entropies)
            if delta.finish_reason is not None:
                self.reasons[delta.request_id] = delta.finish_reason


def run_to_end(engine: Engine, requests: Sequence[EngineRequest] = (), max_steps: int = 2000) -> Collected:
    """Add requests, step until nothing is left, audit after each step."""
    collected = Collected()
    for request in requests:
        engine.add(request)
    for _ in range(max_steps):
        if not engine.has_work:
            return collected
        collected.take(engine.step())
        engine.check_integrity()
    raise AssertionError(f"not done after {max_steps} steps")
