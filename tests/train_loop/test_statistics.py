"""Golden values from scipy and statsmodels, hand numbers, and false-alarm rates that are computed, not assumed."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.statistics import (
    bootstrap_interval,
    compare_pairs,
    effect_size,
    equivalence_p,
    holm,
    paired_differences,
    sign_flip_p,
    t_interval,
)

A = [2.31, 2.28, 2.40, 2.35, 2.29, 2.33]
B = [2.30, 2.31, 2.36, 2.30, 2.25, 2.34]
VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=10)


def test_the_paired_t_test_and_its_interval_are_scipys() -> None:
    result = compare_pairs(A, B)
    expected = stats.ttest_rel(A, B)
    interval = expected.confidence_interval(0.95)
    assert result.t_p == pytest.approx(expected.pvalue)
    assert (result.difference.low, result.difference.high) == pytest.approx((interval.low, interval.high))


def test_five_pairs_of_one_sign_reach_one_sixteenth_and_no_less() -> None:
    result = compare_pairs([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert result.sign_flip_p == result.least_sign_flip_p == 2 / 32


@given(VALUES)
def test_the_sign_flip_test_counts_every_pattern(values: list[float]) -> None:
    total = abs(sum(values)) * (1 - 1e-12)
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    slack = 1e-9 * max(1.0, sum(map(abs, values)))
    sure, possible = (sum(s >= total + e for s in sums) / len(sums) for e in (slack, -slack))
    assert sure <= sign_flip_p(values) <= possible


def test_the_sign_flip_test_is_scipys_permutation_test() -> None:
    differences = paired_differences(A, B)
    expected = stats.permutation_test(
        (np.asarray(A), np.asarray(B)),
        lambda a, b: float(np.mean(a - b)),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue)


def test_many_pairs_are_drawn_and_agree_with_the_t_test() -> None:
    x = np.random.default_rng(3).normal(0.3, 1.0, 60)
    assert sign_flip_p(x) == pytest.approx(float(stats.ttest_1samp(x, 0).pvalue), abs=0.005)
    assert sign_flip_p(x) == sign_flip_p(x)


def test_holm_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p) == pytest.approx(list(multitest.multipletests(p, method="holm")[1]))


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_equivalence_is_statsmodels_tost() -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    expected = weightstats.ttost_paired(np.asarray(A), np.asarray(B), -0.05, 0.05)[0]
    assert equivalence_p(paired_differences(A, B), 0.05) == pytest.approx(expected)


def test_the_effect_sizes_interval_holds_the_noncentral_t_quantiles() -> None:
    x = np.asarray([0.1, 0.3, 0.2, 0.5, 0.4])
    d = effect_size(x)
    t = d.value * 5**0.5
    assert d.value == pytest.approx(0.3 / np.std(x, ddof=1))
    assert stats.nct.sf(t, 4, d.low * 5**0.5) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, 4, d.high * 5**0.5) == pytest.approx(0.025, abs=1e-6)


def test_differences_that_are_all_equal_have_no_spread_and_say_so() -> None:
    same = compare_pairs([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.t_p, same.sign_flip_p, same.d.value) == (1.0, 1.0, 0.0)
    assert compare_pairs([1.0, 2.0], [0.0, 1.0]).d.value == math.inf
    with pytest.raises(ValueError, match="all equal"):
        effect_size([1.0, 1.0])


def test_the_bootstrap_of_a_mean_comes_near_its_t_interval() -> None:
    x = np.random.default_rng(1).normal(1.0, 2.0, 400)
    found, expected = bootstrap_interval(lambda rows: float(rows.mean()), x, rounds=2000), t_interval(x)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_false_alarms_come_as_often_as_stated() -> None:
    """2,000 experiments of 10 pairs with nothing to find. The bounds are 4 standard errors of a binomial share."""
    rng = np.random.default_rng(20_161_214)
    experiments = [rng.normal(0, 1, 10) for _ in range(2000)]
    bound = 4 * (0.05 * 0.95 / 2000) ** 0.5
    flips = np.mean([sign_flip_p(x) <= 0.05 for x in experiments])
    ts = np.mean([stats.ttest_1samp(x, 0).pvalue <= 0.05 for x in experiments])
    covered = np.mean([t_interval(x).low <= 0 <= t_interval(x).high for x in experiments])
    assert abs(flips - 0.05) < bound
    assert abs(ts - 0.05) < bound
    assert covered == pytest.approx(1 - ts)


def test_equivalence_is_claimed_at_the_margin_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(7)
    claimed = np.mean([equivalence_p(rng.normal(0.5, 0.3, 10), 0.5) < 0.05 for _ in range(2000)])
    assert abs(claimed - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([1.0], [1.0], "at least 2"), ([1.0, 2.0], [1.0], "every pair"), ([1.0, math.inf], [0.0, 0.0], "not finite")],
)
def test_bad_pairs_are_refused(a: list[float], b: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare_pairs(a, b)


def test_bad_margins_and_p_values_are_refused() -> None:
    with pytest.raises(ValueError, match="margin=0"):
        equivalence_p([1.0, 2.0], 0)
    with pytest.raises(ValueError, match="p_values"):
        holm([1.5])
