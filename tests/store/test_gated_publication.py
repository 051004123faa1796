"""`python -m model_store publish --gate`: what it accepts, what it refuses, and what the manifest remembers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model_store.gate import Margins
from model_store.gated_publication import judge, promote, publish_judged, read_candidate
from model_store.store import ModelStore
from tests.store.evaluations import evaluated_checkpoint
from tests.store.folders import write_checkpoint
from tests.store.test_command_line import run

__all__ = ["run"]  # the fixture


@pytest.fixture
def production(store: ModelStore, tmp_path: Path) -> ModelStore:
    """A store whose m@production is version 1, with an evaluation."""
    store.publish(evaluated_checkpoint(tmp_path / "incumbent", 0), "m")
    store.set_alias("m", "production", "1")
    return store


def _gate_record(store: ModelStore, reference: str) -> dict[str, Any]:
    manifest = store.show(reference).manifest
    assert manifest is not None
    assert manifest.metrics is not None
    record: dict[str, Any] = manifest.metrics["gate"]
    return record


def test_a_better_model_is_published_promoted_and_its_comparison_recorded(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path
) -> None:
    folder = evaluated_checkpoint(tmp_path / "better", 1, bits=1.9, score=0.85)
    status, out, _ = run("publish", folder, "m", "--gate", "production", "--metrics", '{"loss": 3}')
    assert status == 0
    assert re.search(r"bits per byte.* better ", out)
    assert "m@production is m@2" in out
    assert production.resolve("m").version == "2"
    record = _gate_record(production, "m@2")
    assert (record["accepted"], record["incumbent"], record["forced"]) == (True, "m@1", None)
    assert record["rule"]["margins"] == {"bits_per_byte": 0.01, "score": 0.02}
    assert [row["verdict"] for row in record["comparisons"]] == ["better", "better"]
    manifest = production.show("m@2").manifest
    assert manifest is not None
    assert manifest.metrics is not None
    assert manifest.metrics["loss"] == 3
    assert "evaluation.json" in manifest.files
    assert production.verify("m@2").ok


def test_a_worse_model_leaves_no_trace_in_the_store(run, production: ModelStore, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = evaluated_checkpoint(tmp_path / "worse", 1, bits=2.6, score=0.5)
    status, out, err = run("publish", folder, "m", "--gate", "production")
    assert status == 1
    assert out.count("REFUSED: worse") == 2
    assert "refused: nothing is published" in err
    assert [entry.version for entry in production.list()] == ["1"]
    assert production.resolve("m@production").version == "1"
    status, out, _ = run("publish", folder, "m", "--gate", "production", "--json")
    answer = json.loads(out)
    assert (status, answer["published"], answer["gate"]["accepted"]) == (1, False, False)


def test_force_publishes_a_refused_model_and_records_who_when_and_why(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path
) -> None:
    folder = evaluated_checkpoint(tmp_path / "worse", 1, bits=2.6)
    status, out, _ = run("publish", folder, "m", "--gate", "production", "--force", "--reason", "rollout test")
    assert status == 0
    assert "m@production is m@2, against the gate, by " in out
    forced = _gate_record(production, "m@2")["forced"]
    assert forced["reason"] == "rollout test"
    assert re.fullmatch(r".+@.+", forced["by"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", forced["at"])


def test_force_is_not_recorded_where_the_gate_accepts(run, production: ModelStore, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = evaluated_checkpoint(tmp_path / "same", 1)
    assert run("publish", folder, "m", "--gate", "production", "--force", "--reason", "sure")[0] == 0
    assert _gate_record(production, "m@2")["forced"] is None


def test_the_first_model_passes_and_says_so(run, store: ModelStore, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = evaluated_checkpoint(tmp_path / "first", 1)
    status, out, _ = run("publish", folder, "m", "--gate", "production")
    assert status == 0
    assert "no incumbent to compare with, the first model passes" in out
    record = _gate_record(store, "m@production")
    assert (record["incumbent"], record["comparisons"], record["accepted"]) == (None, [], True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (None, "does not exist; make it: python -m training.evaluate .*candidate --save"),
        ({"weights_sha256": "e" * 64}, "is of other weights: .*make it again: python -m training.evaluate .* --save"),
        (
            {"generation_config_sha256": "e" * 64},
            r"is of other decoding defaults: generation_config_sha256=e+, generation_config.json .* make it again",
        ),
        ({"format": 1}, "format=1 is not known"),
        (
            {"stride": 256, "quality_reference_sha256": "f" * 64},
            "differ in protocol.stride, protocol.quality_reference_sha256; .*python -m training.evaluate .*candidate "
            "--dataset DATASET --splits valid --context 512 --stride 512 --num-prompts 80 --prompt-tokens 32 "
            "--new-tokens 128 --seed 0 --quality-reference FILE --save",
        ),
    ],
)
def test_an_absent_stale_or_unlike_evaluation_gives_the_command_that_makes_it(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path, change: dict[str, Any] | None, complaint: str
) -> None:
    folder = evaluated_checkpoint(tmp_path / "candidate", 1)
    record = json.loads((folder / "evaluation.json").read_text())
    if change is None:
        (folder / "evaluation.json").unlink()
    else:
        for field, value in change.items():
            (record if field in record else record["protocol"])[field] = value
        (folder / "evaluation.json").write_text(json.dumps(record))
    status, _, err = run("publish", folder, "m", "--gate", "production")
    assert status == 2
    assert re.search(complaint, err)
    assert [entry.version for entry in production.list()] == ["1"]


def test_an_incumbent_published_without_an_evaluation_is_given_one(  # type: ignore[no-untyped-def]
    run, store: ModelStore, tmp_path: Path
) -> None:
    incumbent = evaluated_checkpoint(tmp_path / "incumbent", 0)
    (incumbent / "evaluation.json").rename(tmp_path / "of_incumbent.json")
    store.publish(incumbent, "m")
    store.set_alias("m", "production", "1")
    folder = evaluated_checkpoint(tmp_path / "better", 1, bits=1.9)
    status, _, err = run("publish", folder, "m", "--gate", "production")
    assert status == 2
    assert "python -m training.evaluate m@1 --output FOLDER" in err
    other = ("--gate", "production", "--incumbent-evaluation")
    status, _, err = run("publish", folder, "m", *other, folder / "evaluation.json")
    assert (status, "is of other weights" in err) == (2, True)
    assert run("publish", folder, "m", *other, tmp_path / "of_incumbent.json")[0] == 0
    assert store.resolve("m@production").version == "2"


def test_an_incumbent_evaluation_edited_after_publishing_is_not_believed(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path
) -> None:
    path = production.resolve("m").path / "evaluation.json"
    path.write_text(path.read_text() + "\n")
    status, _, err = run("publish", evaluated_checkpoint(tmp_path / "new", 1), "m", "--gate", "production")
    assert (status, "is not as it was published" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["m", "--gate", "production", "--force"], "--force and --reason TEXT go together"),
        (["m", "--gate", "production", "--reason", "x"], "--force and --reason TEXT go together"),
        (["m", "--gate", "production", "--force", "--reason", " "], "reason is empty"),
        (["m", "--force", "--reason", "x"], "--force, --reason is for the gate"),
        (["m", "--margin-bits", "0"], "--margin-bits is for the gate"),
        (["m", "--gate", "production", "--margin-score", "nan"], "margin score=nan"),
        (["m", "--gate", "production", "--alias", "production"], "the gate moves its own alias"),
        (["m", "--gate", "latest"], "always means the version published last"),
        (["--gate", "production"], "report.name; give NAME"),
        ([], "NAME is not given"),
        (["n", "--gate", "production", "--incumbent-evaluation", "x.json"], "there is no incumbent"),
    ],
)
def test_flags_that_make_no_sense_are_wrong_usage(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    status, _, err = run("publish", evaluated_checkpoint(tmp_path / "new", 1), *arguments)
    assert (status, complaint in err) == (2, True), err
    assert [entry.version for entry in production.list()] == ["1"]


def test_the_name_is_taken_from_the_evaluation_if_it_is_not_given(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path
) -> None:
    folder = evaluated_checkpoint(tmp_path / "new", 1)
    record = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**record, "report": {"name": "m"}}))
    assert run("publish", folder, "--gate", "production")[0] == 0
    assert production.resolve("m@production").version == "2"


def test_the_name_may_stand_behind_flags(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("publish", source, "--notes", "x", "m")[0] == 0
    assert store.resolve("m").version == "1"
    for words in (["../m"], ["m", "n"], ["--nonsense"]):
        assert run("publish", source, "--notes", "x", *words)[0] == 2


def test_weights_exchanged_after_they_were_judged_are_not_published(production: ModelStore, tmp_path: Path) -> None:
    candidate = read_candidate(evaluated_checkpoint(tmp_path / "new", 1), "m", "production")
    judgement = judge(production, candidate, Margins())
    write_checkpoint(tmp_path / "new", seed=2)
    with pytest.raises(ValueError, match=r"model\.safetensors' changed while it was being published"):
        publish_judged(production, candidate, judgement, metrics=None, forced=None)
    assert [entry.version for entry in production.list()] == ["1"]


def test_the_alias_stays_if_another_model_took_it_since_the_comparison(production: ModelStore, tmp_path: Path) -> None:
    candidate = read_candidate(evaluated_checkpoint(tmp_path / "new", 1), "m", "production")
    judgement = judge(production, candidate, Margins())
    production.publish(evaluated_checkpoint(tmp_path / "other", 2), "m")
    production.set_alias("m", "production", "2")
    published = publish_judged(production, candidate, judgement, metrics=None, forced=None)
    with pytest.raises(ValueError, match=r"m@3 is published but not production: .* is 2 now, not 1"):
        promote(production, candidate, judgement, published)
    assert production.resolve("m@production").version == "2"


def test_metrics_cannot_pass_themselves_off_as_the_gates_record(  # type: ignore[no-untyped-def]
    run, production: ModelStore, tmp_path: Path
) -> None:
    folder = evaluated_checkpoint(tmp_path / "new", 1)
    status, _, err = run("publish", folder, "m", "--gate", "production", "--metrics", '{"gate": {}}')
    assert (status, "which the gate writes" in err) == (1, True)
