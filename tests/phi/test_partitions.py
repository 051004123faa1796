"""Cuts and their search."""

import random
from collections.abc import Sequence

import pytest
import torch

from iit.measures import minimum_cut, minimum_cut_by_queyranne
from iit.partitions import Cut, _pendent_pair, bipartitions, make_cut, neighbours, queyranne_cuts
from tests.phi.systems import random_system


@pytest.mark.parametrize("num_units", range(2, 9))
def test_bipartitions_are_all_distinct_and_complete(num_units: int) -> None:
    cuts = list(bipartitions(num_units))
    assert len(set(cuts)) == len(cuts) == 2 ** (num_units - 1) - 1
    assert all(
        sorted(first + second) == list(range(num_units)) and 0 < len(first) <= len(second) for first, second in cuts
    )
    assert all(make_cut(second, num_units) == (first, second) for first, second in cuts)


def test_one_unit_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="at least 2 units"):
        list(bipartitions(1))
    with pytest.raises(ValueError, match="at least 2 units"):
        queyranne_cuts(1, lambda cuts: [0.0] * len(cuts))


@pytest.mark.parametrize("seed", range(30))
def test_queyranne_is_exact_on_a_submodular_function(seed: int) -> None:
    rng = random.Random(seed)
    num_units = rng.randint(4, 8)
    cluster = [rng.randint(0, 2) for _ in range(num_units)]  # or the cheapest cut would be one unit nearly always
    weight = {
        (i, j): rng.random() * (1 if cluster[i] == cluster[j] else 0.2) for i in range(num_units) for j in range(i)
    }

    def graph_cut(cuts: Sequence[Cut]) -> list[float]:
        return [sum(w for (i, j), w in weight.items() if (i in first) != (j in first)) for first, _ in cuts]

    groups = [frozenset({unit}) for unit in range(num_units)]
    single_costs = dict(zip(groups, graph_cut([make_cut(group, num_units) for group in groups]), strict=True))
    first, last = _pendent_pair(groups, num_units, single_costs, graph_cut)
    separating = [cut for cut in bipartitions(num_units) if (first <= set(cut[0])) != (last <= set(cut[0]))]
    assert single_costs[last] == pytest.approx(min(graph_cut(separating)), abs=1e-12)  # Queyranne's theorem
    found = min(graph_cut(queyranne_cuts(num_units, graph_cut)))
    assert found == pytest.approx(min(graph_cut(list(bipartitions(num_units)))), abs=1e-12)


def test_queyranne_asks_for_a_cubic_number_of_cuts() -> None:
    asked = 0

    def cost(cuts: Sequence[Cut]) -> list[float]:
        nonlocal asked
        asked += len(cuts)
        return [float(len(first)) for first, _ in cuts]

    queyranne_cuts(16, cost)
    assert asked < 16**3 / 5 < 2**15 / 10


def test_search_by_queyranne_equals_exhaustive_search_at_eight_units() -> None:
    # Phi is not submodular, so the search may miss; on 60 random systems outside this test it never did.
    for seed in range(3):
        joint = torch.from_numpy(random_system(8, seed, radius=0.5))
        exhaustive, searched = minimum_cut(joint, 8), minimum_cut_by_queyranne(joint, 8)
        assert searched.cut == exhaustive.cut
        assert float(searched.phi) == pytest.approx(float(exhaustive.phi), abs=1e-6)
        assert len(searched.phi_of_cuts) < len(exhaustive.phi_of_cuts)


def test_more_than_eight_units_are_searched_without_trying_all_cuts() -> None:
    joint = torch.from_numpy(random_system(10, 0))
    found = minimum_cut(joint, 10)
    assert found.phi_of_cuts[found.cut] == pytest.approx(float(found.phi), abs=1e-6)
    assert len(found.phi_of_cuts) < 2**9 - 1


def test_neighbours_are_one_move_or_swap_away() -> None:
    assert set(neighbours(((0,), (1, 2)))) == {((2,), (0, 1)), ((1,), (0, 2))}
