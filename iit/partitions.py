"""Cuts of a set of units into two parts, and the search for the minimum information partition.

Pure Python: a cut is two tuples of unit indices; what a cut costs is a function the caller gives.
"""

from collections.abc import Iterator

Part = tuple[int, ...]
Cut = tuple[Part, Part]

MAX_EXHAUSTIVE_UNITS = 8


def make_cut(part: frozenset[int] | set[int], num_units: int) -> Cut:
    """The cut {part, rest} in normal form: the smaller part first, of two equal ones the one that holds unit 0."""
    inside = tuple(sorted(part))
    outside = tuple(unit for unit in range(num_units) if unit not in part)
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
        yield make_cut({unit for unit in range(num_units - 1) if bits >> unit & 1}, num_units)
