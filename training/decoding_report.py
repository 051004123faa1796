"""Write what training.tune_decoding found: a table in Markdown, JSON, and a plot. Offline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_store.staging import replace_file
from serve.quality.statistics import Interval
from training.decoding_trials import TUNED, Outcome, Trial, difference


def write_report(outcome: Outcome, facts: Mapping[str, Any], folder: Path) -> None:
    """report.md, summary.json and decoding.png in the folder."""
    stages, held_out = outcome.stages, outcome.held_out
    mauve, distance = outcome.people
    content = {
        "verdict": outcome.verdict,
        "facts": dict(facts),
        "people": {"mauve": mauve.to_json(), "score_distance": round(distance, 4)},
        "stages": [[_without_draws(trial) for trial in stage] for stage in stages],
        "held_out": [
            {**_without_draws(trial), "winner_less_this": difference(held_out[0], trial).to_json()}
            for trial in held_out
        ],
    }
    replace_file(folder / "summary.json", (json.dumps(content, indent=1) + "\n").encode())
    replace_file(folder / "report.md", report(outcome, facts).encode())
    _plot(stages, held_out, folder / "decoding.png")


def report(outcome: Outcome, facts: Mapping[str, Any]) -> str:
    """The verdict, the held-out check and every stage of the race."""
    stages, held_out, (mauve, distance) = outcome.stages, outcome.held_out, outcome.people
    winner = held_out[0]
    n = winner.num_prompts
    lines = [
        outcome.verdict,
        "",
        f"Held out, n = {n} prompts; the winner's gap less the row's in the last column:",
        "",
        _header("winner less this"),
    ]
    lines += [_row(trial, "" if trial is winner else _shown(difference(winner, trial))) for trial in held_out]
    lines += [
        "",
        f"The yardstick: human text of the two halves against each other has MAUVE {_shown(mauve)} and score distance "
        f"{distance:.3f}.",
    ]
    for number, stage in enumerate(stages, 1):
        lines += ["", f"Race, stage {number}, n = {stage[0].num_prompts} prompts of the selection half:", ""]
        lines += [_header(""), *(_row(trial, "") for trial in stage)]
    splits = facts["dataset"]["splits"]
    lines += [
        "",
        f"{facts['model']}, {facts['dataset']['name']} {facts['split']} (SHA-256 "
        f"{splits[facts['split']]['sha256'][:12]}, {splits[facts['split']]['documents']} documents), "
        f"{facts['prompt_tokens']} tokens of prompt, {facts['continuation_tokens']} of continuation, seed "
        f"{facts['seed']}, {facts['runner']} runner. 95 % intervals, {facts['num_bootstrap']} bootstrap resamples.",
        "",
    ]
    return "\n".join(lines)


def _header(last: str) -> str:
    titles = ["setting", *TUNED, "MAUVE", "mean score", "score distance", "gap", last]
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


def _row(trial: Trial, last: str) -> str:
    values = [f"{trial.setting[name]:g}" for name in TUNED]
    figures = [_shown(x) for x in (trial.mauve, trial.score, trial.score_distance, trial.gap)]
    return f"| {' | '.join([trial.name, *values, *figures, last])} |"


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _without_draws(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.to_json().items() if name != "draws"}


def _plot(stages: Sequence[Sequence[Trial]], held_out: Sequence[Trial], path: Path) -> None:
    """Left: every setting of the first stage by its two parts of the gap. Right: the held-out gaps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    parts, gaps = figure.subplots(1, 2)
    shown = [trial for trial in stages[0] if trial.gap.value < 1]
    parts.scatter([1 - t.mauve.value for t in shown], [t.score_distance.value for t in shown], s=14)
    for trial in shown:
        label = " ".join(f"{trial.setting[name]:g}" for name in TUNED)
        parts.annotate(label, (1 - trial.mauve.value, trial.score_distance.value), fontsize=5)
    title = f"stage 1, n = {stages[0][0].num_prompts}; settings with gap < 1\n(labels: {', '.join(TUNED)})"
    parts.set_title(title, fontsize=8)
    parts.set(xlabel="1 - MAUVE", ylabel="score distance")
    at = range(len(held_out), 0, -1)
    values = [trial.gap.value for trial in held_out]
    around = [
        [max(0.0, t.gap.value - t.gap.low) for t in held_out],
        [max(0.0, t.gap.high - t.gap.value) for t in held_out],
    ]
    gaps.errorbar(values, list(at), xerr=around, fmt="o", capsize=3)
    names = [f"winner: {held_out[0].name}", *(trial.name for trial in held_out[1:])]
    gaps.set_yticks(list(at), names)
    gaps.set_title(f"held out, n = {held_out[0].num_prompts}", fontsize=8)
    gaps.set_xlabel("gap to human text, 95 % interval")
    gaps.set_xlim(left=0)
    partial = path.with_name(path.name + ".partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)
