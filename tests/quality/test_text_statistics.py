"""distinct-n and self-BLEU agree with figures computed elsewhere and with plain twins of their definitions."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.quality.text_statistics import distinct_n, self_bleu

TEXTS = [
    "the cat sat on the mat and the dog lay by the door",
    "the cat sat on the rug and a dog slept by the door",
    "a bird sang in the old tree by the river all day",
    "the cat the cat the cat the cat",
    "rain",
]
WORDS = st.lists(st.sampled_from(["the", "old", "man", "sea", "."]), max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("max_n", "found"), [(1, 0.4756141652342391), (2, 0.32845642909630746), (4, 0.18437070657937332)]
)
def test_self_bleu_is_that_of_nltk(max_n: int, found: float) -> None:
    # nltk 3.10.4: mean of sentence_bleu(others, text, weights, SmoothingFunction().method1).
    assert self_bleu(TEXTS, max_n) == pytest.approx(found, abs=1e-12)


def plain_self_bleu(texts: list[str], max_n: int) -> float:
    """Every text against every other, by the definition."""
    rows = [text.split() for text in texts]
    scores = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        precisions = []
        for n in range(1, max_n + 1):
            own = Counter(tuple(row[k : k + n]) for k in range(len(row) - n + 1))
            theirs = [Counter(tuple(o[k : k + n]) for k in range(len(o) - n + 1)) for o in others]
            matches = sum(min(count, max(t[gram] for t in theirs)) for gram, count in own.items())
            if n == 1 and not matches:
                precisions = [0.0]
                break
            precisions.append((matches or 0.1) / max(1, sum(own.values())))
        nearest = min((abs(len(o) - len(row)), len(o)) for o in others)[1]
        brevity = min(1.0, math.exp(1 - nearest / len(row))) if row else 0.0
        scores.append(brevity * math.prod(p ** (1 / max_n) for p in precisions))
    return sum(scores) / len(scores)


@given(st.lists(WORDS, min_size=2, max_size=6), st.integers(1, 4))
def test_self_bleu_in_linear_time_is_self_bleu_by_its_definition(texts: list[str], max_n: int) -> None:
    assert self_bleu(texts, max_n) == pytest.approx(plain_self_bleu(texts, max_n), abs=1e-12)


def test_equal_texts_have_self_bleu_1_and_a_sample_is_drawn_by_its_seed() -> None:
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1.0)
    assert self_bleu(TEXTS, sample=3, seed=1) == self_bleu(TEXTS, sample=3, seed=1)
    assert len({self_bleu(TEXTS, sample=3, seed=seed) for seed in range(8)}) > 1


def test_distinct_n_counts_over_all_texts_and_no_ngram_spans_two() -> None:
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["a", ""], 2) == 0.0


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n(TEXTS, 0)
    with pytest.raises(ValueError, match="max_n is 0"):
        self_bleu(TEXTS, 0)
    with pytest.raises(ValueError, match="sample is 9: give 2 to 5"):
        self_bleu(TEXTS, sample=9)
    with pytest.raises(ValueError, match="texts has 1 entries"):
        self_bleu(["a"])
