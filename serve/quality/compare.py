"""Two ways of writing compared by the score of their texts: paired over prompts, with an interval. Numpy only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serve.quality.reference import GRADES
from serve.quality.score import QualityReport, QualityScorer
from serve.quality.text_statistics import distinct_n, self_bleu

ROUNDS = 10_000
Texts = Sequence[Sequence[str]]
Reports = Sequence[Sequence[QualityReport]]


def compare(texts: tuple[Texts, Texts], reports: tuple[Reports, Reports], *, seed: int = 0) -> dict[str, Any]:
    """texts[side][prompt][sample], and their reports. The difference is b - a; above 0, b scores higher.

    A prompt counts where both sides have a text that is long enough to score. The interval is the 95 % percentile
    bootstrap over prompts, each prompt's samples averaged first: None with fewer than two such prompts. Raises
    ValueError for sides of unequal prompts.
    """
    if len(texts[0]) != len(texts[1]) or not texts[0]:
        raise ValueError(f"prompts: a has {len(texts[0])} and b {len(texts[1])}; give both the same, at least one")
    means = [[_mean(row) for row in side] for side in reports]
    pairs = np.array([(a, b) for a, b in zip(*means, strict=True) if a is not None and b is not None])
    differences = pairs[:, 1] - pairs[:, 0] if len(pairs) else np.zeros(0)
    return {
        "a": _side(texts[0], reports[0]),
        "b": _side(texts[1], reports[1]),
        "difference": {
            "mean_score": float(differences.mean()) if len(differences) else None,
            "interval": _interval(differences, seed),
            "num_prompts": len(differences),
            "method": f"b - a, paired over prompts; 95 % percentile bootstrap over prompts, {ROUNDS} rounds",
        },
    }


def compare_models(
    a: Path, b: Path, prompts: Sequence[str], reference: Path, samples: int, num_tokens: int, *, seed: int = 0
) -> dict[str, Any]:
    """compare() of two model folders, each at its own decoding defaults, on serve.engine; sample i draws with seed + i.

    reference: a quality_reference.json or a folder with one; both are scored by it, from the text alone. Raises
    ValueError without prompts or with fewer than 1 sample.
    """
    from serve.engine.model_files import default_sampling_params
    from serve.quality.model_runs import generate

    if not prompts or samples < 1:
        raise ValueError(f"prompts: {len(prompts)}, samples: {samples}; give at least one of each")
    scorer = QualityScorer.load(reference)
    texts: list[list[list[str]]] = []
    reports: list[list[list[QualityReport]]] = []
    for model in (a, b):
        params = replace(default_sampling_params(model), max_new_tokens=num_tokens)
        written = generate(model, [prompt for prompt in prompts for _ in range(samples)], params, seed=seed)
        rows = [written[start : start + samples] for start in range(0, len(written), samples)]
        texts.append([[sample.text for sample in row] for row in rows])
        scored = [[scorer.score(s.text, num_tokens=len(s.surprise)) for s in row] for row in rows]
        reports.append(scored)
    found = compare((texts[0], texts[1]), (reports[0], reports[1]), seed=seed)
    return {"models": {"a": str(a), "b": str(b)}, "head": "text", "samples_per_prompt": samples} | found


def _mean(reports: Sequence[QualityReport]) -> float | None:
    scores = [report.score for report in reports if report.score is not None]
    return float(np.mean(scores)) if scores else None


def _side(texts: Texts, reports: Reports) -> dict[str, Any]:
    flat = [report for row in reports for report in row]
    scores = [report.score for report in flat if report.score is not None]
    grades = Counter(report.grade for report in flat if report.grade is not None)
    all_texts = [text for row in texts for text in row]
    return {
        "mean_score": float(np.mean(scores)) if scores else None,
        "grades": {grade: grades[grade] / len(scores) if scores else 0.0 for grade in [*GRADES, "POOR"]},
        "num_scored": len(scores),
        "num_too_short": len(flat) - len(scores),
        "distinct_1": distinct_n(all_texts, 1),
        "distinct_2": distinct_n(all_texts, 2),
        "self_bleu": self_bleu(all_texts) if len(all_texts) > 1 else None,
    }


def _interval(differences: "np.ndarray[Any, np.dtype[np.float64]]", seed: int) -> list[float] | None:
    if len(differences) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(differences), size=(ROUNDS, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    return [float(low), float(high)]
