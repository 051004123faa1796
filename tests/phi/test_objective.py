"""The loss term: its value, its gradient, its randomness."""

import pytest
import torch

from iit import PhiObjective, gaussian, measure_states
from iit.gaussian import joint_covariance, oas_intensity, random_projections
from tests.phi.systems import simulate


def coupled_heads(num_sequences: int = 8, length: int = 400, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Heads of 8 channels, (B, T, 4, 8), that pass a fourth of their state around a ring at every position."""
    noise = torch.randn(num_sequences, length, 4, 8, generator=torch.Generator().manual_seed(5), dtype=dtype)
    heads = noise.clone()
    for t in range(1, length):
        heads[:, t] += 0.4 * heads[:, t - 1].roll(1, dims=1) + 0.3 * heads[:, t - 1]
    return heads


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_term_carries_phi_with_its_null_and_its_cut() -> None:
    term = PhiObjective(rank=2, num_dropped=8)(coupled_heads(), seeded())
    assert term.num_pairs == 8 * (400 - 8 - 1)
    first, second = term.cut
    assert sorted(first + second) == [0, 1, 2, 3]
    assert term.null_mean == len(first) * len(second) * 4 / term.num_pairs
    assert float(term.phi01) == pytest.approx(1 - float(torch.exp(-term.phi / (2 * len(first)))), abs=1e-12)
    assert float(term.phi) > 5 * term.null_mean
    assert term.p_value < 1e-6


def test_term_equals_the_measurement_of_the_same_projected_states() -> None:
    heads = coupled_heads()
    states = torch.einsum("btkd,kdr->btkr", heads, random_projections(4, 8, 2, seeded(3))).flatten(2)
    record = measure_states([states], 4)
    term = PhiObjective(rank=2)(heads, seeded(3))
    assert (record.cut, record.null_mean) == (term.cut, term.null_mean)
    assert float(term.phi) == pytest.approx(record.phi, rel=1e-6)


def test_gradient_at_the_heads_equals_a_directional_finite_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    # The shrinkage is a constant for the gradient by definition, so for the difference too.
    monkeypatch.setattr(gaussian, "oas_intensity", lambda covariance, num_samples: 0.01)
    heads = coupled_heads(4, 100, torch.float64)
    direction = torch.randn(heads.shape, generator=seeded(1), dtype=torch.float64)
    objective = PhiObjective(rank=2)

    def value(step: float) -> float:
        return float(objective(heads + step * direction, seeded()).phi01)

    heads.requires_grad_()
    objective(heads, seeded()).phi01.backward()
    slope = float((heads.grad * direction).sum())
    heads = heads.detach()
    assert slope == pytest.approx((value(1e-3) - value(-1e-3)) / 2e-3, rel=2e-3)


def test_a_step_along_the_gradient_raises_phi() -> None:
    heads = coupled_heads().requires_grad_()
    before = PhiObjective(rank=2)(heads, seeded())
    before.phi01.backward()
    step = 0.05 * heads.detach().norm() / heads.grad.norm()
    after = PhiObjective(rank=2)((heads + step * heads.grad).detach(), seeded())
    assert float(after.phi01) > float(before.phi01.detach())


def test_projections_come_from_the_generator_given_and_from_nowhere_else() -> None:
    heads = coupled_heads()
    objective = PhiObjective(rank=2)
    state = torch.get_rng_state()
    values = [float(objective(heads, seeded(seed)).phi) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert values[0] == values[1] != values[2]
    generator = seeded(0)
    assert float(objective(heads, generator).phi) != float(objective(heads, generator).phi)


def test_sham_destroys_integration_and_keeps_a_gradient() -> None:
    heads = coupled_heads().requires_grad_()
    real, sham = (PhiObjective(rank=2, sham=sham)(heads, seeded()) for sham in (False, True))
    sham.phi01.backward()
    assert float(sham.phi.detach()) < 2 * sham.null_mean < 5 * sham.null_mean < float(real.phi.detach())
    assert float(heads.grad.norm()) > 0


@pytest.mark.parametrize(
    "heads", [torch.zeros(2, 40, 4, 8), torch.ones(2, 40, 4, 8).bfloat16()], ids=["zero", "constant"]
)
def test_dead_heads_have_finite_phi_and_gradient(heads: torch.Tensor) -> None:
    heads.requires_grad_()
    term = PhiObjective(rank=2)(heads, seeded())
    term.phi01.backward()
    assert float(term.phi.detach()) == pytest.approx(0, abs=1e-9)
    assert bool(torch.isfinite(heads.grad).all())


def test_one_dead_head_is_not_blown_up_to_unit_variance() -> None:
    heads = coupled_heads()
    heads[:, :, 2] *= 1e-8
    term = PhiObjective(rank=2)(heads, seeded())
    assert term.cut == ((2,), (0, 1, 3))
    assert float(term.phi) < 1e-3


def test_projections_are_orthonormal() -> None:
    projections = random_projections(5, 12, 3, seeded())
    torch.testing.assert_close(projections.mT @ projections, torch.eye(3).expand(5, 3, 3))


def test_shrinkage_is_that_of_the_published_formula_and_clipped() -> None:
    series = torch.from_numpy(simulate([[0.5, 0.2], [0.1, 0.4]], torch.eye(2).numpy(), 60, seed=0))
    covariance = torch.corrcoef(torch.cat([series[:-1], series[1:]], dim=1).T)
    size, num_samples = 4, 59
    trace_of_square = float((covariance @ covariance).trace())
    expected = ((1 - 2 / size) * trace_of_square + size**2) / (
        (num_samples + 1 - 2 / size) * (trace_of_square - size**2 / size)
    )
    assert oas_intensity(covariance, num_samples) == pytest.approx(expected)
    assert oas_intensity(torch.eye(4, dtype=torch.float64), 1000) == 0.5
    assert oas_intensity(covariance, 10**9) == 1e-3
    rho = expected
    torch.testing.assert_close(
        joint_covariance(series[:-1], series[1:]),
        (1 - rho) * covariance + rho * torch.eye(4).double(),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (torch.zeros(2, 40, 8), ">= 2 units"),
        (torch.zeros(2, 40, 1, 8), ">= 2 units"),
        (torch.zeros(2, 9, 4, 8), "sequences of at least 10 positions"),
        (torch.zeros(2, 40, 4, 1), "rank=2: a unit has 1 channels"),
        (torch.full((2, 40, 4, 8), float("nan")), "NaN"),
    ],
)
def test_heads_that_do_not_fit_are_named_with_a_remedy(heads: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhiObjective(rank=2)(heads, seeded())


@pytest.mark.parametrize("setting", [{"rank": 0}, {"lag": 0}, {"num_dropped": -1}])
def test_settings_below_their_range_are_refused_at_once(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        PhiObjective(**setting)
