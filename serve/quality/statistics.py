"""Figures of merit of a score, with bootstrap intervals over passages. Pure numpy; the generator is an argument."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """value: the estimate. low, high: the 95 % percentile bootstrap."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """JSON-ready, four decimals."""
        return {name: round(x, 4) for name, x in asdict(self).items()}


def auc(higher: FloatArray, lower: FloatArray) -> float:
    """Chance that one of `higher` scores above one of `lower`, ties counting half (Mann-Whitney)."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    not_above = np.searchsorted(ordered, higher, side="right")
    return float((below + not_above).mean() / 2 / len(lower))


def calibration_error(scores: FloatArray, human: NDArray[np.bool_], weights: FloatArray, bins: int = 10) -> float:
    """Expected calibration error: |mean score - share of human| by bin of score, weighted by the bin's weight."""
    which = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights * (scores - human), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; ties get their mean rank."""
    a, b = (_ranks(np.asarray(v, dtype=np.float64)) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: FloatArray = (ends - (counts - 1) / 2)[inverse]
    return ranks


def bootstrap(
    statistic: Callable[..., float], groups: Sequence[FloatArray], rng: np.random.Generator, rounds: int = 1000
) -> Interval:
    """statistic(*groups), each group resampled by itself."""
    drawn = []
    for _ in range(rounds):
        drawn.append(statistic(*(g[rng.integers(0, len(g), len(g))] for g in groups)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(statistic(*groups), float(low), float(high))


def mean(values: FloatArray) -> float:
    """Mean, as a statistic for bootstrap()."""
    return float(values.mean())


def stability_index(expected: Sequence[float], found: Sequence[float], bins: int = 10) -> float:
    """Population stability index of `found` against a sample or its percentiles `expected`; above 0.25 is a shift.

    Bins are deciles of `expected`; half an observation is added to each, so that empty bins stay finite.
    """
    expected_values, found_values = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    edges = np.quantile(expected_values, np.arange(1, bins) / bins)

    def shares(values: FloatArray) -> FloatArray:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=bins) + 0.5
        result: FloatArray = counts / counts.sum()
        return result

    p, q = shares(expected_values), shares(found_values)
    return float(((q - p) * np.log(q / p)).sum())
