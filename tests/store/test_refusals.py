"""Everything a store must not take in: each refusal names the file and the remedy, and leaves nothing behind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.manifest import FileRecord
from model_store.staging import STAGING_AREA, copy_and_hash
from model_store.store import ModelStore
from tests.store.folders import CONFIG, write_json

PICKLE_LIKE = [
    "pytorch_model.bin",
    "training_args.bin",
    "a.pt",
    "a.pth",
    "a.pkl",
    "a.pickle",
    "a.ckpt",
    "A.BIN",
    "a.npz",
]
OTHER_WEIGHTS = ["tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf"]
CODE = ["modeling_custom.py", "sub/tokenizer.py", "a.so", "a.sh"]
NOT_NEEDED = ["model.safetensors.tmp", "archive.zip", "no_suffix"]


def assert_refused(store: ModelStore, source: Path, *words: str, **arguments: object) -> None:
    for take_in in (store.publish, store.import_folder):
        with pytest.raises(ValueError, match=re.escape(words[0])) as refusal:
            take_in(source, "m", **arguments)
        for word in words:
            assert word in str(refusal.value)
    assert store.list() == ()
    area = store.root / STAGING_AREA
    assert not area.exists() or not list(area.iterdir())


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        *((file, "save_pretrained") for file in PICKLE_LIKE + OTHER_WEIGHTS),
        *((file, "architecture transformers itself has") for file in CODE),
        *((file, "remove it") for file in NOT_NEEDED),
    ],
)
def test_a_file_of_a_forbidden_kind_is_refused(store: ModelStore, source: Path, file: str, remedy: str) -> None:
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).write_bytes(b"")
    assert_refused(store, source, f"'{file}'", remedy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "sub/processor_config.json"])
@pytest.mark.parametrize("nest", [lambda content: content, lambda content: {"text_config": [content]}])
def test_remote_code_is_refused(
    store: ModelStore, source: Path, file: str, nest: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    (source / file).parent.mkdir(exist_ok=True)
    write_json(source / file, {**CONFIG, **nest({"auto_map": {"AutoModel": "modeling.Model"}})})
    assert_refused(store, source, f"'{file}'", "auto_map", "Remedy")


def test_a_token_named_auto_map_is_no_remote_code(store: ModelStore, source: Path) -> None:
    assert "auto_map" in json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    assert store.publish(source, "m").version == "1"


def link_file(source: Path) -> str:
    (source / "vocab.txt").symlink_to(source / "config.json")
    return "vocab.txt"


def link_folder(source: Path) -> str:
    (source / "more").symlink_to(source / "chat")
    return "more"


def replace_weights_by_link(source: Path) -> str:
    (source / "model.safetensors").rename(source.parent / "elsewhere")
    (source / "model.safetensors").symlink_to(source.parent / "elsewhere")
    return "model.safetensors"


@pytest.mark.parametrize("damage", [link_file, link_folder, replace_weights_by_link])
def test_a_symbolic_link_is_refused(store: ModelStore, source: Path, damage: Callable[[Path], str]) -> None:
    assert_refused(store, source, f"'{damage(source)}'", "cp -rL")


def test_a_pipe_is_refused(store: ModelStore, source: Path) -> None:
    os.mkfifo(source / "vocab.txt")
    assert_refused(store, source, "'vocab.txt'", "not a regular file")


def test_what_is_checked_is_the_copy_and_not_a_source_that_changes_meanwhile(store: ModelStore, source: Path) -> None:
    def copy_what_is_put_there_for_a_moment(origin: Path, destination: Path) -> FileRecord:
        harmless = origin.read_bytes()
        if origin.name == "config.json":
            write_json(origin, {**CONFIG, "auto_map": {"AutoModel": "modeling.Model"}})
        record = copy_and_hash(origin, destination)
        origin.write_bytes(harmless)
        return record

    assert_refused(ModelStore(store.root, copy_file=copy_what_is_put_there_for_a_moment), source, "auto_map")


def test_a_link_put_in_place_of_a_listed_file_is_not_followed(store: ModelStore, source: Path) -> None:
    def swap_then_copy(origin: Path, destination: Path) -> FileRecord:
        if not origin.is_symlink():
            origin.rename(origin.with_suffix(".old"))
            origin.symlink_to(origin.with_suffix(".old"))
        return copy_and_hash(origin, destination)

    with pytest.raises(OSError, match="symbolic links"):
        ModelStore(store.root, copy_file=swap_then_copy).publish(source, "m")
    assert store.list() == ()


@pytest.mark.parametrize(
    "changed", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"\x80\x04" + data]
)
def test_a_file_that_is_no_intact_safetensors_is_refused(
    store: ModelStore, source: Path, changed: Callable[[bytes], bytes]
) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(changed(weights.read_bytes()))
    assert_refused(store, source, "'model.safetensors'", "not an intact safetensors file", "Remedy")


def test_an_empty_set_of_weights_is_refused(store: ModelStore, source: Path) -> None:
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert_refused(store, source, "'model.safetensors'", "no tensor")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "config.json",
            {**CONFIG, "architectures": ["BertForMaskedLM"], "model_type": "bert"},
            "no causal language model",
        ),
        ("config.json", {**CONFIG, "architectures": ["SecretForCausalLM"]}, "no causal language model"),
        ("config.json", {**CONFIG, "model_type": "gpt2"}, "no causal language model"),
        ("config.json", {**CONFIG, "architectures": [["x"]]}, "no causal language model"),
        ("config.json", {**CONFIG, "architectures": None}, "names its type and one class"),
        ("config.json", {"vocab_size": 4}, "names its type and one class"),
        ("config.json", [1], "not an object"),
        ("tokenizer.json", {"model": 1}, "tokenizers cannot read it"),
        ("model.safetensors.index.json", {}, "no weight_map"),
        (
            "model.safetensors.index.json",
            {"weight_map": {"w": "model-2.safetensors"}},
            "'model-2.safetensors' is absent",
        ),
        ("model.safetensors.index.json", {"weight_map": {"w": "../../secret"}}, "'../../secret' is absent"),
        ("model.safetensors.index.json", {"weight_map": {"w": "model.safetensors"}}, "lacks 'w'"),
    ],
)
def test_what_is_no_plain_causal_language_model_is_refused(
    store: ModelStore, source: Path, file: str, content: object, words: str
) -> None:
    write_json(source / file, content)
    assert_refused(store, source, f"'{file}'", words)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, '{"a": "\udcff"}'])
def test_a_file_that_is_not_json_is_refused(store: ModelStore, source: Path, text: str) -> None:
    (source / "generation_config.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    assert_refused(store, source, "'generation_config.json'", "not JSON")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_a_needed_file_is_refused(store: ModelStore, source: Path, file: str) -> None:
    (source / file).unlink()
    assert_refused(store, source, f"'{file}' is absent", "save_pretrained")


def test_more_bytes_than_allowed_are_refused(store: ModelStore, source: Path) -> None:
    num_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    assert_refused(store, source, f"holds {num_bytes} bytes", "--max-bytes", max_bytes=num_bytes - 1)
    assert store.publish(source, "m", max_bytes=num_bytes).manifest.num_bytes == num_bytes


def test_more_files_than_a_checkpoint_has_are_refused(store: ModelStore, source: Path) -> None:
    for number in range(1001):
        (source / f"{number}.txt").touch()
    assert_refused(store, source, "more than 1000 files")


def test_a_name_that_would_garble_a_terminal_is_refused(store: ModelStore, source: Path) -> None:
    (source / "a\x1b[31m.txt").touch()
    assert_refused(store, source, "cannot be printed")


@pytest.mark.parametrize("missing", [True, False])
def test_a_source_that_is_no_folder_is_refused(store: ModelStore, source: Path, missing: bool) -> None:
    assert_refused(store, source / "nowhere" if missing else source / "config.json", "is not a folder")


def test_an_intact_sharded_checkpoint_is_taken(store: ModelStore, source: Path) -> None:
    for shard in (1, 2):
        shutil.copy(source / "model.safetensors", source / f"model-{shard}.safetensors")
    (source / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-2.safetensors"}}
    write_json(source / "model.safetensors.index.json", index)
    assert store.publish(source, "m").manifest.num_parameters == 32


def test_what_is_no_part_of_a_checkpoint_is_left_out_and_said(store: ModelStore, source: Path) -> None:
    (source / ".git").mkdir()
    (source / ".git" / "hook.py").touch()
    (source / ".gitattributes").touch()
    (source / "manifest.json").touch()
    published = store.publish(source, "m")
    assert published.left_out == (".git", ".gitattributes", "manifest.json")
    assert store.verify("m").ok
