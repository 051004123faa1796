"""The pictures of a report: learning curves with bands, the forest of differences, Phi against its null.

matplotlib only.
A band or an interval is drawn from three runs up; below that the runs are drawn one by one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.arm_comparison import MIN_PAIRS, ArmComparison
from training.report_page import to_svg
from training.results import Result
from training.statistics import t_interval


def curves(runs: Mapping[str, Sequence[Result]], caption: str) -> str:
    """Held-out bits per byte and Phi by step: mean and 95 % t interval over seeds. SVG."""
    figure, axes = _figure(2, caption, 4.2)
    for axis, column, label in ((axes[0], 1, "held-out bits per byte"), (axes[1], 2, "held-out Phi_G, nats")):
        for number, (arm, of_arm) in enumerate(runs.items()):
            color, style = f"C{number % 10}", "-" if number < 10 else "--"
            name = f"{arm} (n = {len(of_arm)})"
            steps = sorted(set.intersection(*({point[0] for point in run["curve"]} for run in of_arm)))
            values = np.asarray([[p[column] for p in run["curve"] if p[0] in steps] for run in of_arm])
            if len(of_arm) < MIN_PAIRS:
                for number_of_run, line in enumerate(values):
                    axis.plot(steps, line, style, color=color, lw=0.8, label=name if number_of_run == 0 else None)
                continue
            bands = [t_interval(values[:, k]) for k in range(len(steps))]
            axis.plot(steps, [band.value for band in bands], style, color=color, marker="o", ms=3, label=name)
            axis.fill_between(steps, [b.low for b in bands], [b.high for b in bands], color=color, alpha=0.15, lw=0)
        axis.set(xlabel="step", ylabel=label)
    axes[0].legend(fontsize=7)
    return to_svg(figure)


def forest(comparisons: Sequence[ArmComparison], caption: str) -> str:
    """Differences with 95 % t intervals, each pair a dot. SVG."""
    figure, (axis,) = _figure(1, caption, 1.6 + 0.45 * len(comparisons))
    for row, comparison in enumerate(reversed(comparisons)):
        assert comparison.pairs is not None
        interval = comparison.pairs.difference
        axis.plot(comparison.differences, [row] * len(comparison.differences), "o", color="0.7", ms=4, zorder=1)
        axis.plot([interval.low, interval.high], [row, row], "-", color="C0", lw=2)
        axis.plot([interval.value], [row], "D", color="C0", ms=6)
    axis.axvline(0, color="0.4", lw=0.8, ls="--")
    names = [f"{c.arm} less {c.reference} (n = {len(c.seeds)})" for c in reversed(comparisons)]
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="held-out bits per byte, paired by seed; below zero is better", ylim=(-0.6, len(names) - 0.4))
    return to_svg(figure)


def phi_against_null(runs: Mapping[str, Sequence[Result]], caption: str) -> str:
    """Held-out Phi_G of every run, and the mean it has where there is nothing to find. SVG."""
    figure, (axis,) = _figure(1, caption, 3.8)
    for place, of_arm in enumerate(runs.values()):
        for run in of_arm:
            axis.plot([place], [run["phi"]["phi"]], "o", color="C0", ms=4, alpha=0.7)
            axis.plot([place - 0.3, place + 0.3], [run["phi"]["null_mean"]] * 2, "-", color="C3", lw=1)
    names = [f"{arm}\nn = {len(of_arm)}" for arm, of_arm in runs.items()]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set(ylabel="Phi_G, nats (red: mean under the null)", ylim=(0, None))
    return to_svg(figure)


def _figure(columns: int, caption: str, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    figure.suptitle(caption, fontsize=8)
    return figure, figure.subplots(1, columns, squeeze=False)[0]
