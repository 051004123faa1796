"""Draw Phi by layer with its null bands, and a heat map of all cuts, to a PNG. Needs matplotlib; opens no window."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iit.measurement import Phi


def plot_layers(records: Sequence[Phi], path: Path, *, title: str, layers: Sequence[int] | None = None) -> None:
    """Write the figure. layers names the records (default 0, 1, ...)."""
    names = list(layers) if layers is not None else list(range(len(records)))
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_values(left, records, names)
    _draw_cuts(right, records, names)
    figure.suptitle(f"{title}: {records[0].num_pairs} pairs, lag {records[0].lag}, rank {records[0].rank}", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_values(axes: Axes, records: Sequence[Phi], names: list[int]) -> None:
    positions = np.arange(len(records))
    axes.plot(positions, [record.phi for record in records], "o-", label="Phi_G at the minimum cut")
    axes.plot(positions, [record.phi_r for record in records], "s:", label="Phi^R at that cut")
    axes.plot(positions, [record.null_mean for record in records], "--", color="grey", label="null mean d1 d2 / N")
    highs = [record.surrogate_quantile_95 for record in records]
    if None not in highs:
        band = np.array(highs, dtype=float)
        axes.fill_between(positions, 0, band, alpha=0.3, color="grey", label="95 % of time-shift surrogates")
    axes.set(xlabel="layer", ylabel="nats", xticks=positions, xticklabels=names, title="Phi by layer")
    axes.set_ylim(bottom=min([0.0, *(1.05 * record.phi_r for record in records)]))
    axes.legend(fontsize=8)


def _draw_cuts(axes: Axes, records: Sequence[Phi], names: list[int]) -> None:
    # Beyond 8 units each layer's search visits its own cuts: only those all layers share can stand in one map.
    shared = [cut for cut in records[0].phi_of_cuts if all(cut in record.phi_of_cuts for record in records)]
    shared.sort(key=lambda cut: (len(cut[0]), cut))
    values = np.array([[record.phi_of_cuts[cut] / (len(cut[0]) * record.rank) for record in records] for cut in shared])
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    labels = [" ".join(map(str, cut[0])) for cut in shared]
    every = max(1, len(shared) // 40)
    axes.set(xlabel="layer", ylabel="units of the smaller part", xticks=range(len(records)), xticklabels=names)
    axes.set_yticks(range(0, len(shared), every), labels[::every], fontsize=7)
    best = [shared.index(record.cut) if record.cut in shared else None for record in records]
    points = [(column, row) for column, row in enumerate(best) if row is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "rx", label="minimum information partition")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes.set_title("Phi(cut) / d1 of every cut, nats")
    axes.figure.colorbar(image, ax=axes)
