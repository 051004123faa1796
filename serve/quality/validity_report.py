"""Write what validate.py measured: a table in Markdown, JSON, and plots (matplotlib, the `train` extra). Offline."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from serve.quality.validate import Row, Validity

BEGIN, END = "<!-- validity: begin, written by `python -m serve.quality validate` -->", "<!-- validity: end -->"


def write_report(validity: Validity, markdown: Path) -> list[Path]:
    """Put the table between the markers of `markdown` (made if missing); JSON and plots into a folder of its name."""
    folder = markdown.parent / markdown.stem
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "validity.json"
    data.write_text(json.dumps(_json(validity), indent=1) + "\n", encoding="utf-8")
    plots = _plots(validity, folder)
    images = "\n".join(f"![{path.stem.replace('_', ' ')}]({folder.name}/{path.name})" for path in plots)
    body = f"{BEGIN}\n{table(validity)}\n\n{images}\n{END}"
    old = markdown.read_text(encoding="utf-8") if markdown.exists() else f"# Quality\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise ValueError(f"{markdown} lacks the line '{BEGIN}' or '{END}': add both where the table belongs")
    before, _, rest = old.partition(BEGIN)
    markdown.write_text(before + body + rest.partition(END)[2], encoding="utf-8")
    return [markdown, data, *plots]


def table(validity: Validity) -> str:
    """The rows, required ones and shown ones alike, misses marked."""
    lines = ["| row | head | found | 95 % interval | required | met | seed_score |", "|---|---|---|---|---|---|---|"]
    for row in validity.rows:
        low, high = row.found.low, row.found.high
        interval = "" if math.isnan(low) else f"{low:.3f} .. {high:.3f}"
        met = "" if row.met is None else ("yes" if row.met else "**no**")
        seed = "" if row.seed_score is None else f"{row.seed_score:.3f}"
        lines.append(
            f"| {row.name} | {row.head} | {row.found.value:.3f} | {interval} | {row.required} | {met} | {seed} |"
        )
    if validity.steps:
        lines += ["", "| training step | mean score | 95 % interval | seed_score |", "|---|---|---|---|"]
        lines += [f"| {s} | {i.value:.3f} | {i.low:.3f} .. {i.high:.3f} | {x:.3f} |" for s, i, x in validity.steps]
    s = validity.setting
    genres = ", ".join(g["name"] for g in s["genres"]) or "none"
    lines += [
        "",
        f"Human text: {s['corpus']['name']} (SHA-256 {s['corpus']['sha256'][:12]}); genres: {genres}. "
        f"{s['num_passages']} human passages, {s['num_spoiled']} of each kind, {s['num_samples']} generations of each "
        f"model, seed {s['seed']}; "
        "intervals: 1,000 bootstrap resamples of passages. seed_score: the same statistic of the old formula. "
        "validity.json holds everything, the reference's origin included.",
    ]
    return "\n".join(lines)


def _row_json(row: Row) -> dict[str, Any]:
    low, high = row.found.low, row.found.high
    return {
        "name": row.name,
        "head": row.head,
        "value": round(row.found.value, 5),
        "interval": None if math.isnan(low) else [round(low, 5), round(high, 5)],
        "required": row.required,
        "met": row.met,
        "seed_score": row.seed_score,
    }


def _json(validity: Validity) -> dict[str, Any]:
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    return {
        "setting": validity.setting,
        "rows": [_row_json(row) for row in validity.rows],
        "steps": [{"step": s, **i.to_json(), "seed_score": round(x, 4)} for s, i, x in validity.steps],
        "reliability": [[round(x, 4) for x in point] for point in validity.reliability],
        "score_quantiles": {
            kind: [round(float(q), 4) for q in np.quantile(scores, quantiles)]
            for kind, scores in validity.scores.items()
        },
    }


def _plots(validity: Validity, folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = [folder / "score_by_kind.png", folder / "reliability.png"]
    kinds = sorted(validity.scores, key=lambda kind: -float(np.median(validity.scores[kind])))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.24 * len(kinds) + 1.2), sharey=True, layout="constrained")
    for axis, source, title in ((axes[0], validity.scores, "score"), (axes[1], validity.seed_scores, "seed_score")):
        shown = [kind for kind in kinds if kind in source]
        positions = [len(kinds) - kinds.index(kind) for kind in shown]
        axis.boxplot(
            [source[kind] for kind in shown], orientation="horizontal", positions=positions, sym=".", widths=0.6
        )
        axis.set_yticks(range(len(kinds), 0, -1), kinds, fontsize=7)
        axis.set_xlim(0, 1.02)
        axis.set_title(title)
    figure.savefig(paths[0], dpi=90)
    figure, axis = pyplot.subplots(figsize=(4, 4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axis.plot([p[0] for p in validity.reliability], [p[1] for p in validity.reliability], marker="o")
    axis.set(xlabel="mean score", ylabel="share of human passages", title="Reliability, held-out passages")
    figure.savefig(paths[1], dpi=90)
    if validity.steps:
        paths.append(folder / "score_by_step.png")
        figure, axis = pyplot.subplots(figsize=(5, 4), layout="constrained")
        steps = [s for s, _, _ in validity.steps]
        values = np.array([i.value for _, i, _ in validity.steps])
        around = np.array([[i.value - i.low, i.high - i.value] for _, i, _ in validity.steps]).T
        axis.errorbar(steps, values, yerr=around, marker="o", label="score")
        axis.plot(steps, [x for _, _, x in validity.steps], marker="x", label="seed_score")
        axis.set(xlabel="training step", ylabel="mean over samples", ylim=(0, 1.05))
        axis.legend()
        figure.savefig(paths[2], dpi=90)
    pyplot.close("all")
    return paths
