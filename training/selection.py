"""Which arm is best: by held-out bits per byte with its error over seeds, and which arms cannot be told from it.

Pure arithmetic on the lines of results.jsonl. Phi and training loss have no say.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t


@dataclass(frozen=True)
class ArmResult:
    """An arm's held-out bits per byte over seeds. half_width: of the 95 % t interval, None below two seeds.

    difference: mean over the shared seeds of this arm's figure less the best arm's, with the half width of its 95 % t
    interval; None for the best arm itself, and where fewer than two seeds are shared.
    """

    arm: str
    values: dict[int, float]
    mean: float
    half_width: float | None
    num_excluded: int
    difference: tuple[float, float] | None = None

    @property
    def is_tied(self) -> bool:
        """Whether the interval of the difference from the best arm holds zero, or there is none."""
        return self.difference is None or abs(self.difference[0]) <= self.difference[1]


def rank_arms(results: Sequence[dict[str, Any]]) -> list[ArmResult]:
    """Arms by mean held-out bits per byte, the lowest first. Arms with no finished run come last, with an infinite
    mean.
    """
    by_arm: dict[str, dict[int, float]] = {}
    excluded: dict[str, int] = {}
    for result in results:
        values = by_arm.setdefault(result["arm"], {})
        if result["status"] == "finished":
            values[result["seed"]] = result["held_out"]["bits_per_byte"]
        else:
            excluded[result["arm"]] = excluded.get(result["arm"], 0) + 1
    arms = [
        ArmResult(arm, values, *_mean_and_half_width(list(values.values())), excluded.get(arm, 0))
        for arm, values in by_arm.items()
    ]
    # An arm that lost a seed to divergence is no candidate: its mean is over the runs that went well.
    arms.sort(key=lambda arm: (arm.num_excluded > 0, arm.mean))
    return [_against(arms[0], arm) for arm in arms] if arms else []


def describe(arms: Sequence[ArmResult], num_tokens: int) -> str:
    """The table and the verdict, as text."""
    width = max(len(arm.arm) for arm in arms)
    lines = [f"{'arm':<{width}}  seeds  held-out bits per byte   less the best, paired"]
    for arm in arms:
        spread = "" if arm.half_width is None else f" ± {arm.half_width:.4f}"
        figure = f"{arm.mean:.4f}{spread}" if arm.values else "no finished run"
        paired = "" if arm.difference is None else f"{arm.difference[0]:+.4f} ± {arm.difference[1]:.4f}"
        dropped = f"  ({arm.num_excluded} pruned or diverged)" if arm.num_excluded else ""
        lines.append(f"{arm.arm:<{width}}  {len(arm.values):>5}  {figure:<23}  {paired}{dropped}".rstrip())
    lines.append(f"± is the half width of a 95 % t interval over seeds; valid split, {num_tokens:,} tokens.")
    return "\n".join([*lines, _verdict(arms)])


def _verdict(arms: Sequence[ArmResult]) -> str:
    best = arms[0]
    if not best.values or best.num_excluded:
        return "No arm finished under all of its seeds: nothing is selected."
    tied = [arm.arm for arm in arms[1:] if arm.values and not arm.num_excluded and arm.is_tied]
    caution = f"It is the lowest of {len(arms)}, so its own figure flatters it: confirm it on fresh seeds."
    if len(arms) == 1:
        return f"One arm only: {best.arm}; nothing to select from."
    if not tied:
        return f"Selected: {best.arm}, apart from every other arm by more than its error. {caution}"
    return f"Lowest: {best.arm}; within error of it: {', '.join(tied)}. {caution}"


def _mean_and_half_width(values: list[float]) -> tuple[float, float | None]:
    if not values:
        return float("inf"), None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    error = statistics.stdev(values) / len(values) ** 0.5
    return mean, float(student_t.ppf(0.975, len(values) - 1)) * error


def _against(best: ArmResult, arm: ArmResult) -> ArmResult:
    shared = sorted(best.values.keys() & arm.values.keys())
    if arm is best or len(shared) < 2:
        return arm
    mean, half_width = _mean_and_half_width([arm.values[seed] - best.values[seed] for seed in shared])
    assert half_width is not None
    return ArmResult(arm.arm, arm.values, arm.mean, arm.half_width, arm.num_excluded, (mean, half_width))
