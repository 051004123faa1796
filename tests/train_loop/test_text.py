"""Text and tokens: splits share nothing, tokens stand for the bytes counted, local files are read as documented."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from training.corpora import SEPARATOR, SPLITS, load_corpus
from training.evaluation import Evaluator
from training.packing import TokenStream, WindowDataset, prepare
from training.tokenizer import _line_pieces, encode, train_tokenizer


@pytest.mark.slow
def test_pydoc_is_two_megabytes_in_three_splits_that_share_no_paragraph() -> None:
    corpus = load_corpus("pydoc")
    assert 1_500_000 < sum(len(d) for docs in corpus.documents.values() for d in docs) < 4_000_000
    paragraphs = {
        s: {" ".join(p.lower().split()) for d in corpus.documents[s] for p in d.split("\n\n")} for s in SPLITS
    }
    assert min(len(found) for found in paragraphs.values()) > 100
    assert not paragraphs["train"] & paragraphs["valid"]
    assert not paragraphs["train"] & paragraphs["test"]
    assert not paragraphs["valid"] & paragraphs["test"]


def test_compressed_files_hold_the_same_documents(tmp_path: Path) -> None:
    text = SEPARATOR.join(f"Document {n} says ünïcödé things." for n in range(100))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(text.encode()))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(text.encode()))
    corpora = [load_corpus(str(tmp_path / name)) for name in ("a.txt", "b.txt.xz", "c.txt.zst")]
    assert corpora[0].documents == corpora[1].documents == corpora[2].documents
    assert sum(len(documents) for documents in corpora[0].documents.values()) == 100


def test_one_long_document_is_cut_at_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n\n".join(f"Paragraph number {n}." for n in range(100)))
    documents = load_corpus(str(tmp_path / "train.txt")).documents
    assert [documents[split][0].count("Paragraph") for split in SPLITS] == [90, 5, 5]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.md": b"text"}, "holds no"),
        ({"train.txt": b"a", "valid.txt": b"b"}, "no test.txt"),
        ({"train.txt": b"a", "valid.txt": b"b", "test.txt": b"c", "extra.txt": b"d"}, "names no split"),
        ({"train.txt": b"\xff\xfe\xff"}, "not UTF-8"),
        ({"a.txt.xz": b"not xz"}, "cannot be read"),
        ({"a.txt": b""}, "no text"),
    ],
)
def test_text_that_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_corpus(str(tmp_path))


def test_a_hub_data_set_that_cannot_be_had_says_what_to_run() -> None:
    with pytest.raises(ValueError, match="hf download --repo-type dataset Salesforce/wikitext"):
        load_corpus("wikitext-2")


@given(st.text(alphabet=st.sampled_from("ab \n\t.é"), max_size=300), st.integers(1, 20))
@settings(max_examples=200)
def test_pieces_join_to_the_document(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.tokenizer._PIECE_CHARACTERS", size)
        assert "".join(_line_pieces(text)) == text


def test_tokens_of_pieces_are_those_of_the_whole_document(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = ["One line.\n  Two   lines!\n\n\nAnd a third, with words and words.\n" * 40]
    tokenizer = train_tokenizer(documents, 280, 64)
    whole = tokenizer(documents[0], add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("training.tokenizer._PIECE_CHARACTERS", 50)
    assert list(encode(tokenizer, documents)) == [whole]


def test_a_separator_follows_every_document_and_windows_cover_the_stream(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(data))
    tokenizer, streams = prepare(corpus, None, 512, 32, tmp_path)
    ids = np.asarray(streams["train"].ids)
    assert int((ids == tokenizer.eos_token_id).sum()) == len(corpus.documents["train"])
    assert tokenizer.decode(ids.tolist()) == "".join(d + SEPARATOR for d in corpus.documents["train"])
    windows = WindowDataset(streams["train"], 32)
    assert torch.cat([windows[i]["input_ids"] for i in range(len(windows))]).equal(
        torch.tensor(ids[: len(windows) * 32])
    )


def test_changing_the_tokenizer_folder_makes_new_tokens(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(data))
    sizes = []
    for vocab_size in (400, 500):
        train_tokenizer(corpus.documents["train"], vocab_size, 32).save_pretrained(tmp_path / "tokenizer")
        tokenizer, _ = prepare(corpus, str(tmp_path / "tokenizer"), 8192, 32, tmp_path / "cache")
        sizes.append(len(tokenizer))
    assert sizes == [400, 500]


def test_a_uniform_model_has_the_bits_per_byte_of_its_vocabulary(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(data))
    tokenizer, streams = prepare(corpus, None, 512, 32, tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, **sizes))
    torch.nn.init.zeros_(model.lm_head.weight)
    held_out = Evaluator(streams["valid"], tokenizer, 32)(model)
    assert held_out.num_tokens == len(streams["valid"].ids) - 1  # each token once, but the first
    assert held_out.perplexity == pytest.approx(512, rel=1e-5)
    assert held_out.bits_per_byte == pytest.approx(9 * held_out.num_tokens / held_out.num_bytes, rel=1e-6)


def test_bytes_counted_are_those_of_the_text_predicted(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(data))
    tokenizer, streams = prepare(corpus, None, 512, 32, tmp_path)
    first = len(tokenizer.decode([int(streams["valid"].ids[0])]).encode())
    assert Evaluator(streams["valid"], tokenizer, 32).num_bytes == streams["valid"].num_bytes - first


def test_a_split_of_one_token_is_refused(data: Path, tmp_path: Path) -> None:
    tokenizer, streams = prepare(load_corpus(str(data)), None, 512, 32, tmp_path)
    with pytest.raises(ValueError, match="fewer than 2 tokens"):
        Evaluator(TokenStream(streams["valid"].ids[:1], 1), tokenizer, 32)
