"""Phi_G against values of others: the authors' toolbox and exact algebra."""

import numpy as np
import pytest
import torch

from iit import phi_g
from tests.phi.reference_values import SIX_UNIT_SYSTEMS, TWO_NODE_SYSTEMS, SixUnitSystem, TwoNodeSystem
from tests.phi.systems import stationary_joint


@pytest.mark.parametrize("system", SIX_UNIT_SYSTEMS, ids=lambda system: system.name)
def test_phi_g_equals_the_authors_toolbox(system: SixUnitSystem) -> None:
    assert phi_g(np.array(system.joint_covariance), system.cut) == pytest.approx(system.phi_g, abs=1e-7)


def two_node(c: float) -> np.ndarray:
    return stationary_joint(np.full((2, 2), 0.4), [[1, c], [c, 1]])


@pytest.mark.parametrize("system", TWO_NODE_SYSTEMS, ids=lambda system: f"c={system.noise_correlation}")
def test_phi_g_equals_the_exact_algebra_of_two_nodes(system: TwoNodeSystem) -> None:
    assert phi_g(torch.from_numpy(two_node(system.noise_correlation)), [[0], [1]]) == pytest.approx(
        system.phi_g, abs=1e-8
    )


def test_two_uncoupled_blocks_have_phi_zero_between_and_the_published_phi_across() -> None:
    block = np.array([[0.2, 0.5], [0.5, 0.2]])
    joint = stationary_joint(np.kron(np.eye(2), block), np.eye(4))
    assert phi_g(joint, ([0, 1], [2, 3])) == pytest.approx(0, abs=1e-9)
    assert phi_g(joint, ([0, 2], [1, 3])) == pytest.approx(0.593302, abs=1e-6)
