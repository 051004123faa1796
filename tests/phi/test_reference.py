"""Phi_G against values of others: the authors' toolbox and exact algebra."""

import numpy as np
import pytest
import torch

from iit import phi_g, phi_r, stochastic_interaction, time_delayed_mutual_information
from iit.measures import whole_minus_sum
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


@pytest.mark.parametrize("system", TWO_NODE_SYSTEMS, ids=lambda system: f"c={system.noise_correlation}")
def test_the_other_measures_equal_the_exact_algebra_of_two_nodes(system: TwoNodeSystem) -> None:
    joint, cut = two_node(system.noise_correlation), [[0], [1]]
    assert time_delayed_mutual_information(joint) == pytest.approx(system.tdmi, abs=1e-8)
    assert whole_minus_sum(joint, cut) == pytest.approx(system.whole_minus_sum, abs=1e-8)
    assert phi_r(joint, cut) == pytest.approx(system.phi_r, abs=1e-8)
    assert stochastic_interaction(joint, cut) == pytest.approx(system.stochastic_interaction, abs=1e-8)


def test_stochastic_interaction_counts_a_common_drive_that_phi_g_ignores() -> None:
    joint = stationary_joint(np.zeros((2, 2)), [[1, 0.9], [0.9, 1]])
    assert stochastic_interaction(joint, [[0], [1]]) == pytest.approx(0.830366, abs=1e-6)
    assert time_delayed_mutual_information(joint) == pytest.approx(0, abs=1e-12)
    assert phi_g(joint, [[0], [1]]) == pytest.approx(0, abs=1e-12)


def test_redundancy_of_phi_r_is_the_least_information_over_all_pairs_of_parts() -> None:
    joint = stationary_joint([[0.5, 0], [0.6, 0.3]], np.eye(2))

    def information(source: int, target: int) -> float:
        pair = joint[np.ix_([source, 2 + target], [source, 2 + target])]
        return -0.5 * np.log(1 - pair[0, 1] ** 2 / (pair[0, 0] * pair[1, 1]))

    values = {(source, target): information(source, target) for source in (0, 1) for target in (0, 1)}
    assert min(values, key=values.__getitem__) == (1, 0)
    cut = [[0], [1]]
    assert phi_r(joint, cut) - whole_minus_sum(joint, cut) == pytest.approx(values[1, 0], abs=1e-12)
