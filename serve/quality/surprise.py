"""What the model itself says of a text: features of token log-probabilities and next-token entropies. numpy only.

The arrays come from the engine (TokenDelta) or from a forward pass over given text: nats, of the model's own
distribution at temperature 1, before penalties and truncation. They cost no forward pass while generating.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.quality.features import Feature
from serve.quality.repetition import seq_rep

MIN_TOKENS = 16
"""Fewer scored tokens than this say nothing: their features are left out."""
TYPICAL_WIDTH = 1.0
"""Nats around the entropy within which a token counts as typical."""

SURPRISE_FEATURES = (
    Feature("logprob", "both", 0.1, "mean token log-probability"),
    Feature("logprob_spread", "both", 0.1, "standard deviation of the token log-probability"),
    Feature("entropy", "both", 0.1, "mean entropy of the next-token distribution"),
    Feature("entropy_spread", "both", 0.1, "its standard deviation; 0 near ln(vocabulary): untrained"),
    Feature("entropy_gap", "both", 0.05, "mean of surprise minus entropy; 0 for tokens drawn as the model says"),
    Feature("typical_share", "low", 0.03, "tokens with surprise within 1 nat of the entropy (Meister et al. 2022)"),
    Feature("certain_share", "high", 0.03, "tokens with probability above 0.9"),
    Feature("token_seq_rep_4", "high", 0.01, "share of repeated 4-grams of tokens (Welleck et al. 2020)"),
)  # fmt: skip
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenSurprise:
    """A text's tokens as the model saw them; three sequences of equal length, position by position.

    token_ids: the tokens. logprobs: log-probability of each, nats, <= 0. entropies: of the distribution it was drawn
    from, nats. ValueError for unequal lengths or numbers that are not finite.
    """

    token_ids: Sequence[int] | NDArray[np.int64]
    logprobs: Sequence[float] | FloatArray
    entropies: Sequence[float] | FloatArray

    def __post_init__(self) -> None:
        lengths = len(self.token_ids), len(self.logprobs), len(self.entropies)
        if len(set(lengths)) != 1:
            raise ValueError(f"token_ids, logprobs and entropies have lengths {lengths}: give one of each a token")

    def __len__(self) -> int:
        return len(self.token_ids)


def surprise_features(surprise: TokenSurprise) -> FloatArray:
    """In the order of SURPRISE_FEATURES; needs at least one token. ValueError for numbers that are not finite."""
    logprobs = np.asarray(surprise.logprobs, dtype=np.float64)
    entropies = np.asarray(surprise.entropies, dtype=np.float64)
    count = len(logprobs)
    # A sum of squares is finite exactly if all are (short of 1e154, which no logarithm reaches).
    if not np.isfinite(logprobs @ logprobs + entropies @ entropies):
        raise ValueError("logprobs or entropies hold a number that is not finite: the model's output is broken")
    gap = -logprobs - entropies
    return np.array(
        [
            logprobs.sum() / count,
            _spread(logprobs),
            entropies.sum() / count,
            _spread(entropies),
            gap.sum() / count,
            np.count_nonzero(np.abs(gap) <= TYPICAL_WIDTH) / count,
            np.count_nonzero(logprobs > np.log(0.9)) / count,
            seq_rep(np.asarray(surprise.token_ids, dtype=np.int64))[3],
        ]
    )


def _spread(values: FloatArray) -> float:
    centred = values - values.sum() / len(values)
    return float(np.sqrt(centred @ centred / len(values)))
