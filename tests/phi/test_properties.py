"""What must hold for every stable linear-Gaussian system."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iit import minimum_cut, phi_g, time_delayed_mutual_information
from iit.disconnected import block_masks, fit_disconnected
from iit.measures import EXACT, phi_of_fit
from tests.phi.systems import Matrix, random_system, stationary_joint

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 6)
few = settings(max_examples=12, deadline=None, derandomize=True)


def random_cut(size: int, seed: int) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    channels = rng.permutation(size).tolist()
    border = int(rng.integers(1, size))
    return channels[:border], channels[border:]


def transformed(joint: Matrix, matrix: Matrix) -> Matrix:
    both = np.kron(np.eye(2), matrix)
    return both @ joint @ both.T


@few
@given(sizes, seeds)
def test_phi_lies_between_zero_and_the_mutual_information(size: int, seed: int) -> None:
    joint = random_system(size, seed)
    assert 0 <= phi_g(joint, random_cut(size, seed)) <= time_delayed_mutual_information(joint) + 1e-9


@few
@given(st.integers(1, 3), st.integers(1, 3), seeds)
def test_phi_is_zero_between_uncoupled_blocks_also_under_correlated_noise(left: int, right: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = left + right
    a = np.zeros((size, size))
    a[:left, :left], a[left:, left:] = rng.normal(size=(left, left)), rng.normal(size=(right, right))
    a *= 0.8 / max(np.abs(np.linalg.eigvals(a)).max(), 1e-3)
    mix = rng.normal(size=(size, size))
    joint = stationary_joint(a, mix @ mix.T + 0.2 * np.eye(size))
    assert phi_g(joint, (list(range(left)), list(range(left, size)))) == pytest.approx(0, abs=1e-8)


@few
@given(sizes, seeds)
def test_phi_does_not_change_under_invertible_maps_inside_a_part(size: int, seed: int) -> None:
    joint, cut = random_system(size, seed), random_cut(size, seed)
    rng = np.random.default_rng(seed)
    mix = np.zeros((size, size))
    for part in cut:
        rotation, _ = np.linalg.qr(rng.normal(size=(len(part), len(part))))
        mix[np.ix_(part, part)] = rotation * rng.uniform(0.1, 10, size=len(part))
    assert phi_g(transformed(joint, mix), cut) == pytest.approx(phi_g(joint, cut), abs=1e-7)


@few
@given(sizes, seeds)
def test_phi_does_not_depend_on_the_order_of_channels_or_parts(size: int, seed: int) -> None:
    joint, cut = random_system(size, seed), random_cut(size, seed)
    order = np.random.default_rng(seed).permutation(size)
    place = np.argsort(order)
    renamed = transformed(joint, np.eye(size)[order])
    moved = [[int(place[channel]) for channel in part] for part in cut]
    assert phi_g(renamed, moved[::-1]) == pytest.approx(phi_g(joint, cut), abs=1e-8)


@few
@given(st.integers(2, 5), seeds)
def test_minimum_cut_is_the_cheapest_per_channel_of_the_smaller_part(num_units: int, seed: int) -> None:
    joint = random_system(num_units * 2, seed)
    found = minimum_cut(torch.from_numpy(joint), num_units, EXACT)
    per_unit = {cut: value / len(cut[0]) for cut, value in found.phi_of_cuts.items()}
    assert len(per_unit) == 2 ** (num_units - 1) - 1
    assert per_unit[found.cut] == min(per_unit.values())
    channels = [[2 * unit + r for unit in part for r in (0, 1)] for part in found.cut]
    assert phi_g(joint, channels) == pytest.approx(float(found.phi), abs=1e-8)


@few
@given(st.integers(2, 5), seeds)
def test_the_fit_is_stationary_and_stays_inside_its_blocks(size: int, seed: int) -> None:
    joint = torch.from_numpy(random_system(size, seed))
    labels = torch.ones(1, size, dtype=torch.int64)
    labels[0, random_cut(size, seed)[0]] = 0
    masks = block_masks(labels)
    b = fit_disconnected(joint, masks, tolerance=1e-14, max_rounds=2000)
    assert torch.equal(b * masks, b)
    b.requires_grad_()
    (gradient,) = torch.autograd.grad(phi_of_fit(joint, b).sum(), b)
    assert float((gradient * masks).abs().max()) < 1e-5


@pytest.mark.parametrize(("num_units", "rank"), [(2, 2), (3, 1)])
def test_envelope_gradient_equals_finite_differences_of_the_whole_minimisation(num_units: int, rank: int) -> None:
    joint = torch.from_numpy(random_system(num_units * rank, seed=num_units, radius=0.5))
    factor = torch.linalg.cholesky(joint).requires_grad_()
    assert torch.autograd.gradcheck(lambda lower: minimum_cut(lower @ lower.mT, num_units, EXACT).phi, factor)


@pytest.mark.parametrize(
    ("joint", "cut", "message"),
    [
        (np.eye(3), [[0], [1]], r"shape \(3, 3\)"),
        (np.eye(4), [[0], [0, 1]], "each channel 0..1 once"),
        (np.eye(4), [[], [0, 1]], "two non-empty lists"),
        (np.eye(4), [[0]], "two non-empty lists"),
        (np.ones((4, 4)), [[0], [1]], "not positive definite"),
        (np.triu(np.ones((4, 4))), [[0], [1]], "symmetric"),
        (np.full((4, 4), np.nan), [[0], [1]], "NaN"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(joint: Matrix, cut: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phi_g(joint, cut)


def test_nested_lists_numpy_and_torch_give_the_same_float() -> None:
    joint = random_system(4, seed=3)
    values = [phi_g(kind, [[0, 3], [1, 2]]) for kind in (joint, torch.from_numpy(joint), joint.tolist())]
    assert values[0] == values[1] == values[2]
    assert type(values[0]) is float
