"""The comparison of two ways of writing: pairing, the interval, and what it leaves out."""

import json
import random
import shutil
from pathlib import Path

import pytest

from serve.quality.__main__ import main
from serve.quality.compare import compare
from serve.quality.score import QualityReport

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"


def report(score: float | None) -> QualityReport:
    grade = None if score is None else ("EXCELLENT" if score > 0.5 else "POOR")
    reason = "too short" if score is None else None
    return QualityReport(score, grade, reason, 40, "text", None, {}, {}, 0.0)


def sides(*scores: list[list[float | None]]) -> tuple[tuple, tuple]:
    texts = tuple([[f"text {i} of {j}" for j, _ in enumerate(row)] for i, row in enumerate(side)] for side in scores)
    reports = tuple([[report(score) for score in row] for row in side] for side in scores)
    return texts, reports


def test_the_difference_is_paired_over_prompts() -> None:
    """Prompts differ by far more than the settings do: only pairing can tell them apart."""
    rng = random.Random(0)
    levels = [rng.random() * 0.8 for _ in range(40)]
    texts, reports = sides(
        [[level + rng.gauss(0, 0.005) for _ in range(2)] for level in levels],
        [[level + 0.02 + rng.gauss(0, 0.005) for _ in range(2)] for level in levels],
    )
    found = compare(texts, reports)["difference"]
    assert found["mean_score"] == pytest.approx(0.02, abs=0.005)
    assert 0 < found["interval"][0] < 0.02 < found["interval"][1] < 0.03
    assert found["num_prompts"] == 40


def test_the_interval_misses_no_difference_in_at_most_about_5_of_100() -> None:
    """200 comparisons of like with like, 30 prompts: more than 22 misses have a chance below 1 in 1,000 at 6 %."""
    rng = random.Random(1)
    misses = 0
    for number in range(200):
        rows = [[[rng.random()] for _ in range(30)] for _ in range(2)]
        texts, reports = sides(*rows)
        low, high = compare(texts, reports, seed=number)["difference"]["interval"]
        misses += not low <= 0 <= high
    assert misses <= 24


def test_texts_too_short_to_score_are_counted_and_left_out() -> None:
    texts, reports = sides([[0.9, None], [None, None], [0.8, 0.6]], [[0.9, 0.9], [0.9, 0.9], [0.8, 0.6]])
    found = compare(texts, reports)
    assert (found["a"]["num_scored"], found["a"]["num_too_short"]) == (3, 3)
    assert found["difference"]["num_prompts"] == 2
    assert found["difference"]["mean_score"] == 0
    assert found["a"]["grades"]["EXCELLENT"] == 1


def test_one_prompt_has_no_interval_and_none_is_an_error() -> None:
    texts, reports = sides([[0.9]], [[0.4]])
    assert compare(texts, reports)["difference"]["interval"] is None
    with pytest.raises(ValueError, match="give both the same"):
        compare(([], []), ([], []))


def test_two_models_are_compared_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint against itself at temperature 3: the same prompts, each model at its own defaults."""
    hot = tmp_path / "hot"
    shutil.copytree(CHECKPOINT, hot)
    defaults = json.loads((hot / "generation_config.json").read_text())
    (hot / "generation_config.json").write_text(json.dumps(defaults | {"temperature": 3.0, "top_p": 1.0}))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\n\nThe captain said\nIn the evening\n")
    line = ["compare", str(CHECKPOINT), str(hot), "--prompts", str(prompts), "--samples", "2", "--num-tokens", "40"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == {"a": str(CHECKPOINT), "b": str(hot)}
    assert found["difference"]["num_prompts"] == 3
    assert found["difference"]["interval"][1] < 0


def test_a_comparison_without_prompts_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n")
    assert main(["compare", str(CHECKPOINT), str(CHECKPOINT), "--prompts", str(prompts)]) == 2
    assert "give at least one" in capsys.readouterr().err
