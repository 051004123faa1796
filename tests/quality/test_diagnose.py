"""A diagnosis from arrays: each defect is named, and sound numbers are not."""

import math

import numpy as np
import pytest

from serve.quality.diagnose import Findings, diagnose, loop_period

V = 8192
RNG = np.random.default_rng(0)
ENTROPIES = RNG.uniform(1.0, 6.0, 500)
TEXT = -RNG.exponential(4.0, 500)
VARIED = [RNG.integers(0, V, 128).tolist() for _ in range(8)]
PHRASES = [(list(range(40)) + list(range(12)) * 10)[:128] for _ in range(8)]


def test_a_flat_distribution_is_untrained() -> None:
    found = diagnose(Findings(V, np.full(100, math.log(V) - 0.05), np.full(100, -9.0)))
    assert found.verdict == "untrained"
    assert found.evidence["entropy_share"] > 0.99
    assert found.remedy


def test_wrong_certainty_is_collapsed() -> None:
    assert diagnose(Findings(V, np.full(100, 1.0), np.full(100, -12.0))).verdict == "collapsed"
    assert diagnose(Findings(V, np.full(100, 0.01))).verdict == "collapsed"
    assert diagnose(Findings(V, np.array([1.0, float("nan")]))).verdict == "collapsed"


def test_short_greedy_loops_and_repeating_samples_are_repetitive() -> None:
    assert diagnose(Findings(V, ENTROPIES, TEXT, greedy=[[5, 6] * 64] * 8, sampled=VARIED)).verdict == "repetitive"
    assert diagnose(Findings(V, ENTROPIES, TEXT, greedy=VARIED, sampled=PHRASES)).verdict == "repetitive"


def test_sound_numbers_are_healthy_even_where_greedy_loops_over_phrases() -> None:
    found = diagnose(Findings(V, ENTROPIES, TEXT, greedy=PHRASES, sampled=VARIED))
    assert found.verdict == "healthy"
    assert found.evidence["greedy_looping_share"] == 1.0


def test_nothing_to_judge_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="entropies is empty"):
        Findings(V, [])
    with pytest.raises(ValueError, match="vocab_size is 1"):
        Findings(1, [0.0])


@pytest.mark.parametrize(("ids", "period"), [([1] * 9, 1), ([9, 1, 2, 3] + [1, 2, 3] * 4, 3), (range(30), 0), ([], 0)])
def test_loop_period(ids: list[int], period: int) -> None:
    assert loop_period(list(ids)) == period
