"""What publishing records, how references are read, and in which order bytes reach the disk."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from model_store.manifest import MANIFEST_FILE, FileRecord, Manifest, parse_manifest
from model_store.names import validate_name
from model_store.store import ModelStore, Resolved, default_root
from tests.store.folders import flip_bit

BAD_WORDS = [
    "",
    ".",
    "..",
    "../m",
    "a/b",
    "/etc",
    "a\\b",
    ".hidden",
    "-flag",
    "a b",
    "a\n",
    "ä",
    "a@1",
    "a\0",
    "x" * 97,
]


def test_a_manifest_records_where_a_version_came_from(store: ModelStore, source: Path) -> None:
    store.publish(source, "base")
    store.set_alias("base", "production", "1")
    published = store.publish(
        source,
        "m",
        parent="base@production",
        training={"preset": "tiny_iit", "betas": (0.9, 0.99)},
        dataset={"fingerprint": "abc"},
        tokens_seen=0,
        metrics={"bits_per_byte": 2.1},
        notes="first\n\x1b[31m",
    )
    manifest = store.show("m").manifest
    assert manifest == published.manifest
    assert manifest is not None
    assert (manifest.reference, manifest.provenance, manifest.parent) == ("m@1", "published", "base@1")
    assert manifest.training == {"preset": "tiny_iit", "betas": [0.9, 0.99]}
    assert (manifest.dataset, manifest.metrics) == ({"fingerprint": "abc"}, {"bits_per_byte": 2.1})
    assert (manifest.tokens_seen, manifest.architecture, manifest.num_parameters) == (0, "LlamaForCausalLM", 32)
    assert set(manifest.library_versions) >= {"python", "torch", "transformers", "safetensors"}
    for file, record in manifest.files.items():
        assert record.size == (source / file).stat().st_size
        assert (published.path / file).read_bytes() == (source / file).read_bytes()


def test_an_imported_folder_is_of_unknown_provenance(store: ModelStore, source: Path) -> None:
    imported = store.import_folder(source, notes="from a friend")
    assert (imported.name, imported.version) == ("source", "1")
    manifest = imported.manifest
    assert (manifest.provenance, manifest.parent, manifest.training, manifest.git_commit) == (
        "unknown",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": {"loss": float("nan")}}, "metrics cannot be written"),
        ({"training": {"path": Path()}}, "training cannot be written"),
        ({"dataset": "abc"}, "dataset is str"),
        ({"tokens_seen": -1}, "tokens_seen=-1"),
        ({"parent": "nobody"}, "'nobody' is not in the store"),
        ({"parent": "./source"}, "is a folder"),
        ({"version": "latest"}, "version='latest'"),
        ({"version": "aliases"}, "version='aliases'"),
        ({"version": "local"}, "version='local'"),
        ({"version": "../1"}, r"version='\.\./1'"),
    ],
)
def test_a_bad_argument_publishes_nothing(
    store: ModelStore, source: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        store.publish(source, "m", **arguments)
    assert store.list() == ()


@pytest.mark.parametrize("word", BAD_WORDS)
def test_a_word_that_could_leave_its_folder_is_no_name_version_or_alias(
    store: ModelStore, source: Path, word: str
) -> None:
    store.publish(source, "m")
    before = sorted(store.root.rglob("*"))
    with pytest.raises(ValueError, match="not usable"):
        store.publish(source, word)
    with pytest.raises(ValueError, match="not usable"):
        store.publish(source, "m", version=word)
    with pytest.raises(ValueError, match="not usable"):
        store.set_alias("m", word, "1")
    with pytest.raises(ValueError, match="not usable"):
        store.set_alias(word, "production", "1")
    with pytest.raises(ValueError, match="not usable"):
        store.set_alias("m", "production", word)
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize("alias", ["latest", "1", "22", "local"])
def test_an_alias_that_could_be_taken_for_something_else_is_refused(
    store: ModelStore, source: Path, alias: str
) -> None:
    store.publish(source, "m")
    with pytest.raises(ValueError, match=f"alias='{alias}'"):
        store.set_alias("m", alias, "1")


def test_a_name_alone_means_production_if_set_else_the_version_published_last(store: ModelStore, source: Path) -> None:
    store.publish(source, "m")
    store.publish(source, "m", version="0.1")
    assert store.resolve("m") == Resolved(store.root / "m" / "0.1", "m", "0.1")
    store.set_alias("m", "production", "1")
    assert store.resolve("m").version == "1"
    assert store.resolve("m@latest").version == "0.1"


def test_a_folder_outside_the_store_resolves_by_its_path(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Resolved(source.resolve(), "source", "local")
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("HOME", str(source.parent))
    for reference in (source, str(source), "./source", "source/", "../" + source.parent.name + "/source", "~/source"):
        assert store.resolve(reference) == expected
    with pytest.raises(ValueError, match=r"write '\./source'"):
        store.resolve("source")
    with pytest.raises(ValueError, match=r"no config\.json"):
        store.resolve("./")
    with pytest.raises(ValueError, match="does not exist"):
        store.resolve("./nowhere")


def test_an_alias_whose_version_is_gone_is_an_error_that_says_so(store: ModelStore, source: Path) -> None:
    store.publish(source, "m")
    store.publish(source, "m")
    store.set_alias("m", "production", "1")
    shutil.rmtree(store.root / "m" / "1")
    with pytest.raises(ValueError, match="points at version '1', which is gone"):
        store.resolve("m")
    assert store.resolve("m@2").version == "2"


def test_a_damaged_alias_is_an_error_that_says_so_and_setting_it_again_mends_it(
    store: ModelStore, source: Path
) -> None:
    store.publish(source, "m")
    (store.root / "m" / "aliases").mkdir()
    (store.root / "m" / "aliases" / "production").write_text("../../etc")
    with pytest.raises(ValueError, match="is damaged"):
        store.resolve("m")
    store.publish(source, "m")
    store.set_alias("m", "production", "2")
    assert store.resolve("m").version == "2"


def test_a_version_taken_while_another_publisher_was_about_to_take_it_is_not_overwritten(
    store: ModelStore, source: Path
) -> None:
    other = ModelStore(store.root)
    interruptions = [None, None]

    def clock_of_a_slow_publisher() -> datetime:  # read after the number was chosen
        if interruptions:
            interruptions.pop()
            other.publish(source, "m", notes="fast")
        return datetime.now(UTC)

    slow = ModelStore(store.root, clock=clock_of_a_slow_publisher)
    assert slow.publish(source, "m", notes="slow").version == "3"
    assert [entry.manifest and entry.manifest.notes for entry in store.list()] == ["fast", "fast", "slow"]
    assert all(store.verify(f"m@{version}").ok for version in "123")


def test_a_version_given_by_two_publishers_goes_to_one_and_the_other_is_told(store: ModelStore, source: Path) -> None:
    def clock_of_a_slow_publisher() -> datetime:
        ModelStore(store.root).publish(source, "m", version="v1", notes="fast")
        return datetime.now(UTC)

    with pytest.raises(ValueError, match="version='v1' of 'm' exists already"):
        ModelStore(store.root, clock=clock_of_a_slow_publisher).publish(source, "m", version="v1")
    (entry,) = store.list()
    assert entry.manifest is not None
    assert entry.manifest.notes == "fast"


def test_all_bytes_and_folders_are_on_disk_before_the_rename_and_the_rename_after_it(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[int] = []  # inodes flushed, and 0 for the rename
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def record_rename(origin: Path, destination: Path) -> None:
        events.append(0)
        rename(origin, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    path = store.publish(source, "m").path
    at = events.index(0)
    inodes = {entry.stat().st_ino for entry in [path, *path.rglob("*")]}
    assert len(inodes) == 8  # five files, the manifest, the folder of one, and their folder
    assert inodes <= set(events[:at])
    assert {path.parent.stat().st_ino, store.root.stat().st_ino} <= set(events[at:])


def test_an_alias_is_switched_by_replacing_its_file(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(source, "m")
    store.publish(source, "m")
    store.set_alias("m", "production", "1")
    seen: list[str] = []
    replace = os.replace

    def look_then_replace(origin: Path, destination: Path) -> None:
        seen.append(store.resolve("m").version)
        replace(origin, destination)
        seen.append(store.resolve("m").version)

    monkeypatch.setattr(os, "replace", look_then_replace)
    store.set_alias("m", "production", "2")
    assert seen == ["1", "2"]
    assert os.listdir(store.root / "m" / "aliases") == ["production"]


def test_a_folder_copied_by_hand_does_not_pass_for_a_version(store: ModelStore, source: Path) -> None:
    path = store.publish(source, "m").path
    shutil.copytree(path, path.parent / "2")
    assert [problem.kind for problem in store.verify("m@2").problems] == ["manifest"]
    with pytest.raises(ValueError, match=r"is that of m@1.*remove"):
        store.resolve("m")


def test_a_link_in_place_of_a_file_is_found_even_if_the_bytes_are_the_same(store: ModelStore, source: Path) -> None:
    path = store.publish(source, "m").path
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(source / "config.json")
    assert [(problem.file, problem.kind) for problem in store.verify("m").problems] == [("config.json", "changed")]


def test_an_empty_folder_and_a_link_to_a_folder_are_found_as_extra(store: ModelStore, source: Path) -> None:
    path = store.publish(source, "m").path
    (path / "empty").mkdir()
    (path / "link").symlink_to(source)
    assert {(problem.file, problem.kind) for problem in store.verify("m").problems} == {
        ("empty", "extra"),
        ("link", "extra"),
    }


def test_one_flipped_bit_anywhere_in_the_weights_is_found(store: ModelStore, source: Path) -> None:
    weights = store.publish(source, "m").path / "model.safetensors"
    size = weights.stat().st_size
    for position in [*range(0, size, 5), size - 1]:
        flip_bit(weights, position)
        assert [problem.file for problem in store.verify("m").problems] == ["model.safetensors"]
        flip_bit(weights, position)
    assert store.verify("m").ok


def test_one_changed_byte_anywhere_in_the_manifest_is_found(store: ModelStore, source: Path) -> None:
    data = (store.publish(source, "m", notes="ä\udcff").path / MANIFEST_FILE).read_bytes()
    assert parse_manifest(data).notes == "ä\udcff"
    for position in range(len(data)):
        for byte in (data[position] ^ 1 << (position % 8), ord("\t")):  # a tab for a space is JSON still
            with pytest.raises(ValueError, match=r"^(it|its|a field) "):
                parse_manifest(data[:position] + bytes([byte]) + data[position + 1 :])


@pytest.mark.parametrize(
    "wrong",
    [
        {"created_at": "yesterday"},
        {"created_at": "2026-01-01T00:00:00"},
        {"name": 1},
        {"files": {"a": FileRecord("00", "1")}},  # type: ignore[arg-type]
        {"format": 2},
    ],
)
def test_a_manifest_with_a_valid_checksum_and_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    right = {
        "name": "m",
        "version": "1",
        "created_at": "2026-01-01T00:00:00+00:00",
        "provenance": "published",
        "architecture": "LlamaForCausalLM",
        "num_parameters": 1,
        "files": {"a": FileRecord("00", 1)},
        "library_versions": {},
    }
    parse_manifest(Manifest(**right).to_bytes())
    with pytest.raises(ValueError, match=r"field|format"):
        parse_manifest(Manifest(**{**right, **wrong}).to_bytes())


def test_the_root_comes_from_the_environment_else_from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_STORE_ROOT", "/somewhere/else")
    assert default_root() == Path("/somewhere/else")
    monkeypatch.setenv("MODEL_STORE_ROOT", "")
    with pytest.raises(ValueError, match="MODEL_STORE_ROOT is set to ''"):
        default_root()
    monkeypatch.delenv("MODEL_STORE_ROOT")
    assert default_root() == Path(__file__).resolve().parents[2] / "models"


def test_a_store_that_does_not_exist_is_empty_and_reading_does_not_create_it(store: ModelStore) -> None:
    assert store.list() == ()
    with pytest.raises(ValueError, match="it has: none"):
        store.resolve("m")
    assert not store.root.exists()


def test_the_longest_name_is_usable(store: ModelStore, source: Path) -> None:
    assert store.publish(source, validate_name("x" * 96)).version == "1"
