"""How varied a set of texts is: distinct-n and self-BLEU. Pure Python; no model, no reference, no clocks.

Words here are the pieces of serve.quality.words (words, runs of digits, single marks), as written. Both figures depend
on how many texts there are and how long they are: compare only sets of equal numbers and lengths.
"""

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from serve.quality.words import split_pieces

_TINY_MATCH = 0.1
Gram = tuple[str, ...]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams of words, of all texts together (Li et al. 2016); in 0 to 1.

    No n-gram spans two texts. 0 where the texts have none. ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: give a whole number of at least 1")
    grams = [gram for text in texts for gram in _grams(split_pieces(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], max_n: int = 4, sample: int | None = None, seed: int = 0) -> float:
    """Mean BLEU of each text against all others (Zhu et al. 2018); 0 to 1, higher is less varied.

    BLEU as Papineni et al. (2002): uniform weights on n-grams of 1 to max_n words, the brevity penalty of the reference
    nearest in length (the shorter of two); a precision without a match counts as 0.1 matches (Chen & Cherry 2014,
    method 1, which the authors of self-BLEU took), but a text that shares no word with the others scores 0.
    sample: use this many texts only, drawn with seed: more references raise the figure. Linear in the texts.
    ValueError for fewer than 2 texts, or numbers out of range.
    """
    if max_n < 1:
        raise ValueError(f"max_n is {max_n}: give a whole number of at least 1")
    if sample is not None and not 2 <= sample <= len(texts):
        raise ValueError(f"sample is {sample}: give 2 to {len(texts)}, the number of texts, or leave it out")
    if len(texts) < 2:
        raise ValueError(f"texts has {len(texts)} entries: self-BLEU compares at least 2")
    chosen = texts if sample is None else random.Random(seed).sample(list(texts), sample)
    words = [split_pieces(text) for text in chosen]
    lengths = [len(row) for row in words]
    log_precisions = [0.0] * len(words)
    for n in range(1, max_n + 1):
        for i, (matches, total) in enumerate(_matches(words, n)):
            if n == 1 and not matches:
                log_precisions[i] = -math.inf
            log_precisions[i] += math.log((matches or _TINY_MATCH) / max(1, total)) / max_n
    ordered = sorted(lengths)
    scores = [
        math.exp(log_precisions[i] + min(0.0, 1 - _nearest(ordered, size) / size)) if size else 0.0
        for i, size in enumerate(lengths)
    ]
    return sum(scores) / len(scores)


def _grams(words: Sequence[str], n: int) -> list[Gram]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _matches(words: Sequence[Sequence[str]], n: int) -> list[tuple[int, int]]:
    """Each text's n-grams that are found in the others (clipped), and all its n-grams, in time linear in the words.

    A count is clipped at the largest count in any other text: the largest of all, or the second largest for its owner.
    """
    counts = [Counter(_grams(row, n)) for row in words]
    largest: dict[Gram, tuple[int, int, int]] = {}  # gram -> largest count, whose it is, second largest count
    for i, counter in enumerate(counts):
        for gram, count in counter.items():
            first, owner, second = largest.get(gram, (0, -1, 0))
            largest[gram] = (count, i, first) if count > first else (first, owner, max(second, count))
    found = []
    for i, counter in enumerate(counts):
        matches = 0
        for gram, count in counter.items():
            first, owner, second = largest[gram]
            matches += min(count, second if owner == i else first)
        found.append((matches, counter.total()))
    return found


def _nearest(ordered: Sequence[int], size: int) -> int:
    """The length nearest to size among the others' (one entry equal to size is the text's own), shorter on a tie."""
    at = bisect_left(ordered, size)
    around = [ordered[j] for j in (at - 1, at + 1) if 0 <= j < len(ordered)]
    return min(around, key=lambda length: (abs(length - size), length))
