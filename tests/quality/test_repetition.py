"""Repetition and diversity against plain twins written from the papers' definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.quality.repetition import longest_repeat, longest_run, mtld, number, seq_rep, zipf_exponent
from tests.quality.plain_features import plain_mtld

SEQUENCES = st.lists(st.integers(0, 5), max_size=60)


def slow_seq_rep(ids: list[int], n: int) -> float:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def slow_longest_repeat(ids: list[int]) -> int:
    best = 0
    for n in range(1, len(ids)):
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        if len(set(grams)) < len(grams):
            best = n
    return best


@given(SEQUENCES)
def test_seq_rep_equals_its_definition(ids: list[int]) -> None:
    expected = [slow_seq_rep(ids, n) for n in (1, 2, 3, 4)]
    assert seq_rep(np.array(ids, dtype=np.int64)) == pytest.approx(expected)


@given(SEQUENCES)
def test_longest_repeat_equals_trying_every_length(ids: list[int]) -> None:
    assert longest_repeat(np.array(ids, dtype=np.int64)) == slow_longest_repeat(ids)


@given(SEQUENCES)
def test_longest_run_equals_counting(ids: list[int]) -> None:
    best = run = 0
    last = None
    for item in ids:
        run = run + 1 if item == last else 1
        last, best = item, max(best, run)
    assert longest_run(np.array(ids, dtype=np.int64)) == best


def test_seq_rep_of_a_small_text_by_hand() -> None:
    ids = number(["a", "rose", "is", "a", "rose", "is", "a", "rose"])[1]
    # 8 words of 3 kinds; 7 pairs of 3 kinds; 6 triples of 3 kinds; 5 quadruples of 3 kinds.
    assert seq_rep(ids) == pytest.approx([1 - 3 / 8, 1 - 3 / 7, 1 - 3 / 6, 1 - 3 / 5])
    assert longest_repeat(ids) == 5


def test_mtld_by_hand() -> None:
    # Forward and backward the ratio falls below 0.72 at every second word: 2 words a factor.
    assert mtld(["a"] * 10) == pytest.approx(2.0)
    assert mtld([]) == 0.0
    assert mtld([str(i) for i in range(50)]) == 50.0
    # a b c a a: forward ratio 4 words 3/4, 5 words 3/5 -> one factor, no remainder; backward a a -> factor at 2 words,
    # remainder c b a without repetition: one factor too. One stretch each: the text's length.
    assert mtld(["a", "b", "c", "a", "a"]) == pytest.approx(5.0)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), max_size=120))
def test_mtld_equals_looking_behind_every_word(words: list[str]) -> None:
    assert mtld(words) == pytest.approx(plain_mtld(words), abs=1e-12)


def test_mtld_of_varied_text_exceeds_that_of_a_loop() -> None:
    words = [f"w{i % 37}" for i in range(300)]
    assert mtld(words) > 3 * mtld(["w1", "w2", "w3"] * 100)


def test_zipf_exponent_recovers_a_power_law() -> None:
    counts = np.array([round(1e6 * r**-1.2) for r in range(1, 200)])
    assert zipf_exponent(counts) == pytest.approx(1.2, abs=0.01)
    assert zipf_exponent(np.array([7])) == 0.0
    assert math.isfinite(zipf_exponent(np.array([2, 2, 2])))
