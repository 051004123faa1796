"""The sampling state of every slot, and one call that draws a token for each row of a step. Torch and numpy.

The rule itself is in sampling.py. Here: parameters by slot, penalties by counts that grow with each token instead of
rescanning the text, and the numbers reported about the model's own distribution.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.request import SamplingParams
from serve.engine.runner import BROKEN_LOGITS, StepOutput
from serve.engine.sampling import Truncation, draw

# What a row asks for beyond a plain draw, as bits, so that a step learns what it can skip from one reduction.
_BIAS, _REPETITION, _NGRAM, _COUNTS, _GREEDY, _TOP_LOGPROBS = 1, 2, 4, 8, 16, 32
_PROCESSED = _BIAS | _REPETITION | _NGRAM | _COUNTS


class NgramRecord:
    """Which tokens followed each (n - 1)-gram of one sequence, kept up to date token by token."""

    def __init__(self, size: int, token_ids: Sequence[int]) -> None:
        self._size = size
        self._recent: list[int] = []
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in token_ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Note a token at the sequence's end."""
        if len(self._recent) == self._size - 1:
            self._followers.setdefault(tuple(self._recent), set()).add(token)
        self._recent.append(token)
        if len(self._recent) >= self._size:
            del self._recent[0]

    def banned(self) -> set[int]:
        """The tokens that would complete an n-gram that is already there."""
        if len(self._recent) < self._size - 1:
            return set()
        return self._followers.get(tuple(self._recent), set())


class SlotSampler:
    """Draws tokens for slots 0..max_slots-1. Shapes: N rows, V vocabulary ids, S slots."""

    def __init__(
        self, max_slots: int, vocab_size: int, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._max_slots, self._vocab_size, self._device = max_slots, vocab_size, device
        self._clock = clock
        self._flags = np.zeros(max_slots, np.int64)
        self._seeds = np.zeros(max_slots, np.uint64)
        self._num_generated = np.zeros(max_slots, np.int64)
        self._temperature = np.ones(max_slots, np.float32)
        self._penalties = np.zeros((max_slots, 3), np.float32)  # repetition, frequency, presence
        self._top_k = np.zeros(max_slots, np.int64)
        self._top_p = np.ones(max_slots, np.float64)
        self._min_p = np.zeros(max_slots, np.float32)
        self._typical_p = np.ones(max_slots, np.float64)
        self._params: list[SamplingParams | None] = [None] * max_slots
        self._bias: list[tuple[Tensor, Tensor] | None] = [None] * max_slots
        self._ngrams: list[NgramRecord | None] = [None] * max_slots
        # Made when the first request with a penalty comes: most services never need S x V numbers.
        self._seen_SV: Tensor | None = None
        self._counts_SV: Tensor | None = None

    def add(
        self, slot: int, prompt_ids: Sequence[int], params: SamplingParams, seed: int, output_ids: Sequence[int]
    ) -> None:
        """As Runner.add_request."""
        flags = _GREEDY if params.temperature == 0 else 0
        flags |= _TOP_LOGPROBS if params.num_logprobs else 0
        self._params[slot] = params
        self._seeds[slot] = seed
        self._num_generated[slot] = len(output_ids)
        self._temperature[slot] = params.temperature or 1.0
        self._top_k[slot], self._top_p[slot] = min(params.top_k, self._vocab_size), params.top_p
        self._min_p[slot], self._typical_p[slot] = params.min_p, params.typical_p
        self._penalties[slot] = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        if params.logit_bias:
            flags |= _BIAS
            ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=self._device)
            amounts = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=self._device)
            self._bias[slot] = (ids, amounts)
        if params.repetition_penalty != 1.0:
            flags |= _REPETITION
            if self._seen_SV is None:
                self._seen_SV = torch.zeros(self._max_slots, self._vocab_size, dtype=torch.bool, device=self._device)
            self._seen_SV[slot] = False
            self._seen_SV[slot, torch.tensor([*prompt_ids, *output_ids], device=self._device)] = True
        if params.no_repeat_ngram_size:
            flags |= _NGRAM
            self._ngrams[slot] = NgramRecord(params.no_repeat_ngram_size, [*prompt_ids, *output_ids])
        if params.frequency_penalty or params.presence_penalty:
            flags |= _COUNTS
            self._count_afresh(slot, output_ids)
        self._flags[slot] = flags

    def remove(self, slot: int) -> None:
        """As Runner.remove_request."""
        self._params[slot] = self._bias[slot] = self._ngrams[slot] = None
        self._flags[slot] = 0

    def sample(self, logits_NV: Tensor, slots: NDArray[np.int32]) -> StepOutput:
        """Draw one token for each row. logits: as the model gave them, any float dtype. Each slot at most once.

        Raises RuntimeError, and records nothing, where a row has NaN, or infinity for its largest.
        """
        started = self._clock()
        raw_NV = logits_NV.float()
        logp_NV = raw_NV.log_softmax(1)
        # The floor keeps 0 * -inf out, for models that mask ids; below it, p * log p is 0 in float32 anyway.
        entropies = -(logp_NV.exp() * logp_NV.clamp(min=-1e4)).sum(1).cpu().numpy()
        if not np.isfinite(entropies).all():
            raise RuntimeError(BROKEN_LOGITS)
        flags = self._flags[slots]
        asked = int(np.bitwise_or.reduce(flags)) if len(slots) else 0
        z_NV = self._process(raw_NV, slots, flags) if asked & _PROCESSED else raw_NV
        tokens = self._choose(z_NV, slots, flags, asked)
        logprobs = logp_NV.gather(1, tokens[:, None])[:, 0].cpu().numpy()
        chosen = tokens.to(torch.int32).cpu().numpy()
        self._record(slots, flags, chosen, asked)
        top = self._top_logprobs(logp_NV, slots, flags) if asked & _TOP_LOGPROBS else None
        return StepOutput(chosen, logprobs, entropies, top, self._clock() - started)

    # --- choosing ------------------------------------------------------------------------------------------------

    def _choose(self, z_NV: Tensor, slots: NDArray[np.int32], flags: NDArray[np.int64], asked: int) -> Tensor:
        if not asked & _GREEDY:
            return self._draw(z_NV, slots)
        tokens = z_NV.argmax(1)
        drawn = np.flatnonzero((flags & _GREEDY) == 0)
        if drawn.size:
            rows = torch.from_numpy(drawn).to(z_NV.device)
            tokens[rows] = self._draw(z_NV[rows], slots[drawn])
        return tokens

    def _draw(self, z_NV: Tensor, slots: NDArray[np.int32]) -> Tensor:
        temperature = self._temperature[slots]
        if (temperature != 1.0).any():
            z_NV = z_NV / torch.from_numpy(temperature).to(z_NV.device)[:, None]
        cut = Truncation(self._top_k[slots], self._top_p[slots], self._min_p[slots], self._typical_p[slots])
        return draw(z_NV, cut, self._seeds[slots], self._num_generated[slots])

    # --- processors ----------------------------------------------------------------------------------------------

    def _process(self, raw_NV: Tensor, slots: NDArray[np.int32], flags: NDArray[np.int64]) -> Tensor:
        z_NV = raw_NV.clone()
        for row in np.flatnonzero(flags & _BIAS):
            bias = self._bias[slots[row]]
            assert bias is not None
            z_NV[row].index_add_(0, *bias)
        self._repetition(z_NV, slots, np.flatnonzero(flags & _REPETITION))
        for row in np.flatnonzero(flags & _NGRAM):
            ngrams = self._ngrams[slots[row]]
            assert ngrams is not None
            banned = ngrams.banned()
            if banned and len(banned) < self._vocab_size:
                z_NV[row, torch.tensor(list(banned), device=self._device)] = -torch.inf
        self._frequency(z_NV, slots, np.flatnonzero(flags & _COUNTS))
        return z_NV

    def _columns(self, slots: NDArray[np.int32], column: int) -> Tensor:
        return torch.from_numpy(self._penalties[slots, column]).to(self._device)[:, None]

    def _repetition(self, z_NV: Tensor, slots: NDArray[np.int32], index: NDArray[np.int64]) -> None:
        if not index.size:
            return
        assert self._seen_SV is not None
        rows, ours = torch.from_numpy(index).to(self._device), slots[index]
        penalty, z = self._columns(ours, 0), z_NV[rows]
        seen = self._seen_SV[torch.from_numpy(ours.astype(np.int64)).to(self._device)]
        z_NV[rows] = torch.where(seen, torch.where(z < 0, z * penalty, z / penalty), z)

    def _frequency(self, z_NV: Tensor, slots: NDArray[np.int32], index: NDArray[np.int64]) -> None:
        if not index.size:
            return
        assert self._counts_SV is not None
        rows, ours = torch.from_numpy(index).to(self._device), slots[index]
        counts = self._counts_SV[torch.from_numpy(ours.astype(np.int64)).to(self._device)]
        penalty = self._columns(ours, 1) * counts + self._columns(ours, 2) * (counts > 0)
        z_NV[rows] = z_NV[rows] - penalty

    # --- records -------------------------------------------------------------------------------------------------

    def _count_afresh(self, slot: int, output_ids: Sequence[int]) -> None:
        if self._counts_SV is None:
            self._counts_SV = torch.zeros(self._max_slots, self._vocab_size, device=self._device)
        self._counts_SV[slot] = 0
        if output_ids:
            ids = torch.tensor(list(output_ids), dtype=torch.int64, device=self._device)
            self._counts_SV[slot].index_add_(0, ids, torch.ones(len(ids), device=self._device))

    def _record(
        self, slots: NDArray[np.int32], flags: NDArray[np.int64], chosen: NDArray[np.int32], asked: int
    ) -> None:
        self._num_generated[slots] += 1
        if not asked & _PROCESSED:
            return
        for flag, table in ((_REPETITION, self._seen_SV), (_COUNTS, self._counts_SV)):
            index = np.flatnonzero(flags & flag)
            if index.size and table is not None:
                at = (torch.from_numpy(slots[index].astype(np.int64)), torch.from_numpy(chosen[index].astype(np.int64)))
                table[at] = True if flag == _REPETITION else table[at] + 1
        for row in np.flatnonzero(flags & _NGRAM):
            ngrams = self._ngrams[slots[row]]
            assert ngrams is not None
            ngrams.append(int(chosen[row]))

    def _top_logprobs(
        self, logp_NV: Tensor, slots: NDArray[np.int32], flags: NDArray[np.int64]
    ) -> list[list[tuple[int, float]]]:
        top: list[list[tuple[int, float]]] = [[] for _ in slots]
        for row in np.flatnonzero(flags & _TOP_LOGPROBS):
            params = self._params[slots[row]]
            assert params is not None
            assert params.num_logprobs is not None
            best = logp_NV[row].topk(min(params.num_logprobs, self._vocab_size))
            top[row] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return top
