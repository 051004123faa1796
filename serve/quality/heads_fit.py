"""From examples to human ranges and calibrated heads: numpy, scipy, scikit-learn (the `train` extra). Offline."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from serve.quality.features import (
    DOCUMENT_FEATURES,
    TEXT_FEATURES,
    Feature,
    document_features,
    split_sentences,
    text_features,
)
from serve.quality.lexicon import Lexicon
from serve.quality.reference import QUANTILES, HumanRange
from serve.quality.surprise import SURPRISE_FEATURES, TokenSurprise, surprise_features
from serve.quality.words import PIECE

PIECE_LENGTHS = (24, 36, 52, 76, 112, 160, 240, 360, 540)
TOKEN_LENGTHS = (32, 48, 72, 108, 160, 240, 360, 500)
FloatArray = NDArray[np.float64]


def first_pieces(text: str, count: int) -> str | None:
    """The beginning of a text that holds so many pieces, None if it has fewer."""
    match = next(islice(PIECE.finditer(text), count - 1, None), None)
    return None if match is None else text[: match.end()]


def text_ranges(texts: Sequence[str], lexicon: Lexicon) -> tuple[HumanRange, HumanRange]:
    """Ranges of text and document features of human texts, of which many must be as long as PIECE_LENGTHS[-1]."""
    rows, document_rows, lengths = [], [], []
    for count in PIECE_LENGTHS:
        parts = [part for text in texts if (part := first_pieces(text, count))]
        if len(parts) < 50:
            continue
        lengths.append(count)
        rows.append(_quantiles([text_features(part, lexicon)[0] for part in parts]))
        document_rows.append(_quantiles([document_features(split_sentences(part)) for part in parts]))
    if not lengths:
        raise ValueError("the corpus gives fewer than 50 passages of 24 words: give more text")
    at = np.array(lengths, dtype=np.float64)
    return (
        HumanRange(TEXT_FEATURES, at, np.stack(rows)),
        HumanRange(DOCUMENT_FEATURES, at, np.stack(document_rows)),
    )


def surprise_range(surprises: Sequence[TokenSurprise]) -> HumanRange:
    """Ranges of surprise features of human texts under one model."""
    rows, lengths = [], []
    for count in TOKEN_LENGTHS:
        parts = [
            TokenSurprise(s.token_ids[:count], s.logprobs[:count], s.entropies[:count])
            for s in surprises
            if len(s) >= count
        ]
        if len(parts) < 30:
            continue
        lengths.append(count)
        rows.append(_quantiles([surprise_features(part) for part in parts]))
    if not lengths:
        raise ValueError("the held-out corpus gives fewer than 30 passages of 32 tokens: give more text")
    return HumanRange(SURPRISE_FEATURES, np.array(lengths, dtype=np.float64), np.stack(rows))


def _quantiles(rows: Sequence[FloatArray]) -> FloatArray:
    return np.quantile(np.stack(rows), QUANTILES, axis=0).T


@dataclass(frozen=True, slots=True)
class FittedHead:
    """intercept and weights (2, F) after calibration; slope and offset: what the calibration did to the logit."""

    intercept: float
    weights_2F: FloatArray
    slope: float
    offset: float


def balanced_weights(kinds: Sequence[str]) -> FloatArray:
    """Human and spoiled weigh the same, and so does every kind of spoiling; mean 1."""
    counts = Counter(kinds)
    spoiled = max(1, len(counts) - 1)
    weight = {kind: 1 / count / (1 if kind == "human" else spoiled) for kind, count in counts.items()}
    weights = np.array([weight[kind] for kind in kinds])
    balanced: FloatArray = weights / weights.mean()
    return balanced


def fit_head(
    deviations_N2F: FloatArray, kinds: Sequence[str], calibrating: NDArray[np.bool_], penalty: float
) -> FittedHead:
    """Logistic regression with weights <= 0, then Platt's calibration on the examples marked `calibrating`.

    The bound says what we know: to deviate is never good. It also keeps what a few kinds of damage have in common by
    chance from being learnt as a merit. penalty: of the squared weights, relative to the mean log loss.
    """
    human = np.array([kind == "human" for kind in kinds])
    weights = balanced_weights(kinds)
    flat = deviations_N2F.reshape(len(kinds), -1)
    fitting = ~calibrating
    intercept, coefficients = _bounded_regression(flat[fitting], human[fitting], weights[fitting], penalty)
    slope, offset = _platt(intercept + flat[calibrating] @ coefficients, human[calibrating], weights[calibrating])
    scaled = np.where(coefficients > -1e-4, 0.0, coefficients) * slope
    return FittedHead(
        round(slope * intercept + offset, 5), np.round(scaled, 5).reshape(2, -1), float(slope), float(offset)
    )


def _bounded_regression(
    x_NF: FloatArray, human: NDArray[np.bool_], weights: FloatArray, penalty: float
) -> tuple[float, FloatArray]:
    from scipy.optimize import minimize

    sign = np.where(human, 1.0, -1.0)
    share = weights / weights.sum()

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        margin = sign * (theta[0] + x_NF @ theta[1:])
        pull = -share * sign * 0.5 * (1 - np.tanh(margin / 2))
        value = share @ np.logaddexp(0.0, -margin) + penalty * (theta[1:] @ theta[1:])
        return float(value), np.concatenate([[pull.sum()], x_NF.T @ pull + 2 * penalty * theta[1:]])

    start = np.zeros(1 + x_NF.shape[1])
    bounds = [(None, None)] + [(None, 0.0)] * x_NF.shape[1]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000})
    if not found.success:
        raise ValueError(f"the regression did not converge ({found.message}): give more passages")
    return float(found.x[0]), found.x[1:]


def _platt(logits: FloatArray, human: NDArray[np.bool_], weights: FloatArray) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6).fit(logits[:, None], human, sample_weight=weights)
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        raise ValueError("the features do not tell human passages from spoiled ones: is the corpus human text?")
    return slope, float(model.intercept_[0])


def named_weights(features: Sequence[Feature], weights_2F: FloatArray) -> list[tuple[str, str, float]]:
    """(feature, side, weight), heaviest first, zeros left out: for people."""
    rows = [
        (feature.name, side, float(weights_2F[k, i]))
        for i, feature in enumerate(features)
        for k, side in enumerate(("low", "high"))
        if weights_2F[k, i]
    ]
    return sorted(rows, key=lambda row: row[2])
