"""The lambda study's files are what its plan says, and its script asks for comparisons that can be made."""

import re
from pathlib import Path

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
