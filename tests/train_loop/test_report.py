"""Reports of made-up results: a known effect is found, none is not claimed, and unlike runs are not compared."""

import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from tests.train_loop.runs import config_of
from tests.train_loop.study_lines import arm, line, write
from training.arm_comparison import compare_arms, with_holm
from training.report import main
from training.results import differing, read_results, rerun_command
from training.statistics import holm

SEEDS = range(10)
MARGIN = 0.01


def _report(tmp_path: Path, lines: list[dict[str, Any]], *flags: str) -> str:
    assert main([str(write(tmp_path / "results.jsonl", lines)), "--output", str(tmp_path / "out"), *flags]) == 0
    return (tmp_path / "out" / "report.md").read_text()


def test_a_known_effect_is_found_through_much_larger_differences_between_seeds() -> None:
    lines = arm("none", SEEDS, 0.0) + arm("l0.01", SEEDS, -0.02, lambda_phi=0.01)
    found = compare_arms(lines, "l0.01", "none", margin=MARGIN)
    assert found.pairs is not None
    assert found.pairs.difference.high < 0
    assert found.pairs.difference.value == pytest.approx(-0.02, abs=3 * 0.002 * (2 / 10) ** 0.5)  # 3 standard errors
    assert found.pairs.sign_flip_p == found.pairs.least_sign_flip_p == 2 / 1024


def test_nothing_is_claimed_where_there_is_nothing_in_more_than_its_share() -> None:
    """1,000 screens of 5 pairs and 3 contrasts with one reference: Holm stays below 5 % (+ 4 standard errors)."""
    draws = np.random.default_rng(5).normal(0, 0.01, (1000, 4, 5))
    p_values = stats.ttest_1samp(draws[:, 1:] - draws[:, :1], 0.0, axis=-1).pvalue
    alarms = np.mean([min(holm(row)) <= 0.05 for row in p_values.tolist()])
    assert alarms < 0.05 + 4 * (0.05 * 0.95 / 1000) ** 0.5


def test_holm_counts_the_comparisons_that_were_made_and_no_refused_one() -> None:
    lines = (
        arm("none", range(5), 0.0) + arm("l0.01", range(5), 0.0, lambda_phi=0.01) + arm("few", [0], 0, lambda_phi=0.1)
    )
    made, refused = with_holm([compare_arms(lines, name, "none", margin=MARGIN) for name in ("l0.01", "few")], "t")
    assert made.pairs is not None
    assert made.holm_p == made.pairs.t_p
    assert refused.holm_p is None


def test_arms_alike_within_the_margin_are_shown_to_be_equivalent() -> None:
    lines = arm("none", SEEDS, 0.0) + arm("l0.01", SEEDS, 0.0, lambda_phi=0.01)
    found = compare_arms(lines, "l0.01", "none", margin=MARGIN)
    assert found.equivalence_p is not None
    assert found.equivalence_p < 0.05


def test_the_old_reports_comparison_is_refused_and_the_reason_named(tmp_path: Path) -> None:
    lines = arm("a", range(3), 0.0, lambda_phi=0.01, max_steps=2000) + arm(
        "b", range(3), 0, lambda_phi=0.05, max_steps=100
    )
    text = _report(tmp_path, lines, "--contrast", "a:b", "--describe", "a:b")
    assert text.count("2 things differ: lambda_phi, max_steps") == 2
    assert "sign flip" not in text


def test_two_pairs_are_refused_and_what_is_missing_is_said(tmp_path: Path) -> None:
    lines = arm("none", range(2), 0.0) + arm("l0.01", range(2), 0, lambda_phi=0.01)
    text = _report(tmp_path, lines, "--contrast", "l0.01:none")
    assert "2 pairs of finished runs with the same seed (seeds 0, 1); run 1 more seeds" in text
    assert "n = 2: no interval" in text


@pytest.mark.parametrize("name", ["commit", "threads", "versions", "split", "device"])
def test_a_condition_that_differs_beside_lambda_is_a_second_thing(name: str) -> None:
    lines = arm("none", range(3), 0.0) + arm("l0.01", range(3), 0, lambda_phi=0.01)
    lines[1][name] = "another"
    found = compare_arms(lines, "l0.01", "none", margin=MARGIN)
    assert found.refusal is not None
    assert name in found.refusal
    assert compare_arms(lines, "l0.01", "none", [name], margin=MARGIN).apart_from == (name,)


def test_another_text_is_a_second_thing_and_another_path_to_the_same_is_not() -> None:
    lines = arm("none", range(3), 0.0) + arm("l0.01", range(3), 0, lambda_phi=0.01, dataset="elsewhere")
    assert compare_arms(lines, "l0.01", "none", margin=MARGIN).different == ("lambda_phi",)
    lines[0]["dataset"] = {"name": "made up", "splits": {"valid": {"sha256": "cd" * 32}}}
    assert "dataset" in str(compare_arms(lines, "l0.01", "none", margin=MARGIN).refusal)


def test_at_lambda_zero_the_rest_of_the_objective_is_no_difference() -> None:
    none, sham = line("none", 0, 2.0), line("sham", 0, 2.0, lambda_phi=0.01, phi_sham=True)
    linear = line("linear", 0, 2.0, lambda_phi=0.01, lambda_schedule="linear", lambda_final=0.001)
    assert differing(sham, none) == differing(linear, none) == ["lambda_phi"]
    assert differing(sham, line("l", 0, 2.0, lambda_phi=0.01)) == ["phi_sham"]
    assert differing(linear, line("l", 0, 2.0, lambda_phi=0.01)) == ["lambda_schedule"]


def test_a_diverged_run_loses_its_pair_and_is_counted(tmp_path: Path) -> None:
    lines = [
        *arm("none", range(4), 0.0),
        *arm("l0.3", range(3), 0, lambda_phi=0.3),
        line("l0.3", 3, None, lambda_phi=0.3),
    ]
    found = compare_arms(lines, "l0.3", "none", margin=MARGIN)
    assert (found.seeds, found.num_unpaired) == ((0, 1, 2), 1)
    assert "1 of the runs diverged" in _report(tmp_path, lines, "--contrast", "l0.3:none")


def test_an_interaction_is_the_difference_of_differences(tmp_path: Path) -> None:
    lines = arm("n1", range(5), 0.0) + arm("l1", range(5), 0.01, lambda_phi=0.01)
    lines += arm("n2", range(5), 0.05, dropout=0.1) + arm("l2", range(5), 0.09, dropout=0.1, lambda_phi=0.01)
    text = _report(tmp_path, lines, "--describe", "l2:n2:l1:n1")
    found = re.search(r"\(l2 less n2\) less \(l1 less n1\) \| 5 \| \+([\d.]+)", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.03, abs=0.01)


def test_the_page_needs_no_other_file_and_each_picture_carries_its_provenance(tmp_path: Path) -> None:
    lines = arm("none", range(3), 0.0) + arm("l0.01", range(3), -0.02, lambda_phi=0.01)
    _report(tmp_path, lines, "--contrast", "l0.01:none")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"<(img|script|link)|src=|href=\"(?!#)[^\"]*\.(css|js|svg|png)", page)
    for picture in (tmp_path / "out").glob("*.svg"):
        ElementTree.parse(picture)
        comment = picture.read_text()
        assert all(part in comment for part in ("6 runs", "seeds 0, 1, 2", "1,228,800 tokens", "valid split", "c0ffee"))


def test_the_printed_command_is_the_run() -> None:
    result = line("x", 3, 2.0, lambda_phi=0.05, bf16=True, dataset="a folder", phi_target=0.5)
    assert config_of(shlex.split(rerun_command(result))[4:]).key() == result["key"]


def test_a_contradiction_and_nothing_at_all_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line("none", 0, 2.0), line("none", 0, 2.1)]
    assert main([str(write(tmp_path / "results.jsonl", lines))]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(write(tmp_path / "empty.jsonl", []))]) == 2
    said = capsys.readouterr().err
    assert "two results" in said
    assert "Traceback" not in said
    assert "give a results.jsonl" in said
    assert "no run has ended" in said


def test_each_run_counts_once_however_often_it_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", arm("none", range(3), 0.0))
    assert len(read_results([path, tmp_path])) == 3
