"""A checkpoint folder of a few kilobytes that passes every rule of the store, made without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4,
    "hidden_size": 8,
}


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", {"do_sample": True})
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "auto_map": 2}, merges=[])).save(str(folder / "tokenizer.json"))
    weights = {"model.embed_tokens.weight": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat").mkdir(exist_ok=True)
    (folder / "chat" / "template.jinja").write_text("{{ messages }}")
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def flip_bit(path: Path, position: int) -> None:
    """Flip one bit of byte number `position`, counted round the file."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << (position % 8)
    path.write_bytes(data)
