"""A reference survives being written, and a broken one is refused by name."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.store import ModelStore
from serve.quality.features import Feature
from serve.quality.fit import FitConfig, fit
from serve.quality.reference import (
    FILE_NAME,
    HumanRange,
    QualityReference,
    find_reference,
    load_reference,
    weights_identity,
)
from serve.quality.score import QualityScorer
from tests.quality.conftest import PROSE
from tests.store.folders import write_checkpoint


def test_a_reference_survives_being_written_and_read(reference: QualityReference, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    reference.save(first)
    load_reference(first).save(second)
    load_reference(second).save(third := tmp_path / "c.json")
    assert second.read_bytes() == third.read_bytes()
    a, b = QualityScorer(load_reference(second)).score(PROSE), QualityScorer(reference).score(PROSE)
    assert a.score == pytest.approx(b.score, abs=0.02), "tables are rounded to int8"


def test_deviations_by_hand() -> None:
    feature = Feature("x", "both", 0.5, "")
    rows = np.array([[[0.0, 0, 0, 2.326, 0, 0, 2.326 * 3]], [[5.0, 5, 5, 5, 5, 5, 5]]])
    human = HumanRange((feature,), np.array([10.0, 1000.0]), np.maximum.accumulate(rows, axis=2))
    # At length 10: median 2.326, spread 1 below and 2 above; 0.6 spreads are free.
    assert human.deviations(np.array([2.326]), 10) == pytest.approx(np.zeros((2, 1)))
    assert human.deviations(np.array([0.0]), 1)[:, 0] == pytest.approx([math.log(1 + 2.326 - 0.6), 0])
    assert human.deviations(np.array([2.326 + 6.0]), 5)[:, 0] == pytest.approx([0, math.log(1 + 3 - 0.6)])
    # At length 100, halfway in the logarithm: median 3.663, spreads (1 + 0.5) / 2 and (2 + 0.5) / 2.
    assert human.deviations(np.array([3.663 + 2.5]), 100)[:, 0] == pytest.approx([0, math.log(1 + 2 - 0.6)])
    # At length 1000 human text does not spread at all: the resolution, 0.5, stands in.
    assert human.deviations(np.array([4.0]), 5000)[:, 0] == pytest.approx([math.log(1 + 2 - 0.6), 0])


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another file": (lambda d: d.update(kind="x"), "kind is 'x'"),
    "another schema": (lambda d: d.update(schema=2), "schema is 2"),
    "no heads": (lambda d: d.update(heads={}), "heads lacks"),
    "a missing feature": (lambda d: d["text"]["quantiles"].pop("mtld"), "mtld"),
    "a foreign feature": (lambda d: d["heads"]["text"]["weights"].update(praise={"low": -1}), "praise"),
    "a weight that rewards": (lambda d: d["heads"]["text"]["weights"].update(mtld={"low": 1.0}), "mtld.low"),
    "an infinite number": (lambda d: d["heads"]["text"].update(intercept=float("inf")), "intercept"),
    "falling quantiles": (lambda d: d["text"]["quantiles"]["mtld"][0].reverse(), "mtld does not rise"),
    "falling lengths": (lambda d: d["text"]["lengths"].reverse(), "lengths"),
    "scores above 1": (lambda d: d["heads"]["text"]["human_scores"].__setitem__(100, 1.5), "human_scores"),
    "a cut table": (lambda d: d["lexicon"].update(pair="AAAA"), "lexicon.pair"),
    "a table of another size": (lambda d: d["lexicon"].update(pair=d["lexicon"]["letter"]), "lexicon.pair"),
    "no words": (lambda d: d["lexicon"].update(words=None), "lexicon.words"),
    "a network that does not fit": (lambda d: d["lexicon"]["context"].pop("hidden"), "hidden"),
    "not an object": (lambda d: d.update(text=[1]), "text"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_reference_is_refused_by_the_name_of_its_field(reference: QualityReference, name: str) -> None:
    data = copy.deepcopy(json.loads(json.dumps(reference.to_json())))
    damage, message = BREAKS[name]
    damage(data)
    with pytest.raises(ValueError, match=message):
        QualityReference.from_json(data)


def test_files_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no quality reference"):
        load_reference(tmp_path / FILE_NAME)
    (tmp_path / FILE_NAME).write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not a valid quality reference"):
        load_reference(tmp_path / FILE_NAME)


def test_a_reference_is_found_for_its_own_weights_only(tmp_path: Path, reference: QualityReference) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="there is no quality reference"):
        find_reference(tmp_path)
    bound(reference, tmp_path).save(tmp_path / FILE_NAME)
    assert find_reference(tmp_path).origin["checkpoint"]["weights"] == weights_identity(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights trained on")
    with pytest.raises(
        ValueError, match=r"belongs to weights model.safetensors \(SHA-256 .*serve.quality fit --checkpoint"
    ):
        find_reference(tmp_path)


def test_a_reference_without_a_checkpoint_suits_any_weights(tmp_path: Path, reference: QualityReference) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"any weights")
    reference.save(tmp_path / FILE_NAME)
    assert set(find_reference(tmp_path).heads) == {"text"}


def test_publishing_carries_the_reference_and_verification_covers_it(
    tmp_path: Path, reference: QualityReference
) -> None:
    folder = tmp_path / "trained"
    write_checkpoint(folder)
    bound(reference, folder).save(folder / FILE_NAME)
    store = ModelStore(tmp_path / "store")
    entry = store.publish(folder, "toy")
    assert find_reference(entry.path).origin["checkpoint"]["weights"] == weights_identity(folder)
    assert store.verify(f"toy@{entry.version}").problems == ()
    published = entry.path / FILE_NAME
    published.chmod(0o644)
    published.write_text(published.read_text().replace('"intercept"', '"Intercept"', 1))
    assert [problem.file for problem in store.verify(f"toy@{entry.version}").problems] == [FILE_NAME]


def bound(reference: QualityReference, folder: Path) -> QualityReference:
    """The same reference, said to be fitted for a folder's weights."""
    return replace(reference, origin={**reference.origin, "checkpoint": {"weights": weights_identity(folder)}})


def differences(a: object, b: object) -> list[float]:
    """Of all numbers of two JSON values; anything else must be equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        return [d for key in a for d in differences(a[key], b[key])]
    if isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b)
        return [d for x, y in zip(a, b, strict=True) for d in differences(x, y)]
    if isinstance(a, float) and isinstance(b, float):
        return [abs(a - b)]
    assert a == b
    return []


@pytest.mark.slow
def test_fitting_again_gives_the_same_reference(corpus: Path) -> None:
    """But for the last digit that is kept: a threaded product may add in another order."""
    config = FitConfig(corpora=(corpus,), held_out=(), num_passages=120, num_ranges=60, context_steps=3)
    first, second = fit(config), fit(config)
    assert max(differences(first.to_json(), second.to_json())) < 2e-5


def shipped_folder() -> Path:
    """The newest version of the checkpoint that ships, among those published with a reference."""
    versions = Path(__file__).parents[2] / "models" / "tiny_iit"
    folders = sorted((file.parent for file in versions.glob(f"*/{FILE_NAME}")), key=lambda folder: int(folder.name))
    if not folders:
        pytest.skip("no version of models/tiny_iit holds a quality reference")
    return folders[-1]


def test_the_shipped_reference_belongs_to_the_shipped_checkpoint_and_prefers_prose() -> None:
    reference = find_reference(shipped_folder())
    assert set(reference.heads) == {"text", "surprise"}
    scorer = QualityScorer(reference)
    shuffled = " ".join(np.random.default_rng(0).permutation(PROSE.split()))
    prose, salad = scorer.score(PROSE), scorer.score(shuffled)
    assert prose.score is not None
    assert salad.score is not None
    assert prose.score > 0.8
    assert salad.score < 0.1
    assert scorer.score("and then the cat sat down " * 30).grade == "POOR"
