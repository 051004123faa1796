"""Attention over a pool of key and value blocks, as an attention function that transformers' models call. Torch.

Shapes: T packed tokens of a step, R decode rows, H query heads, K key-value heads, D head size,
C context length, B blocks of the pool, of S tokens each.
"""

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve.engine.runner import StepBatch

ATTENTION_NAME = "phiserve_paged"


class KVPool:
    """Keys and values of every layer: one (B, S, K, D) tensor each, made when the layer first has some.

    So head counts and sizes are the model's own, layer by layer, whatever its config calls them.
    """

    def __init__(self, num_blocks: int, block_size: int, device: torch.device) -> None:
        self.num_blocks, self.block_size, self.device = num_blocks, block_size, device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """The pools of a layer, made like these keys and values if there are none yet."""
        if index not in self._layers:
            self._layers[index] = self._like(key_KTD), self._like(value_KTD)
        return self._layers[index]

    def _like(self, x_KTD: Tensor) -> Tensor:
        num_heads, _, head_size = x_KTD.shape
        # Zeros, since masked places are multiplied by zero and must not hold a NaN.
        return x_KTD.new_zeros(self.num_blocks, self.block_size, num_heads, head_size)


class _Rows:
    """Rows of a step whose queries attend to contexts of their own: all decodes together, or one chunk alone."""

    def __init__(
        self, first_tokens: NDArray[np.int64], num_queries: int, starts: NDArray[np.int32], blocks: NDArray[np.int32]
    ) -> None:
        """blocks: (R, blocks of the longest of these contexts)."""
        self.num_queries = num_queries
        self.first, self.last = int(first_tokens[0]), int(first_tokens[-1]) + num_queries
        # Rows that follow one another in the packed step, as decodes do, are a slice of it; others are picked.
        self.picked = None
        if self.last - self.first != len(first_tokens) * num_queries:
            self.picked = torch.from_numpy(first_tokens)
        self.starts_R = torch.from_numpy(starts.astype(np.int64))
        self.blocks = torch.from_numpy(blocks.astype(np.int64).ravel())
        self.num_places = int(starts.max()) + num_queries
        self.whole = len(first_tokens) == 1 and num_queries == 1
        self._masks: dict[int | None, Tensor | None] = {}

    def to(self, device: torch.device) -> "_Rows":
        """Move what the forward reads to the model's device."""
        self.starts_R, self.blocks = self.starts_R.to(device), self.blocks.to(device)
        self.picked = None if self.picked is None else self.picked.to(device)
        return self

    def mask(self, window: int | None) -> Tensor | None:
        """True where a query may look: (R, 1, queries, C). None when it may look everywhere. Made once per window."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        if self.whole and (window is None or self.num_places <= window):
            return None
        device = self.starts_R.device
        query_RQ1 = (self.starts_R[:, None] + torch.arange(self.num_queries, device=device))[:, :, None]
        key_C = torch.arange(self.num_places, device=device)
        seen = key_C <= query_RQ1
        if window is not None:
            seen &= key_C > query_RQ1 - window
        return seen[:, None]

    def context(self, pool_BSKD: Tensor) -> Tensor:
        """What these rows attend to: (R, K, C, D). Whole blocks are copied, which is faster than token by token."""
        num_rows = self.starts_R.shape[0]
        found = pool_BSKD.index_select(0, self.blocks).reshape(num_rows, -1, *pool_BSKD.shape[2:])
        return found[:, : self.num_places].transpose(1, 2)

    def select(self, query_HTD: Tensor) -> Tensor:
        """These rows' queries: (R, H, queries, D)."""
        if self.picked is not None:
            return query_HTD[:, self.picked].transpose(0, 1)[:, :, None]
        queries = query_HTD[:, self.first : self.last]
        return queries.reshape(queries.shape[0], -1, self.num_queries, queries.shape[2]).transpose(0, 1)

    def place(self, output_THD: Tensor, result_RHQD: Tensor) -> None:
        """Put their results where the step's tokens are."""
        result = result_RHQD.transpose(1, 2).flatten(0, 1)
        if self.picked is not None:
            output_THD[self.picked] = result
        else:
            output_THD[self.first : self.last] = result


class PagedStep:
    """Where one step reads and writes. As a context manager it is what the attention function works with."""

    _active: ContextVar["PagedStep | None"] = ContextVar("phiserve_paged_step", default=None)

    def __init__(self, batch: StepBatch, pool: KVPool) -> None:
        self.pool = pool
        block_size = pool.block_size
        counts, starts, tables = batch.num_tokens, batch.start_positions, batch.block_tables
        offsets = np.cumsum(counts) - counts
        positions = np.arange(len(batch.token_ids)) + np.repeat(starts - offsets, counts)
        blocks = tables[np.repeat(batch.slots, counts), positions // block_size].astype(np.int64)
        self.positions_T = torch.from_numpy(positions.astype(np.int64)).to(pool.device)
        self.places_T = torch.from_numpy(blocks * block_size + positions % block_size).to(pool.device)
        decodes = np.flatnonzero(counts == 1)
        groups = [decodes] if decodes.size else []
        groups += list(np.flatnonzero(counts != 1)[:, None])
        self.rows = []
        for group in groups:
            length = int((starts[group] + counts[group]).max())
            blocks = tables[batch.slots[group], : -(-length // block_size)]
            rows = _Rows(offsets[group].astype(np.int64), int(counts[group[0]]), starts[group], blocks)
            self.rows.append(rows.to(pool.device))
        self._token: Token[PagedStep | None] | None = None

    def __enter__(self) -> "PagedStep":
        self._token = self._active.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        self._active.reset(self._token)

    @classmethod
    def current(cls) -> "PagedStep":
        """The step that is being computed."""
        step = cls._active.get()
        assert step is not None, "a model with paged attention was called outside a step"
        return step


def _refuse_extras(module: Any, extras: dict[str, Any]) -> None:
    # What some models hand to attention beyond the usual, and this function would otherwise drop without a word.
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if extras.get(name) is not None:
            raise ValueError(f"architecture {type(module).__name__}: its attention uses {name}; serve another model")


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. query (1, H, T, D); key, value (1, K, T, D). Returns (1, T, H, D)."""
    _refuse_extras(module, {**extras, "softcap": softcap})
    step = PagedStep.current()
    keys_BSKD, values_BSKD = step.pool.layer(module.layer_idx, key[0], value[0])
    keys_BSKD.flatten(0, 1)[step.places_T] = key[0].transpose(0, 1)
    values_BSKD.flatten(0, 1)[step.places_T] = value[0].transpose(0, 1)
    query_HTD = query[0]
    output_THD = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    num_kv_heads = keys_BSKD.shape[2]
    for rows in step.rows:
        queries = rows.select(query_HTD)
        # Query heads that share a key-value head stand side by side as more queries of that head.
        num_rows, num_heads, num_queries, head_size = queries.shape
        grouped = queries.reshape(num_rows, num_kv_heads, -1, head_size)
        mask = rows.mask(sliding_window)
        if mask is not None:
            mask = mask.repeat(1, 1, num_heads // num_kv_heads, 1)
        result = scaled_dot_product_attention(
            grouped,
            rows.context(keys_BSKD),
            rows.context(values_BSKD),
            attn_mask=mask,
            scale=scaling,
        )
        rows.place(output_THD, result.reshape(num_rows, num_heads, num_queries, -1))
    return output_THD[None], None


transformers.AttentionInterface.register(ATTENTION_NAME, paged_attention)
