"""From a folder to a runner, a tokenizer and defaults; the choice of the runner is always told."""

import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

from serve.engine.loader import load_runner, load_tokenizer
from serve.engine.model_files import (
    default_sampling_params,
    read_config,
    read_eos_token_ids,
    read_max_model_len,
)
from serve.engine.request import SamplingParams
from serve.engine.runner import RunnerOptions, default_num_blocks
from tests.engine.helpers import ContextRunner, tiny_model
from tests.engine.tokenizers_built_here import byte_level


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    return folder


def native_module(monkeypatch: pytest.MonkeyPatch, obstacle: str | None) -> None:
    module = types.ModuleType("serve.engine.native_runner")
    module.why_unsupported = lambda model_dir: obstacle
    module.load_native_runner = lambda model_dir, options: ContextRunner(options.max_slots)
    monkeypatch.setitem(sys.modules, "serve.engine.native_runner", module)


def test_auto_takes_the_native_runner_where_it_can_serve_the_model(model_dir, monkeypatch, caplog) -> None:
    native_module(monkeypatch, None)
    with caplog.at_level(logging.INFO, logger="serve.engine.loader"):
        loaded = load_runner(model_dir)
    assert loaded.name == "native"
    assert "runner native" in caplog.text


@pytest.mark.parametrize("obstacle", ["its library is not built: run make native", "architecture X is not served"])
def test_auto_takes_torch_otherwise_and_says_why(model_dir, monkeypatch, caplog, obstacle: str) -> None:
    native_module(monkeypatch, obstacle)
    with caplog.at_level(logging.INFO, logger="serve.engine.loader"):
        loaded = load_runner(model_dir, options=RunnerOptions(max_slots=2))
    assert (loaded.name, loaded.runner.name) == ("torch", "torch")
    assert obstacle in loaded.reason
    assert obstacle in caplog.text


def test_an_option_only_torch_has_rules_the_native_runner_out(model_dir, monkeypatch) -> None:
    native_module(monkeypatch, None)
    loaded = load_runner(model_dir, options=RunnerOptions(max_slots=2, dtype="float64"))
    assert loaded.name == "torch"
    assert "float64" in loaded.reason


def test_torch_can_be_asked_for(model_dir, monkeypatch) -> None:
    native_module(monkeypatch, None)
    assert load_runner(model_dir, "torch", RunnerOptions(max_slots=2)).name == "torch"


def test_native_asked_for_is_never_replaced(model_dir, monkeypatch) -> None:
    native_module(monkeypatch, "its library is not built")
    with pytest.raises(ValueError, match="runner is 'native': its library is not built; or choose runner 'torch'"):
        load_runner(model_dir, "native")


def test_bad_choices_and_folders_are_refused_with_a_remedy(model_dir, tmp_path) -> None:
    with pytest.raises(ValueError, match="runner is 'gpu': give one of auto, native, torch"):
        load_runner(model_dir, "gpu")
    with pytest.raises(ValueError, match=r"has no config.json"):
        load_runner(tmp_path)
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        load_runner(model_dir, "torch", RunnerOptions(dtype="int3"))
    with pytest.raises(ValueError, match="max_slots is 0"):
        RunnerOptions(max_slots=0)


def test_a_tokenizer_comes_from_its_file_or_an_error_says_what_to_do(model_dir, tmp_path) -> None:
    assert load_tokenizer(model_dir).encode("the dog").ids == byte_level().encode("the dog").ids
    with pytest.raises(ValueError, match=r"has no tokenizer.json; save a fast tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="save it again"):
        load_tokenizer(tmp_path)


def test_defaults_come_from_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert default_sampling_params(tmp_path) == SamplingParams()
    content = {"temperature": 0.6, "top_k": 20, "top_p": None, "repetition_penalty": 1, "transformers_version": "x"}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert default_sampling_params(tmp_path) == SamplingParams(temperature=0.6, top_k=20)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert default_sampling_params(tmp_path).temperature == 0
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 3}))
    with pytest.raises(ValueError, match=r"generation_config.json: top_p is 3"):
        default_sampling_params(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        ({"eos_token_id": 5}, None, (5,)),
        ({"eos_token_id": 5}, {"eos_token_id": [6, 7]}, (6, 7)),
        ({"eos_token_id": [0]}, {}, (0,)),
        ({}, None, ()),
    ],
)
def test_eos_ids_come_from_generation_config_then_config(tmp_path, config, generation, wanted) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_eos_token_ids(tmp_path) == wanted


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list"):
        read_config(tmp_path)
    assert read_max_model_len({"n_positions": 7}) == 7
    with pytest.raises(ValueError, match="give max_model_len"):
        read_max_model_len({})


def test_the_pool_is_sized_for_all_slots_and_at_least_one_whole_text() -> None:
    assert default_num_blocks(32, 256) == 32 * 16
    assert default_num_blocks(32, 100_000) == 6250
    assert default_num_blocks(1, 17) == 2


def test_the_engine_without_a_torch_runner_imports_no_torch() -> None:
    code = (
        "import sys, serve.engine.engine, serve.engine.loader, serve.engine.detokenizer, serve.engine.model_files; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
