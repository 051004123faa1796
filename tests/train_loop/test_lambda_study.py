"""The lambda study's files are what its plan says, and its script asks for comparisons that can be made."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.train_loop.study_lines import line
from training.results import differing
from training.search_plan import make_units, read_points

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "lambda"
RUNS = {"tuning": 33, "screen": 55, "confirm": 30, "confound": 12}


@pytest.mark.parametrize("part", RUNS)
def test_each_part_is_read_by_the_search_and_has_the_runs_of_the_plan(part: str) -> None:
    base, seeds, arms = read_points(STUDY / f"{part}.json")
    assert len(make_units(base, arms, seeds or [])) == RUNS[part]


def test_no_seed_is_in_two_parts() -> None:
    seeds = [seed for part in RUNS for seed in read_points(STUDY / f"{part}.json")[1] or []]
    assert len(set(seeds)) == len(seeds)


def test_each_registered_contrast_differs_in_one_thing_but_the_old_reports() -> None:
    unlike = []
    for command in (STUDY / "run.sh").read_text().split("python -m training.report")[1:]:
        part = re.findall(r'"\$OUT/(\w+)"', command)[0]
        base, _, arms = read_points(STUDY / f"{part}.json")
        for text in re.findall(r"--(?:contrast|describe) (\S+)", command):
            names = text.split(":")
            for pair in zip(names[::2], names[1::2], strict=True):
                a, b = (line(name, 0, 2.0, **{**base, **arms[name]}) for name in pair)
                if len(differing(a, b)) != 1:
                    unlike.append(pair)
    assert unlike == [("l0.01-2000steps", "l0.05-100steps")]


def results(part: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (STUDY / "results" / f"{part}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("part", RUNS)
def test_the_results_are_every_run_of_the_plan_from_one_commit(part: str) -> None:
    runs = results(part)
    assert len({(run["arm"], run["key"]) for run in runs}) == RUNS[part] == len(runs)
    assert {run["status"] for run in runs} == {"finished"}
    assert {run["commit"][:7] for run in runs} == {"a3bd42e"}


@pytest.mark.parametrize("part", ["confirm", "screen", "confound"])
def test_the_page_gives_the_mean_of_every_arm(part: str) -> None:
    page = (STUDY / "README.md").read_text()
    by_arm = defaultdict(list)
    for run in results(part):
        by_arm[run["arm"]].append(run["held_out"])
    for arm, held_out in by_arm.items():
        assert f"{_mean(held_out, 'bits_per_byte'):.4f}" in page, arm
        if part == "confound":
            assert f"{math.exp(_mean(held_out, 'nats_per_token')):.1f}" in page, arm


def test_the_page_counts_the_guards_warnings_of_the_screen() -> None:
    runs = results("screen")
    with_objective = [run for run in runs if run["config"]["lambda_phi"] and not run["config"]["phi_sham"]]
    warned = sum(bool(run["warnings"]) for run in with_objective)
    assert warned == sum(bool(run["warnings"]) for run in runs)
    assert f"in {warned} of the {len(with_objective)} runs" in (STUDY / "README.md").read_text()


def _mean(held_out: list[dict[str, float]], figure: str) -> float:
    return sum(each[figure] for each in held_out) / len(held_out)
