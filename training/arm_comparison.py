"""Arms against arms, paired by seed: the tests, or the reason why there is no comparison. No files, no text layout."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from training.results import Result, differing, finished
from training.statistics import PairedComparison, compare_pairs, equivalence_p, holm, paired_differences

MIN_PAIRS = 3
TESTS = ("sign_flip", "t")


@dataclass(frozen=True)
class ArmComparison:
    """Held-out bits per byte of `arm` less that of `reference`; below zero is better. refusal: why there is none.

    different: the one thing that differs. apart_from: what differs besides and was declared not to count.
    equivalence_p: of two one-sided t tests in nats per token. holm_p: over the comparisons made together.
    """

    arm: str
    reference: str
    seeds: tuple[int, ...]
    different: tuple[str, ...] = ()
    apart_from: tuple[str, ...] = ()
    num_unpaired: int = 0
    refusal: str | None = None
    pairs: PairedComparison | None = None
    phi01: PairedComparison | None = None
    equivalence_p: float | None = None
    holm_p: float | None = None
    differences: tuple[float, ...] = ()


def compare_arms(
    results: Sequence[Result], arm: str, reference: str, apart_from: Collection[str] = (), *, margin: float
) -> ArmComparison:
    """One comparison. margin in nats per token. Raises ValueError for an arm that is not there."""
    for name in (arm, reference):
        if not any(result["arm"] == name for result in results):
            raise ValueError(f"arm={name!r}: there are {', '.join(sorted({r['arm'] for r in results}))}")
    of_arm, of_reference = finished(results, arm), finished(results, reference)
    seeds = tuple(sorted(of_arm.keys() & of_reference.keys()))
    names = sorted({name for seed in seeds for name in differing(of_arm[seed], of_reference[seed])})
    different = tuple(name for name in names if name not in apart_from) or tuple(names)
    declared = tuple(name for name in names if name not in different)
    unpaired = len({r["seed"] for r in results if r["arm"] in (arm, reference)}) - len(seeds)
    comparison = ArmComparison(arm, reference, seeds, different, declared, unpaired)
    if refusal := _refusal(comparison):
        return replace(comparison, refusal=refusal)
    a, b = ([runs[seed]["held_out"] for seed in seeds] for runs in (of_arm, of_reference))
    bits = [[run["bits_per_byte"] for run in side] for side in (a, b)]
    nats = [[run["nats_per_token"] for run in side] for side in (a, b)]
    phi01 = [[runs[seed]["phi"]["phi01"] for seed in seeds] for runs in (of_arm, of_reference)]
    return replace(
        comparison,
        pairs=compare_pairs(*bits),
        phi01=compare_pairs(*phi01),
        equivalence_p=equivalence_p(paired_differences(*nats), margin),
        differences=tuple(float(x) for x in paired_differences(*bits)),
    )


def _refusal(comparison: ArmComparison) -> str | None:
    num_pairs = len(comparison.seeds)
    if num_pairs < MIN_PAIRS:
        have = f"seeds {', '.join(map(str, comparison.seeds))}" if num_pairs else "none"
        return (
            f"{num_pairs} pairs of finished runs with the same seed ({have}); run {MIN_PAIRS - num_pairs} more seeds "
            "under both arms"
        )
    if not comparison.different:
        return "the arms are the same runs: nothing differs between them"
    if len(comparison.different) > 1:
        return (
            f"{len(comparison.different)} things differ: {', '.join(comparison.different)}; missing is an arm that "
            f"differs from {comparison.reference} in one of them alone"
        )
    return None


def with_holm(comparisons: Sequence[ArmComparison], test: str) -> list[ArmComparison]:
    """The comparisons with holm_p over those that were made. test: sign_flip or t."""
    if test not in TESTS:
        raise ValueError(f"test={test!r}: choose from {', '.join(TESTS)}")
    made = [c for c in comparisons if c.pairs is not None]
    adjusted = iter(holm([_p(c, test) for c in made]))
    return [c if c.pairs is None else replace(c, holm_p=next(adjusted)) for c in comparisons]


def _p(comparison: ArmComparison, test: str) -> float:
    assert comparison.pairs is not None
    return comparison.pairs.sign_flip_p if test == "sign_flip" else comparison.pairs.t_p
