"""The three nulls: each is tested for what it promises, at a false-alarm rate stated beside it."""

import numpy as np
import pytest
import torch

from iit import block_bootstrap, measure_states, minimum_cut, phi_g
from iit.gaussian import standardised_covariance
from iit.measures import QUICK, phi_of_cuts
from iit.nulls import chi_square_p_value, null_mean, shift_units, surrogate_p_value
from tests.phi.systems import simulate, stationary_joint

HALVES = ((0, 1), (2, 3))
UNCOUPLED = np.diag([0.9, 0.9, 0.9, 0.9])
COUPLED = 0.3 * np.eye(4) + 0.3 * np.roll(np.eye(4), 1, axis=0)
NOISE = 0.7 * np.eye(4) + 0.3


def sequences(a: np.ndarray, num_sequences: int, length: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([simulate(a, NOISE, length, seed * 1000 + i) for i in range(num_sequences)]))


def test_chi_square_p_value_is_the_tail_of_the_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    for phi, channels, num_pairs in ((0.01, (4, 12), 500), (0.2, (1, 3), 80), (0.0, (2, 2), 100)):
        freedom = 2 * channels[0] * channels[1]
        expected = stats.chi2.sf(2 * num_pairs * phi, freedom)
        assert chi_square_p_value(phi, channels, num_pairs) == pytest.approx(expected, rel=1e-9)


def test_phi_of_independent_pairs_has_the_null_mean_and_the_nominal_false_alarm_rate() -> None:
    # 300 samples: the mean of chi2(8) / 2N has a standard error of 2.9 %; 4 errors make a false alarm 1 in 15,000.
    num_samples, num_pairs = 300, 400
    noise = torch.randn(num_samples, num_pairs, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint = torch.stack([standardised_covariance(pairs[:, :4], pairs[:, 4:]) for pairs in noise])
    phi, _ = phi_of_cuts(joint, [HALVES] * num_samples, QUICK)
    assert float(phi.mean()) == pytest.approx(null_mean((2, 2), num_pairs), rel=4 * 0.029)
    alarms = sum(chi_square_p_value(value, (2, 2), num_pairs) < 0.05 for value in phi.tolist())
    assert 2 <= alarms <= 32  # binomial(300, .05): outside 1 in 8,000


def test_shifted_units_keep_their_own_series_and_never_meet_near_their_true_distance() -> None:
    states = torch.arange(64.0)[None, :, None].expand(3, 64, 8)
    shifted = shift_units(states, 4, torch.Generator().manual_seed(0))
    assert torch.equal(shifted.sort(dim=1).values, states)
    assert torch.equal((shifted.diff(dim=1) % 64), torch.ones(3, 63, 8))
    assert torch.equal(shifted[..., 0::2], shifted[..., 1::2])  # channels of one unit stay together
    offsets = shifted[:, 0, ::2]
    apart = (offsets[:, :, None] - offsets[:, None, :]) % 64
    assert bool(((apart >= 8) & (apart <= 56))[:, ~torch.eye(4, dtype=torch.bool)].all())


def test_surrogates_do_not_alarm_on_autocorrelated_uncoupled_units() -> None:
    # 20 runs at 19 surrogates: P(p = .05) is 1 in 20 each; more than 5 of them happen 1 in 3,000 times.
    alarms = 0
    for seed in range(20):
        record = measure_states([sequences(UNCOUPLED, 2, 150, seed)], 4, seed=seed, num_surrogates=19)
        alarms += record.surrogate_p_value == pytest.approx(0.05)
    assert alarms <= 5


def test_surrogates_find_coupled_units() -> None:
    record = measure_states([sequences(COUPLED, 4, 256, 1)], 4, num_surrogates=39)
    assert record.surrogate_p_value == pytest.approx(1 / 40)
    assert record.surrogate_mean < record.surrogate_quantile_95 < record.phi


def test_surrogate_p_value_counts_the_observation_itself() -> None:
    assert surrogate_p_value(2.0, torch.tensor([1.0, 2.0, 3.0])) == 3 / 4
    assert surrogate_p_value(4.0, torch.tensor([1.0, 2.0, 3.0])) == 1 / 4


def test_block_bootstrap_covers_the_true_value() -> None:
    # 20 intervals of 95 %: fewer than 15 cover 1 in 3,000 times if the coverage is true; its own error may cost a few.
    truth = phi_g(stationary_joint(COUPLED, NOISE), [[0, 1], [2, 3]])
    covered, widths = 0, []
    for seed in range(20):
        states = sequences(COUPLED, 4, 300, seed)
        low, high = block_bootstrap([states], HALVES, torch.Generator().manual_seed(seed), num_resamples=100)
        covered += low <= truth <= high
        widths.append(high - low)
    assert covered >= 15
    assert max(widths) < truth


def test_block_bootstrap_takes_the_estimators_bias_off() -> None:
    # Every resample of uncoupled units has Phi > 0: a plain percentile interval could not reach down to the truth.
    for seed in range(5):
        states = sequences(np.zeros((4, 4)), 2, 400, seed)
        low, high = block_bootstrap([states], HALVES, torch.Generator().manual_seed(seed), num_resamples=100)
        assert low == 0.0
        assert high < 3 * null_mean((2, 2), 2 * 391)


def test_surrogates_leave_out_the_first_positions_too() -> None:
    states = sequences(COUPLED, 2, 100, 0)
    states[:, :8] *= 1e6
    dropped, never_there = (
        measure_states([part], 4, num_dropped=count, num_surrogates=5)
        for part, count in ((states, 8), (states[:, 8:], 0))
    )
    assert dropped == never_there


def test_block_bootstrap_needs_twenty_blocks() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        block_bootstrap([torch.randn(2, 256, 4)], HALVES, torch.Generator())


def test_short_sequences_cannot_be_shifted() -> None:
    with pytest.raises(ValueError, match="at least 16 positions"):
        shift_units(torch.zeros(1, 12, 4), 4, torch.Generator())


def test_minimum_cut_of_uncoupled_units_is_not_significant_by_chi_square_where_pairs_are_independent() -> None:
    record = measure_states([sequences(np.zeros((4, 4)), 4, 300, 5)], 4)
    assert record.p_value > 0.01
    assert minimum_cut(torch.eye(8, dtype=torch.float64), 4).phi == pytest.approx(0, abs=1e-12)
