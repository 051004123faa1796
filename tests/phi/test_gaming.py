"""How Phi can be gamed: the value of each system, and the guard that catches it or the fact that none does.

16 sequences of 256 positions (4,000 for the collapse, whose Phi^R lies below the bias of fewer), 4 heads of 16
channels at rank 4: a state of 16 dimensions.
"""

import pytest
import torch

from iit import Phi, PhiWatch, measure
from iit.guards import PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN

SHAPE = (16, 256, 4, 16)


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def remembered(noise: torch.Tensor, memory: float, source: int = 0) -> torch.Tensor:
    """Each head is `memory` times the head `source` places before it one position earlier, plus noise."""
    states = noise.clone()
    for t in range(1, noise.shape[1]):
        states[:, t] += memory * states[:, t - 1].roll(source, dims=1)
    return states


def record_of(heads: torch.Tensor) -> Phi:
    return measure(heads, rank=4)


HARMLESS = {
    "white noise": lambda: white(),
    "independent heads": lambda: remembered(white(), 0.7),
    "common drive": lambda: remembered(white() + white(16, 256, 1, 16, seed=1), 0.7),
    "identical heads": lambda: white(16, 256, 1, 16).expand(SHAPE),
    "one head x 1000": lambda: remembered(white(), 0.7) * torch.tensor([1000.0, 1, 1, 1])[:, None],
}


@pytest.mark.parametrize("system", HARMLESS)
def test_systems_without_integration_stay_at_the_null(system: str) -> None:
    record = record_of(HARMLESS[system]())
    assert record.phi < 1.5 * record.null_mean  # the null's standard deviation is 13 % of its mean
    assert record.p_value > 0.01


def collapsed() -> torch.Tensor:
    """One number that remembers itself, broadcast to every channel of every head with 1 % of noise."""
    scalar = remembered(white(16, 4000, 1, 1), 0.8)
    return scalar * white(4, 16, seed=2) + 0.01 * white(16, 4000, 4, 16, seed=3)


def test_rank_one_collapse_fools_phi_g_and_is_caught_by_effective_rank_and_phi_r() -> None:
    record = record_of(collapsed())
    assert record.phi == pytest.approx(0.20, abs=0.02)
    assert record.p_value < 1e-6
    assert record.effective_rank == pytest.approx(1, abs=0.2)
    assert record.num_channels == 16
    assert 0 <= record.phi_r < 0.0006


def test_ring_of_delayed_copies_is_rewarded_and_no_dynamics_measure_refuses_it() -> None:
    record = record_of(remembered(white(), 0.47, source=1))
    assert record.phi == pytest.approx(0.20, abs=0.02)
    assert record.effective_rank > 15.5
    assert record.phi_r > record.phi


def test_identical_heads_that_remember_are_rewarded_too_and_caught_by_effective_rank() -> None:
    record = record_of(remembered(white(16, 256, 1, 16), 0.7).expand(SHAPE))
    assert record.phi > 5 * record.null_mean
    assert record.effective_rank < 11 < record_of(remembered(white(), 0.7)).effective_rank


def test_watch_names_a_drift_into_collapse_and_stays_silent_on_the_ring() -> None:
    collapse, healthy = record_of(collapsed()), record_of(remembered(white(), 0.3, source=1))
    ring = record_of(remembered(white(), 0.47, source=1))
    names = [watch_drift(healthy, end) for end in (collapse, ring)]
    assert names == [{PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN}, set()]


def watch_drift(start: Phi, end: Phi) -> set[str]:
    watch, names = PhiWatch(window=4), set()
    for step in range(9):
        share = step / 8
        mixed = [
            (1 - share) * getattr(start, field) + share * getattr(end, field)
            for field in ("phi", "phi_r", "effective_rank")
        ]
        names.update(watch.update(*mixed))
    return names
