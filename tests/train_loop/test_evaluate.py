"""An evaluation's figures are of the text they name, a killed run goes on, and what is written can be published."""

import hashlib
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_repository import ROOT
from tests.train_loop.small_model import EOS, byte_tokenizer, save_small_model
from training import evaluate
from training.evaluation_sections import bits_per_byte, describe_split, load_model
from training.passages import PASSAGE_BYTES, SplitNats, passage_ends, split_nats, windows


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation_text")
    rng = Random(0)
    words = ["the", "old", "man", "sea", "went", "<b>", "é."]
    for split in ("train", "valid", "test"):
        documents = ["\n".join(" ".join(rng.choices(words, k=12)) for _ in range(60)) for _ in range(3)]
        (folder / f"{split}.txt").write_text("<|endoftext|>".join(documents))
    return folder


def command(model_dir: Path, text: Path, output: Path, *more: str) -> list[str]:
    line = f"{model_dir} --dataset {text} --num-prompts 20 --prompt-tokens 8 --new-tokens 40 --num-bootstrap 50"
    reference = ROOT / "models" / "tiny_iit" / "3" / "quality_reference.json"
    return [*line.split(), *f"--quality-reference {reference} --num-threads 1 --output {output}".split(), *more]


@given(st.text(alphabet=st.sampled_from("ab \né\U0001f600"), min_size=1, max_size=40), st.integers(1, 200))
def test_passages_are_the_whole_text_and_end_at_lines(piece: str, times: int) -> None:
    document = piece * times
    ends = passage_ends(document)
    assert ends[-1] == len(document)
    passages = [document[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert all(len(p.encode()) >= PASSAGE_BYTES and p.endswith("\n") for p in passages[:-1])
    assert all(len(p[:-1].rpartition("\n")[0].encode()) < PASSAGE_BYTES for p in passages)


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_token_is_predicted_once_from_as_much_context_as_there_is(
    n: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    found = windows(n, context, stride)
    assert [t for _, first, end in found for t in range(first, end)] == list(range(n))
    for begin, first, end in found:
        assert end - begin == min(end, context)
        assert begin == 0 or first - begin >= context - stride


def naive_nats(model: torch.nn.Module, document: str, context: int, stride: int) -> list[float]:
    """Token by token: the twin of split_nats()."""
    ids = [EOS, *byte_tokenizer().encode(document).ids]
    nats = []
    for token in range(len(ids) - 1):
        end = min((token // stride + 1) * stride, len(ids) - 1)
        seen = torch.tensor([ids[max(0, end - context) : token + 1]])
        with torch.inference_mode():
            nats.append(-float(model(input_ids=seen).logits[0, -1].log_softmax(-1)[ids[token + 1]]))
    return nats


@pytest.mark.parametrize("stride", [24, 7])
def test_nats_by_passage_are_those_of_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    monkeypatch.setattr("training.passages.PASSAGE_BYTES", 30)
    model = load_model(save_small_model(tmp_path))
    documents = ["one é line\nand another that is longer\nthe end\n" * 2, "short"]
    found = split_nats(model, byte_tokenizer(), documents, EOS, context=24, stride=stride)
    expected = []
    for document in documents:
        nats = naive_nats(model, document, 24, stride)
        at = 0
        for end in passage_ends(document):
            size = len(document[:end].encode())
            expected.append(sum(nats[at:size]))  # one token a byte
            at = size
    np.testing.assert_allclose(found.nats_P, expected, rtol=1e-4)
    assert int(found.bytes_P.sum()) == found.num_tokens == sum(len(d.encode()) for d in documents)


def test_uniform_predictions_cost_what_theory_says() -> None:
    nats_P, bytes_P = np.full(30, 100 * math.log(256)), np.full(30, 100)
    found = describe_split(SplitNats(bytes_P, nats_P, 1, 3000, 600), 50, 0)
    assert found["bits_per_byte"] == {"value": 8.0, "low": 8.0, "high": 8.0}
    assert found["token_perplexity"] == pytest.approx(256)
    assert found["word_perplexity"] == pytest.approx(256.0**5)
    assert found["tokens_per_word"] == 5


def check_schema(content: dict[str, Any], weights: bytes) -> None:
    """What the publishing gate reads, strictly."""
    assert list(content) == [
        "format",
        "weights_sha256",
        "generation_config_sha256",
        "protocol",
        "passages",
        "prompt_scores",
        "report",
    ]
    assert content["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    protocol = content["protocol"]
    assert set(protocol) == {
        "splits",
        "context",
        "stride",
        "prompts_sha256",
        "num_prompts",
        "prompt_tokens",
        "new_tokens",
        "seed",
        "quality_reference_sha256",
    }
    assert sum(p["num_bytes"] for p in content["passages"]) == sum(s["num_bytes"] for s in protocol["splits"])
    assert all(p["num_bytes"] > 0 and p["nats"] >= 0 for p in content["passages"])
    assert len(content["prompt_scores"]) == protocol["num_prompts"]
    assert all(score is None or 0 <= score <= 1 for score in content["prompt_scores"])


def test_a_killed_run_goes_on_to_the_same_result_which_can_be_published(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir, output = save_small_model(tmp_path / "model"), tmp_path / "out"
    arguments = command(model_dir, text, output, "--save", "--name", "small")
    assert evaluate.main(arguments) == 0
    first = (model_dir / "evaluation.json").read_bytes()
    assert first == (output / "evaluation.json").read_bytes()
    content = json.loads(first)
    check_schema(content, (model_dir / "model.safetensors").read_bytes())
    report = content["report"]
    assert report["name"] == "small"
    rows = np.array([[p["nats"], p["num_bytes"]] for p in content["passages"]])
    of_valid = rows[: report["splits"]["valid"]["num_passages"]]
    assert report["splits"]["valid"]["bits_per_byte"]["value"] == pytest.approx(bits_per_byte(of_valid), abs=1e-4)
    page = (output / "evaluation.html").read_text()
    assert "<svg" in page
    assert "src=" not in page
    assert "<b>" not in page

    (output / "sections" / "decoding-temperature=0-top_p=1.json").unlink()
    (output / "evaluation.json").unlink()
    made: list[dict[str, float]] = []
    decode = evaluate.Evaluation._decoding
    monkeypatch.setattr(
        evaluate.Evaluation,
        "_decoding",
        lambda self, setting, *rest: made.append(setting) or decode(self, setting, *rest),
    )
    assert evaluate.main(arguments) == 0
    assert made == [{"temperature": 0.0, "top_p": 1.0}]
    assert (output / "evaluation.json").read_bytes() == first


def test_sections_of_other_weights_or_settings_are_made_again(tmp_path: Path) -> None:
    made: list[int] = []
    for identity, settings in (("a", 1), ("a", 1), ("b", 1), ("b", 2)):
        sections = evaluate.Sections(tmp_path, identity)
        assert sections.get("x y", settings, lambda: made.append(0) or {"n": 7}) == {"n": 7}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--splits", "dev"], "splits has 'dev'"),
        (["--num-prompts", "5"], "num_prompts is 5: give at least 20"),
        (["--context", "97"], "context is 97: give 2 to 96"),
        (["--stride", "97"], "stride is 97: give 1 to 96"),
        (["--new-tokens", "90"], "prompt_tokens + new_tokens is 98"),
        (["--dataset", "/nowhere"], "dataset='/nowhere'"),
        (["--name", "a/b"], "a/b"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, text: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = save_small_model(tmp_path / "model")
    capsys.readouterr()
    assert evaluate.main(command(model_dir, text, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_published_folder_is_not_written_to(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = save_small_model(tmp_path / "model")
    (model_dir / "manifest.json").write_text("{}")
    assert evaluate.main(command(model_dir, text, tmp_path / "out", "--save")) == 2
    assert "is published and never changes" in capsys.readouterr().err
    assert not (model_dir / "evaluation.json").exists()


def test_a_checkpoint_without_a_quality_reference_is_told_the_command(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = save_small_model(tmp_path / "model")
    arguments = f"{model_dir} --dataset {text} --prompt-tokens 8 --new-tokens 40"
    assert evaluate.main(arguments.split()) == 2
    shown = capsys.readouterr().err
    assert "python -m serve.quality fit" in shown
    assert "--quality-reference FILE" in shown
