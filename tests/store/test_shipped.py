"""The checkpoint that ships: whole as published, small, plain, causal."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_store.catalog import Resolved
from model_store.store import ModelStore
from tests.test_repository import ROOT


@pytest.fixture(scope="module")
def shipped() -> Resolved:
    return ModelStore(ROOT / "models").resolve("tiny_iit@3")


def test_every_byte_is_as_published_and_there_are_at_most_16_megabytes(shipped: Resolved) -> None:
    assert ModelStore(ROOT / "models").verify("tiny_iit@3").ok
    assert sum(file.stat().st_size for file in shipped.path.rglob("*")) < 16e6


def test_it_loads_in_transformers_and_finds_english_likelier_than_its_words_shuffled(shipped: Resolved) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shipped.path)
    nats = {}
    for name, text in {
        "english": "He went into the house and sat down by the fire. She looked at him for a long time.",
        "shuffled": "long him the She by for. sat time went He and house fire the down into at a looked.",
    }.items():
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
        nats[name] = float(model(ids, labels=ids).loss.detach())
    assert nats["english"] < nats["shuffled"] - 1


def test_a_later_token_changes_nothing_before_it(shipped: Resolved) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped.path, dtype=torch.float32)
    ids = torch.arange(100, 132).unsqueeze(0)
    changed = ids.clone()
    changed[0, 20] = 7
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[0, :20], after[0, :20])
    assert not torch.equal(before[0, 20:], after[0, 20:])
