"""How well a model predicts a split: total cross-entropy, hence perplexity and bits per byte, and Phi with its null.

Each token is predicted exactly once: windows overlap by one token, which is context only. Bits per byte is comparable
across tokenizers; the bytes are those of the tokens predicted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from iit import HeadProbe, PhiObjective
from training.packing import TokenStream

_WINDOWS_PER_PASS = 16
_PHI_WINDOWS = 64  # about 16,000 pairs at 256 tokens: the null mean is then below a thousandth of a nat
_HELD_OUT_PROJECTIONS = 20_161_214  # the seed of the projections of every reported figure; training never draws it


@dataclass(frozen=True)
class HeldOut:
    """One evaluation. cross_entropy in nats per token; Phi in nats with the mean it has when there is nothing to find.

    phi_r (nats) and effective_rank (channels) are of the same states: what a gamed Phi gives away.
    """

    cross_entropy: float
    perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_bytes: int
    phi: float
    phi01: float
    phi_null_mean: float
    phi_num_pairs: int
    phi_r: float
    effective_rank: float


class Evaluator:
    """Evaluate a model on the first num_tokens tokens of a stream (None: all), in windows of block_size predictions."""

    def __init__(
        self,
        stream: TokenStream,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        num_tokens: int | None = None,
        phi_rank: int = 4,
        phi_lag: int = 1,
        bf16: bool = False,
    ) -> None:
        ids = np.asarray(stream.ids[: None if num_tokens is None else num_tokens + 1], dtype=np.int64)
        if len(ids) < 2:
            raise ValueError("the split has fewer than 2 tokens: give more text")
        self.num_tokens = len(ids) - 1
        self.num_bytes = _bytes_of(tokenizer, ids[1:])
        self.ids = torch.from_numpy(ids)
        self.block_size = block_size
        self.objective = PhiObjective(phi_rank, phi_lag)
        self.bf16 = bf16

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> HeldOut:
        """Evaluate in eval mode, and leave the model in the mode it was in."""
        was_training = model.training
        model.eval()
        try:
            nats = sum(self._nats(model, ids_BT) for ids_BT in self._batches()) / self.num_tokens
            phi = self._phi(model)
        finally:
            model.train(was_training)
        return HeldOut(
            cross_entropy=nats,
            perplexity=math.exp(min(nats, 700.0)),
            bits_per_byte=nats * self.num_tokens / math.log(2) / self.num_bytes,
            num_tokens=self.num_tokens,
            num_bytes=self.num_bytes,
            **phi,
        )

    def _batches(self) -> Iterator[Tensor]:
        """Windows of block_size + 1 tokens that overlap by one; the shorter last one comes alone."""
        span = self.block_size
        whole = self.num_tokens // span
        for first in range(0, whole, _WINDOWS_PER_PASS):
            last = min(first + _WINDOWS_PER_PASS, whole)
            yield torch.stack([self.ids[w * span : (w + 1) * span + 1] for w in range(first, last)])
        if self.num_tokens % span:
            yield self.ids[whole * span :].unsqueeze(0)

    def _nats(self, model: nn.Module, ids_BT: Tensor) -> float:
        device = next(model.parameters()).device
        ids_BT = ids_BT.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        flat = logits_BTV.flatten(0, 1).float()
        return float(nn.functional.cross_entropy(flat, ids_BT[:, 1:].flatten(), reduction="sum"))

    def _phi(self, model: nn.Module) -> dict[str, Any]:
        """Phi of the last layer, pooled over the first windows, with held-out projections."""
        device = next(model.parameters()).device
        heads = []
        with HeadProbe(model) as probe:
            for count, ids_BT in enumerate(self._batches()):
                if count * _WINDOWS_PER_PASS >= _PHI_WINDOWS or (count and ids_BT.shape[1] != self.block_size + 1):
                    break
                model(input_ids=ids_BT[:, :-1].to(device), use_cache=False)
                heads.append(probe.read().float())
        generator = torch.Generator().manual_seed(_HELD_OUT_PROJECTIONS)
        term = self.objective(torch.cat(heads), generator)
        return {
            "phi": float(term.phi),
            "phi01": float(term.phi01),
            "phi_null_mean": term.null_mean,
            "phi_num_pairs": term.num_pairs,
            "phi_r": term.phi_r(),
            "effective_rank": term.effective_rank(),
        }


def _bytes_of(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int64]) -> int:
    """Bytes of text these tokens stand for; special tokens stand for none."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A stream cut inside a character decodes to replacement characters: at most 3 bytes of error in the whole stream.
    return len(text.encode())
