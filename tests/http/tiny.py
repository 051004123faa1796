"""A tiny random Llama folder, written without torch, whose tokenizer has one token for each byte."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INTERMEDIATE, LAYERS, HEADS = 32, 64, 2, 2
END = 256
VOCAB = 257
MAX_LEN = 4096
LETTERS = "abcdefghijklmnopqrstuvwxyz .,"


def write_tiny_model(folder: Path) -> Path:
    """Weights favour ASCII letters, so that the text is readable; the end token is as rare as any other."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _write_tokenizer(folder, sorted(alphabet))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": MAX_LEN,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "temperature": 0.9}))
    save_file(_weights(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _write_tokenizer(folder: Path, alphabet: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float32)}
    weights["lm_head.weight"] = _head(normal(VOCAB, HIDDEN))
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        for name in "qkvo":
            weights[f"{prefix}self_attn.{name}_proj.weight"] = normal(HIDDEN, HIDDEN)
        weights[prefix + "mlp.gate_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        weights[prefix + "mlp.up_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        weights[prefix + "mlp.down_proj.weight"] = normal(HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def _head(weight: np.ndarray) -> np.ndarray:
    """Letters get larger rows: their logits spread more, and one of them is usually the largest."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = {" ": "\u0120"}
    for letter in LETTERS:
        weight[alphabet.index(byte_level.get(letter, letter))] *= 4
    return weight
