"""A version taken over from another store: the same bytes under the same name, or nothing."""

from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.store.folders import flip_bit, write_checkpoint


@pytest.fixture
def other(tmp_path: Path, source: Path) -> ModelStore:
    """Two versions; production is the first."""
    other = ModelStore(tmp_path / "other")
    other.publish(source, "m", metrics={"bits_per_byte": 2.1}, notes="first")
    other.publish(write_checkpoint(tmp_path / "second", seed=1), "m", parent="m@1")
    other.set_alias("m", "production", "1")
    return other


def test_a_copy_is_the_version_meant_with_its_manifest_and_its_aliases(store: ModelStore, other: ModelStore) -> None:
    assert store.copy_from(other, "m").version == "1"
    assert store.show("m@production").manifest == other.show("m@1").manifest
    assert store.verify("m@1").ok
    assert store.resolve("m").version == "1"


def test_copying_again_keeps_what_is_there_and_follows_the_alias(store: ModelStore, other: ModelStore) -> None:
    weights = store.copy_from(other, "m").path / "model.safetensors"
    before = weights.stat().st_ino
    store.copy_from(other, "m")
    assert weights.stat().st_ino == before
    other.set_alias("m", "production", "2")
    assert store.copy_from(other, "m").version == "2"
    assert store.resolve("m@production").version == "2"


def test_bytes_that_are_not_those_of_the_manifest_are_not_taken_over(store: ModelStore, other: ModelStore) -> None:
    flip_bit(other.root / "m" / "1" / "model.safetensors", 100)
    with pytest.raises(ValueError, match="not what its manifest says"):
        store.copy_from(other, "m@1")
    assert store.list() == ()


def test_another_version_of_the_same_name_and_number_is_not_taken_for_the_copy(
    store: ModelStore, other: ModelStore, source: Path
) -> None:
    store.publish(source, "m", notes="another")
    with pytest.raises(ValueError, match="is not m@1 of the other store; remove it"):
        store.copy_from(other, "m")


def test_a_damaged_copy_is_found_and_not_kept_as_good(store: ModelStore, other: ModelStore) -> None:
    flip_bit(store.copy_from(other, "m").path / "model.safetensors", 100)
    with pytest.raises(ValueError, match="remove it"):
        store.copy_from(other, "m")
