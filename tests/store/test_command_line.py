"""`python -m model_store`: what it prints and its exit status. No traceback reaches anyone."""

import json
from pathlib import Path

import pytest

from model_store.__main__ import main
from model_store.store import ModelStore
from tests.store.folders import flip_bit


@pytest.fixture
def run(store: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("MODEL_STORE_ROOT", str(store.root))

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


def test_a_checkpoint_goes_from_publish_to_rollback(run, store: ModelStore, source: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "training.json").write_text('{"preset": "tiny_iit"}')
    status, out, _ = run(
        *("publish", source, "m", "--training", tmp_path / "training.json", "--metrics", '{"bits_per_byte": 2.1}'),
        *("--tokens-seen", 12, "--alias", "production"),
    )
    assert (status, out) == (0, f"m@1 is in {store.root / 'm' / '1'}\n")
    manifest = store.show("m@production").manifest
    assert manifest is not None
    assert (manifest.training, manifest.metrics) == ({"preset": "tiny_iit"}, {"bits_per_byte": 2.1})
    assert manifest.tokens_seen == 12
    assert run("publish", source, "m", "--parent", "m", "--json")[0] == 0
    assert run("alias", "m", "production", "latest")[:2] == (0, "m@production is m@2\n")
    assert run("alias", "m", "production", "1")[:2] == (0, "m@production is m@1\n")
    assert run("alias", "m", "production", "--remove")[0] == 0
    assert store.resolve("m").version == "2"


def test_list_and_show_print_tables_for_people_and_json_for_programs(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("list")[:2] == (0, f"no models in {store.root}\n")
    store.publish(source, "m", notes="[red] \x1b[31m")
    assert "LlamaForCausalLM" in run("list")[1]
    shown = run("show", "m")[1]
    assert "[red] \\x1b[31m" in shown
    assert "\x1b" not in shown
    (listed,) = json.loads(run("list", "--json")[1])
    assert listed == json.loads(run("show", "m", "--json")[1])
    assert (listed["name"], listed["version"], listed["aliases"]) == ("m", "1", ["latest"])
    assert listed["manifest"]["files"]["config.json"]["size"] == (source / "config.json").stat().st_size


def test_verify_of_everything_fails_if_one_bit_is_wrong(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    store.publish(source, "a")
    path = store.publish(source, "b").path
    assert run("verify")[0] == 0
    flip_bit(path / "model.safetensors", 100)
    status, out, _ = run("verify")
    assert status == 1
    assert "a@1: intact" in out
    assert "b@1: changed: model.safetensors" in out
    assert run("verify", "a")[0] == 0
    status, out, _ = run("verify", "b", "--json")
    assert (status, json.loads(out)[0]["ok"]) == (1, False)


def test_a_listed_version_with_a_damaged_manifest_is_shown_as_a_problem(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    flip_bit(store.publish(source, "m").path / "manifest.json", 100)
    status, out, _ = run("list")
    assert status == 0
    assert "unusable" in out
    assert run("show", "m@1")[0] == 1


def test_copy_takes_a_version_over_from_another_store(run, store: ModelStore, source: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ModelStore(tmp_path / "other").publish(source, "m")
    assert run("copy", "m", "--from", tmp_path / "other")[:2] == (0, f"m@1 is in {store.root / 'm' / '1'}\n")
    assert run("copy", "m@7", "--from", tmp_path / "other")[0] == 1


def test_import_says_what_it_left_out(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    (source / ".gitattributes").touch()
    status, out, _ = run("import", source, "--name", "theirs")
    assert (status, out) == (0, f"left out: .gitattributes\ntheirs@1 is in {store.root / 'theirs' / '1'}\n")


def test_a_refusal_is_one_line_and_status_1(run, store: ModelStore, source: Path) -> None:  # type: ignore[no-untyped-def]
    (source / "pytorch_model.bin").touch()
    refused = [
        ("publish", source, "m"),
        ("import", source),
        ("show", "m"),
        ("verify", "m"),
        ("alias", "m", "production", "1"),
        ("publish", source, "m", "--metrics", "{"),
        ("publish", source, "m", "--metrics", source / "nowhere.json"),
        ("publish", source, "m", "--training", source / "chat"),
        ("publish", source / "chat", "m", "--root", source / "config.json"),
    ]
    for arguments in refused:
        status, out, err = run(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert store.list() == ()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("publish", "x"),
        ("publish", "x", "../y"),
        ("publish", "x", "y", "--version", "a/b"),
        ("publish", "x", "y", "--tokens-seen", "-1"),
        ("publish", "x", "y", "--alias", "latest"),
        ("copy", "m"),
        ("alias", "m", "production"),
        ("alias", "m", "production", "1", "--remove"),
        ("alias", "m", "7", "1"),
    ],
)
def test_wrong_usage_is_status_2(run, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    status, _, err = run(*arguments)
    assert status == 2
    assert "error: " in err


def test_a_defect_of_the_program_is_reported_without_a_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def broken(self: ModelStore) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(ModelStore, "list", broken)
    status, _, err = run("list")
    assert status == 1
    assert "unexpected ZeroDivisionError: oops" in err
