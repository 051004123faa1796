"""How far a window of scores has moved from a yardstick: the population stability index. Plain numbers only.

    PSI = sum over bins of (seen - expected) * ln(seen / expected)

Bins are the yardstick's deciles. A rule of thumb of credit scoring reads below 0.1 as
stable and above 0.25 as moved.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence

LEAST = 100
"""Scores. With fewer, ten bins are mostly chance: under no drift PSI is about 9 / scores."""


def stability_index(scores: Iterable[float], percentiles: Sequence[float]) -> float:
    """PSI of scores against a yardstick given as its 101 percentiles; finite, half a score is added to each bin.

    ValueError without scores.
    """
    edges = _edges(percentiles)
    seen = _counts(scores, edges)
    if not sum(seen):
        raise ValueError("scores is empty: give at least one")
    return _index(_shares(_counts(percentiles, edges)), _shares(seen))


def _index(expected: Sequence[float], seen: Sequence[float]) -> float:
    return sum((have - want) * math.log(have / want) for want, have in zip(expected, seen, strict=True))


def _edges(percentiles: Sequence[float]) -> list[float]:
    return sorted(set(percentiles[10:100:10]))


def _counts(scores: Iterable[float], edges: Sequence[float]) -> list[int]:
    counts = [0] * (len(edges) + 1)
    for score in scores:
        counts[bisect_right(edges, score)] += 1
    return counts


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]


class DriftWindow:
    """The last scores and how far they are from the yardstick. Not safe to share between threads."""

    def __init__(self, percentiles: Sequence[float], size: int) -> None:
        """size: scores that are kept, at least LEAST. ValueError below."""
        if size < LEAST:
            raise ValueError(f"size is {size}: give at least {LEAST} scores")
        self._edges = _edges(percentiles)
        self._expected = _shares(_counts(percentiles, self._edges))
        self._seen = _counts((), self._edges)
        self._bins: deque[int] = deque()
        self._size = size

    def add(self, score: float) -> float | None:
        """PSI of the window with this score in it; None until it holds LEAST scores."""
        if len(self._bins) == self._size:
            self._seen[self._bins.popleft()] -= 1
        self._bins.append(bisect_right(self._edges, score))
        self._seen[self._bins[-1]] += 1
        return _index(self._expected, _shares(self._seen)) if len(self._bins) >= LEAST else None
