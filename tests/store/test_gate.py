"""The rule of the publishing gate and the record it is judged by."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.evaluation import read_evaluation
from model_store.gate import Margins, compare, unlike
from tests.store.evaluations import NUM_PROMPTS, content, evaluation


def _verdicts(tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], margins: Margins | None = None) -> Any:
    return compare(evaluation(tmp_path, **ours), evaluation(tmp_path, **theirs), margins or Margins())


def test_a_model_is_not_worse_than_itself(tmp_path: Path) -> None:
    for found in _verdicts(tmp_path, {}, {}):
        assert (found.loss, found.low, found.high, found.verdict) == (0, 0, 0, "not worse")


@pytest.mark.parametrize(
    ("ours", "verdicts"),
    [
        ({"bits": 1.9, "score": 0.85}, ("better", "better")),
        ({"bits": 2.005, "score": 0.79}, ("worse, but within the margin", "worse, but within the margin")),
        ({"bits": 2.1, "score": 0.85}, ("REFUSED: worse", "better")),
        ({"bits": 1.9, "score": 0.7}, ("better", "REFUSED: worse")),
        ({"noise_bits": 0.2, "seed": 3}, ("REFUSED: may be worse by more than the margin", "not worse")),
        ({"noise_score": 0.15, "seed": 1}, ("not worse", "REFUSED: may be worse by more than the margin")),
    ],
)
def test_each_quantity_gets_the_verdict_its_interval_earns(
    tmp_path: Path, ours: dict[str, Any], verdicts: tuple[str, str]
) -> None:
    found = _verdicts(tmp_path, ours, {})
    assert tuple(comparison.verdict for comparison in found) == verdicts
    assert [comparison.accepted for comparison in found] == [not verdict.startswith("REFUSED") for verdict in verdicts]


def test_an_interval_that_ends_on_the_margin_is_refused(tmp_path: Path) -> None:
    bits, score = _verdicts(tmp_path, {}, {}, Margins(0, 0))
    assert (bits.high, bits.accepted, score.accepted) == (0, False, False)


def test_bits_per_byte_is_that_of_all_the_text_and_not_the_mean_of_passages(tmp_path: Path) -> None:
    ours = evaluation(tmp_path, bits=2.1)
    found, _ = compare(ours, evaluation(tmp_path), Margins())
    nats, num_bytes = (sum(getattr(p, name) for p in ours.passages) for name in ("nats", "num_bytes"))
    assert found.candidate == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-12)


def test_a_model_worse_by_exactly_the_margin_passes_in_at_most_about_one_of_forty_cases(tmp_path: Path) -> None:
    """20 worlds at a rate of 0.025, 0.035 with the bootstrap's own narrowness: more than 4 by chance once in 2,000."""
    generator = np.random.default_rng(7)
    base = content()
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(base))
    theirs, accepted = read_evaluation(path), 0
    for _ in range(20):
        losses = generator.normal(0.02, 0.05, NUM_PROMPTS)
        scores = [score - loss for score, loss in zip(base["prompt_scores"], losses, strict=True)]
        path.write_text(json.dumps({**base, "prompt_scores": [min(1.0, max(0.0, score)) for score in scores]}))
        accepted += compare(read_evaluation(path), theirs, Margins())[1].accepted
    assert accepted <= 4


def test_a_text_too_short_to_score_counts_as_zero(tmp_path: Path) -> None:
    silent: list[float | None] = [None] * 40 + [1.0] * 40
    _, found = _verdicts(tmp_path, {"scores": silent}, {"scores": [0.9] * 80})
    assert (found.candidate, found.candidate_too_short, found.incumbent_too_short) == (0.5, 40, 0)
    assert found.verdict == "REFUSED: worse"
    with pytest.raises(ValueError, match="no continuation of either model"):
        _verdicts(tmp_path, {"scores": [None] * 80}, {"scores": [None] * 80})


def test_evaluations_taken_otherwise_are_not_compared(tmp_path: Path) -> None:
    ours, theirs = evaluation(tmp_path), content()
    theirs["protocol"]["stride"] = 256
    theirs["passages"][0]["num_bytes"] += 1
    (tmp_path / "evaluation.json").write_text(json.dumps(theirs))
    other = read_evaluation(tmp_path / "evaluation.json")
    assert unlike(ours, other) == ("protocol.stride", "passages.num_bytes")
    with pytest.raises(ValueError, match=r"differ in protocol\.stride, passages\.num_bytes"):
        compare(ours, other, Margins())


def test_twenty_pairs_are_the_least(tmp_path: Path) -> None:
    few = content()
    few["passages"] = few["passages"][:19]
    (tmp_path / "evaluation.json").write_text(json.dumps(few))
    found = read_evaluation(tmp_path / "evaluation.json")
    with pytest.raises(ValueError, match="passages has 19 entries; the gate needs 20"):
        compare(found, found, Margins())


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf])
def test_a_margin_is_finite_and_not_negative(margin: float) -> None:
    with pytest.raises(ValueError, match="margin score="):
        Margins(score=margin)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("format",), 3, "format=3"),
        (("weights_sha256",), "A" * 64, "weights_sha256="),
        (("surprise",), 1, "unknown fields: surprise"),
        (("protocol", "seed"), True, "protocol.seed is bool"),
        (("protocol", "context"), 0, "protocol.context=0"),
        (("protocol", "splits", 0, "sha256"), None, r"protocol.splits\[0\].sha256 is NoneType"),
        (("passages", 3), [1, 2], r"passages\[3\] is list"),
        (("passages", 3, "nats"), -1.0, r"passages\[3\].nats=-1.0 is negative"),
        (("passages", 3, "nats"), math.nan, "NaN"),
        (("passages", 3, "nats"), 10**400, r"passages\[3\].nats is not finite"),
        (("passages", 3, "num_bytes"), 0, r"passages\[3\].num_bytes=0"),
        (("prompt_scores", 0), 1.2, r"prompt_scores\[0\]=1.2"),
        (("prompt_scores", 0), "0.9", r"prompt_scores\[0\] is str"),
        (("prompt_scores",), [0.5], "prompt_scores has 1 entries, protocol.num_prompts is 80"),
        (("report",), None, "report is NoneType"),
    ],
)
def test_an_unusable_record_is_refused_by_file_and_field(
    tmp_path: Path, path: tuple[Any, ...], value: object, complaint: str
) -> None:
    record = content()
    at: Any = record
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=rf"evaluation\.json' is unusable: .*{complaint}.*python -m training\.evaluate"
    ):
        read_evaluation(file)


def test_a_lacking_field_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    record = content()
    del record["protocol"]["stride"]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="protocol lacks stride"):
        read_evaluation(file)
    for text in ("", "[]", "\xff", "[" * 100_000):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="is unusable"):
            read_evaluation(file)
