"""A random Llama of two layers with a byte-level tokenizer, saved as a folder."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 257
EOS = 256


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and the end-of-text token behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def save_small_model(folder: Path) -> Path:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=96,
            initializer_range=0.2,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
        model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=EOS, eos_token_id=EOS, do_sample=True, temperature=0.8
    )
    model.save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
