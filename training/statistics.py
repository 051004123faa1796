"""Tests and intervals for paired differences: t, exact sign flip, Holm, equivalence, effect size, bootstrap.

Pure numpy and scipy on plain numbers; nothing of runs, files or models. Two-sided unless it says otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

FloatArray = NDArray[np.float64]

EQUIVALENCE_MARGIN_NATS = 0.01  # nats per token: differences below it do not matter; the lambda study's registration
_EXACT_PAIRS = 20  # a million sign patterns; above, they are drawn
_DRAWN_PATTERNS = 100_000
_CHUNK = 10_000
_NODES = 600  # of the quadrature in effect_size: six digits of p up to a paired d of 50


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """Differences a - b of n pairs. d: paired d (mean over standard deviation of the differences), infinite where
    these are all the same. least_sign_flip_p: the smallest p that n pairs can reach.
    """

    num_pairs: int
    difference: Estimate
    d: Estimate
    t_p: float
    sign_flip_p: float
    least_sign_flip_p: float


def compare_pairs(a: Sequence[float], b: Sequence[float]) -> PairedComparison:
    """Everything about the pairs' differences. Raises ValueError below 2 pairs or for values that are not finite."""
    differences = paired_differences(a, b)
    spread = float(differences.std(ddof=1))
    interval = t_interval(differences)
    if spread > 0:
        t_p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        d = effect_size(differences)
    else:
        t_p = 1.0 if interval.value == 0 else 0.0
        sure = 0.0 if interval.value == 0 else float(np.copysign(np.inf, interval.value))
        d = Estimate(sure, sure, sure)
    least = 2.0 ** (1 - len(differences))
    return PairedComparison(len(differences), interval, d, t_p, sign_flip_p(differences), least)


def paired_differences(a: Sequence[float], b: Sequence[float]) -> FloatArray:
    """a - b, element by element. Raises ValueError for unequal lengths, below 2 pairs, or values not finite."""
    if len(a) != len(b):
        raise ValueError(f"pairs={len(a)} and {len(b)} values: give one of each side for every pair")
    return _checked(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def t_interval(values: Sequence[float] | FloatArray, confidence: float = 0.95) -> Estimate:
    """The mean and its Student t interval."""
    x = _checked(values)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1)) * float(x.std(ddof=1)) / len(x) ** 0.5
    mean = float(x.mean())
    return Estimate(mean, mean - half, mean + half)


def sign_flip_p(differences: Sequence[float] | FloatArray, seed: int = 0) -> float:
    """Share of sign patterns whose mean is at least as far from zero: exact up to 20 differences, drawn above.

    Fisher 1935. With drawn patterns the observed one counts too, so that p is never zero and the test stays valid.
    """
    x = _checked(differences)
    reached = abs(float(x.sum())) * (1 - 1e-12)  # a pattern that equals the observed sum up to rounding counts
    if len(x) <= _EXACT_PAIRS:
        # Sums of all patterns, the first sign fixed: the test is two-sided, so the other half mirrors this one.
        sums = x[:1]
        for value in x[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reached).mean())
    rng = np.random.default_rng(seed)
    count = 1
    for _ in range(_DRAWN_PATTERNS // _CHUNK):
        signs = rng.integers(0, 2, (_CHUNK, len(x))) * 2.0 - 1
        count += int((np.abs(signs @ x) >= reached).sum())
    return count / (_DRAWN_PATTERNS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm 1979). Raises ValueError outside [0, 1]."""
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values={list(p_values)}: give numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(p)
    result[order] = adjusted
    return [float(value) for value in result]


def equivalence_p(differences: Sequence[float] | FloatArray, margin: float) -> float:
    """p of two one-sided t tests: below 0.05, the mean lies within +-margin (Schuirmann 1987).

    margin: above 0, in the unit of the differences.
    """
    x = _checked(differences)
    if not margin > 0:
        raise ValueError(f"margin={margin}: give a number above 0")
    mean, error = float(x.mean()), float(x.std(ddof=1)) / len(x) ** 0.5
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(stats.t.sf((margin - abs(mean)) / error, len(x) - 1))


def effect_size(differences: Sequence[float] | FloatArray, confidence: float = 0.95) -> Estimate:
    """Paired d, with the interval that inverts the noncentral t distribution. The differences must not all be equal."""
    x = _checked(differences)
    spread = float(x.std(ddof=1))
    if spread == 0:
        raise ValueError("differences: all equal, so there is no spread to divide by; give differing ones")
    n = len(x)
    t = float(x.mean()) / spread * n**0.5
    tail = (1 - confidence) / 2

    # T <= t where Z + noncentrality <= t * chi / sqrt(n - 1): the normal cdf over the density of chi.
    # scipy's nct.cdf is not a number in the tails that the search for the root visits.
    low, high = stats.chi.ppf([1e-12, 1 - 1e-12], n - 1)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    chi = low + (high - low) * (nodes + 1) / 2
    weights = weights * stats.chi.pdf(chi, n - 1)
    weights /= weights.sum()
    reached = t * chi / (n - 1) ** 0.5

    def noncentrality(probability: float) -> float:
        def excess(nc: float) -> float:
            return float(weights @ special.ndtr(reached - nc)) - probability

        return float(optimize.brentq(excess, reached.min() - 10, reached.max() + 10, xtol=1e-8))

    scale = n**0.5
    return Estimate(t / scale, noncentrality(1 - tail) / scale, noncentrality(tail) / scale)


def bootstrap_interval(
    statistic: Callable[[FloatArray], float],
    rows: FloatArray,
    *,
    rounds: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """statistic(rows) with the percentile bootstrap over rows, the first axis (Efron 1979)."""
    if len(rows) < 2:
        raise ValueError(f"rows={len(rows)}: give at least 2 to resample")
    rng = np.random.default_rng(seed)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(rounds)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(statistic(rows), float(low), float(high))


def _checked(values: Sequence[float] | FloatArray) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"values={x.size}: give at least 2 in a row")
    if not np.isfinite(x).all():
        raise ValueError("values: some are not finite; leave out diverged runs and say so")
    return x
