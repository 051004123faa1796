"""Tiny random-weight transformers models, one per architecture the probe is held to. No download."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 96
NUM_HEADS = 4


def tiny_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """gpt2, llama (grouped keys), qwen3 (head width not hidden / heads) or lfm2 (convolution layer, then attention)."""
    torch.manual_seed(seed)
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=NUM_HEADS, n_positions=64, vocab_size=VOCAB_SIZE)
        )
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 64,
    }
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
    assert architecture == "lfm2"
    return Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention"]))


def token_ids(num_sequences: int = 2, length: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (num_sequences, length), generator=torch.Generator().manual_seed(seed))
