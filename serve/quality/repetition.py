"""How much a sequence repeats itself, and how varied it is. Pure functions of word sequences and integer arrays; numpy.

All are linear in the sequence (sorting aside). tests/quality holds each against a plain twin of its definition.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
_MIX = np.uint64(0x9E3779B97F4A7C15)
MTLD_THRESHOLD = 0.72
_SHIFT = np.uint64(29)


def number(items: Sequence[str]) -> tuple[list[str], IntArray]:
    """The different items in the order of their first places, and for every item its place among them."""
    index = dict.fromkeys(items, 0)
    distinct = list(index)
    for i, item in enumerate(distinct):
        index[item] = i
    return distinct, np.array([index[item] for item in items], dtype=np.int64)


def _join(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash of a longer n-gram from the hashes of its halves. 64 bits: 10,000 n-grams collide once in 10^11 texts."""
    mixed = (left * _MIX + right) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> _SHIFT)


def _num_distinct(hashes: NDArray[np.uint64]) -> int:
    ordered = np.sort(hashes)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1])) if len(ordered) else 0


def seq_rep(ids: IntArray, largest: int = 4) -> list[float]:
    """seq-rep-n for n = 1..largest: 1 - distinct n-grams / n-grams (Welleck et al. 2020); 0 without n-grams."""
    shares, grams = [], _start(ids)
    single = grams
    for n in range(1, largest + 1):
        if n > 1:
            grams = _join(grams[:-1], single[n - 1 :])
        shares.append(1.0 - _num_distinct(grams) / len(grams) if len(grams) else 0.0)
    return shares


def _start(ids: IntArray) -> NDArray[np.uint64]:
    return (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)


def longest_repeat(ids: IntArray) -> int:
    """Length of the longest n-gram that occurs twice (overlaps count). Binary descent over doubled lengths."""
    levels = [_start(ids)]
    while len(levels[-1]) and _num_distinct(levels[-1]) < len(levels[-1]):
        size = 1 << (len(levels) - 1)
        levels.append(_join(levels[-1][: max(0, len(levels[-1]) - size)], levels[-1][size:]))
    if len(levels) == 1:
        return 0
    length = 1 << (len(levels) - 2)
    grams = levels[-2]
    for level in range(len(levels) - 3, -1, -1):
        size = 1 << level
        longer = _join(grams[: max(0, len(grams) - size)], levels[level][length:])
        if len(longer) and _num_distinct(longer) < len(longer):
            grams, length = longer, length + size
    return length


def longest_run(ids: IntArray) -> int:
    """Most times one item stands in a row."""
    if not len(ids):
        return 0
    if not (ids[1:] == ids[:-1]).any():  # the rule in prose
        return 1
    edges = np.flatnonzero(ids[1:] != ids[:-1])
    if not len(edges):
        return len(ids)
    inner = int((edges[1:] - edges[:-1]).max()) if len(edges) > 1 else 0
    return max(inner, int(edges[0]) + 1, len(ids) - 1 - int(edges[-1]))


def mtld(words: Sequence[Hashable]) -> float:
    """Measure of textual lexical diversity (McCarthy & Jarvis 2010): mean of a forward and a backward pass.

    Words per stretch in which the type-token ratio falls to 0.72, the last, partial stretch counted in proportion.
    A text without a repeated word has no stretch at all: its own length is returned, as if it had just one.
    """
    if not words:
        return 0.0
    return (_mtld_pass(words) + _mtld_pass(words[::-1])) / 2


def _mtld_pass(words: Sequence[Hashable]) -> float:
    factors, seen, count = 0.0, set[Hashable](), 0
    for word in words:
        count += 1
        # A new word raises the ratio: only a repeated one can make it fall below the threshold.
        if word not in seen:
            seen.add(word)
        elif len(seen) < MTLD_THRESHOLD * count:
            factors += 1
            seen.clear()
            count = 0
    if count:
        factors += (1 - len(seen) / count) / (1 - MTLD_THRESHOLD)
    return len(words) / factors if factors > 1 else float(len(words))


def zipf_exponent(counts: NDArray[np.intp]) -> float:
    """Minus the slope of log frequency against log rank (Zipf 1949), least squares; 0 for fewer than two kinds."""
    if len(counts) < 2:
        return 0.0
    y = np.log(np.sort(counts)[::-1])
    x = np.log(np.arange(1, len(y) + 1))
    x -= x.mean()
    return float(-(x @ y) / (x @ x))
