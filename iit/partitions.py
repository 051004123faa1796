"""Cuts of a set of units into two parts, and the search for the minimum information partition.

Pure Python: a cut is two tuples of unit indices; what cuts cost is a function the caller gives.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

Part = tuple[int, ...]
Cut = tuple[Part, Part]

MAX_EXHAUSTIVE_UNITS = 8


def make_cut(part: Iterable[int], num_units: int) -> Cut:
    """The cut {part, rest} in normal form: the smaller part first, of two equal ones the one that holds unit 0."""
    inside = tuple(sorted(part))
    outside = tuple(unit for unit in range(num_units) if unit not in inside)
    first, second = sorted((inside, outside), key=lambda units: (len(units), units))
    return first, second


def bipartitions(num_units: int) -> Iterator[Cut]:
    """All 2^(num_units - 1) - 1 cuts of the units into two non-empty parts.

    Raises ValueError below two units.
    """
    if num_units < 2:
        raise ValueError(f"num_units={num_units}: a cut needs at least 2 units")
    for bits in range(1, 2 ** (num_units - 1)):
        # The last unit is never in `part`, so that no cut comes twice.
        yield make_cut((unit for unit in range(num_units - 1) if bits >> unit & 1), num_units)


def queyranne_cuts(num_units: int, cost_of: Callable[[Sequence[Cut]], Sequence[float]]) -> list[Cut]:
    """The num_units - 1 cuts among which Queyranne's algorithm finds the cheapest, in O(num_units^3) evaluations.

    Exact where the cost is a symmetric submodular set function; Phi is not quite one, so that here it is a search that
    is right most of the time. cost_of is asked for whole batches of cuts.
    Sources: Queyranne, Mathematical Programming 82:3 (1998); Hidaka & Oizumi, PLoS ONE 13:e0201126 (2018);
    Kitazono, Kanai & Oizumi, Entropy 20:173 (2018). Raises ValueError below two units.
    """
    if num_units < 2:
        raise ValueError(f"num_units={num_units}: a cut needs at least 2 units")
    groups: list[frozenset[int]] = [frozenset({unit}) for unit in range(num_units)]
    single_costs: dict[frozenset[int], float] = {}
    found: list[Cut] = []
    while len(groups) > 1:
        unknown = [group for group in groups if group not in single_costs]
        single_costs.update(zip(unknown, cost_of([make_cut(group, num_units) for group in unknown]), strict=True))
        next_to_last, last = _pendent_pair(groups, num_units, single_costs, cost_of)
        found.append(make_cut(last, num_units))
        groups = [group for group in groups if group not in (next_to_last, last)] + [next_to_last | last]
    return found


def neighbours(cut: Cut) -> list[Cut]:
    """The cuts one step away: one unit moved to the other part, or two units swapped."""
    first, second = (set(part) for part in cut)
    num_units = len(first) + len(second)
    moved = [first ^ {unit} for unit in range(num_units)]
    swapped = [first ^ {inside, outside} for inside in first for outside in second]
    return [make_cut(part, num_units) for part in moved + swapped if 0 < len(part) < num_units]


def _pendent_pair(
    groups: list[frozenset[int]],
    num_units: int,
    single_costs: dict[frozenset[int], float],
    cost_of: Callable[[Sequence[Cut]], Sequence[float]],
) -> tuple[frozenset[int], frozenset[int]]:
    """The last two groups of Queyranne's order: the next one is that with the least f(W + group) - f(group)."""
    order, rest = [groups[0]], groups[1:]
    while len(rest) > 1:
        gathered = frozenset().union(*order)
        joined = cost_of([make_cut(gathered | group, num_units) for group in rest])
        keys = [cost - single_costs[group] for cost, group in zip(joined, rest, strict=True)]
        order.append(rest.pop(keys.index(min(keys))))
    return order[-1], rest[0]
