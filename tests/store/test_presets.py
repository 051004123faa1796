"""Presets are standard, causal Llama models of the promised size."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from model_store.presets import PRESETS, build_model_config

ALL_PRESETS = sorted(PRESETS)


def tiny_vocabulary_model(preset: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = build_model_config(preset, vocab_size=31, max_position_embeddings=16, bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("preset", "layers", "heads", "hidden", "parameters"),
    [
        ("tiny_iit", 2, 4, 256, 3_802_368),
        ("small_iit", 3, 6, 384, 8_899_200),
        ("large_iit", 4, 8, 512, 17_830_400),
    ],
)
def test_a_preset_with_8192_ids_has_the_promised_shape_and_size(
    preset: str, layers: int, heads: int, hidden: int, parameters: int
) -> None:
    config = build_model_config(preset, vocab_size=8192, max_position_embeddings=256)
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (layers, heads, hidden)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_changing_a_token_changes_no_logits_before_it(preset: str) -> None:
    model = tiny_vocabulary_model(preset)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 31, (1, 9), generator=generator)
    changed_BT = ids_BT.repeat(9, 1)  # row t: the same text with token t changed
    diagonal = torch.arange(9)
    changed_BT[diagonal, diagonal] = (ids_BT[0] + 7) % 31
    with torch.no_grad():
        logits_BTV = model(input_ids=torch.cat([ids_BT, changed_BT])).logits
    for t in range(9):
        torch.testing.assert_close(logits_BTV[1 + t, :t], logits_BTV[0, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(logits_BTV[1 + t, t], logits_BTV[0, t], atol=1e-4)
        if t < 8:  # and it does look back, or the claim above would be empty
            assert not torch.allclose(logits_BTV[1 + t, 8], logits_BTV[0, 8], atol=1e-6)


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_a_saved_preset_loads_as_a_plain_causal_model_with_the_same_logits(preset: str, tmp_path: Path) -> None:
    model = tiny_vocabulary_model(preset)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    ids_BT = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids_BT).logits, model(ids_BT).logits, rtol=0, atol=0)
    assert type(loaded) is LlamaForCausalLM


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_the_saved_configuration_has_no_field_of_ours(preset: str, tmp_path: Path) -> None:
    config = build_model_config(preset, vocab_size=31, max_position_embeddings=16)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(saved) <= set(LlamaConfig().to_dict())
    assert saved["tie_word_embeddings"] is True
    assert saved["attention_bias"] is False
    assert saved["attention_dropout"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge_iit"}, r"preset='huge_iit' .*tiny_iit"),
        ({"vocab_size": 0}, "vocab_size=0 .*positive"),
        ({"max_position_embeddings": -1}, "max_position_embeddings=-1 .*positive"),
        ({"eos_token_id": 31}, "eos_token_id=31 .*0 to 30"),
        ({"pad_token_id": -1}, "pad_token_id=-1 .*0 to 30"),
    ],
)
def test_a_bad_argument_is_named_with_its_remedy(arguments: dict[str, object], message: str) -> None:
    valid = {"preset": "tiny_iit", "vocab_size": 31, "max_position_embeddings": 16}
    with pytest.raises(ValueError, match=message):
        build_model_config(**{**valid, **arguments})
