"""Figures of merit against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.quality.statistics import auc, bootstrap, calibration_error, mean, spearman, stability_index

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=20)


@given(SCORES, SCORES)
def test_auc_equals_comparing_every_pair(high: list[float], low: list[float]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    assert auc(np.array(high), np.array(low)) == pytest.approx(float(np.mean(pairs)))


def test_calibration_error_by_hand() -> None:
    scores, human = np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])
    assert calibration_error(scores, human, np.ones(4)) == pytest.approx((0.4 + 0.1) / 2)


def test_a_calibrated_score_has_little_error() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    human = rng.random(20_000) < scores
    # 10 bins of 2,000: the standard error of each is at most 0.011, so the mean gap is below 0.02.
    assert calibration_error(scores, human, np.ones(20_000)) < 0.02


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0.0


def test_bootstrap_interval_holds_the_estimate() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = bootstrap(mean, [values], np.random.default_rng(2))
    assert found.low < found.value < found.high
    # The interval of a mean is about 2 * 1.96 / sqrt(400) = 0.196 wide.
    assert found.high - found.low == pytest.approx(0.196, rel=0.2)


def test_stability_index_sees_a_shift() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 2000), rng.normal(0, 1, 2000)
    assert stability_index(a, b) < 0.05
    assert stability_index(a, b + 1) > 0.5
