"""The shapes of model that training offers, as plain transformers configurations.

A preset decides width, depth and heads; the tokenizer and the data decide vocabulary and positions. transformers is
imported only when a configuration is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True, slots=True)
class PresetShape:
    """Sizes of a Llama-style decoder: as many key-value heads as heads, so that each head is one unit of Phi."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int


PRESETS: Mapping[str, PresetShape] = MappingProxyType(
    {
        "tiny_iit": PresetShape(hidden_size=256, num_layers=2, num_heads=4, intermediate_size=768),
        "small_iit": PresetShape(hidden_size=384, num_layers=3, num_heads=6, intermediate_size=1152),
        "large_iit": PresetShape(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=1536),
    }
)


def build_model_config(
    preset: str,
    *,
    vocab_size: int,
    max_position_embeddings: int,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> "LlamaConfig":
    """The LlamaConfig of a preset: tied embeddings, no biases, no dropout, no field that transformers does not define.

    A special id left at None is saved as null: the tokenizer has no such token.
    Raises ValueError for an unknown preset, sizes below 1, or a special id outside the vocabulary.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not known; choose one of {', '.join(sorted(PRESETS))}")
    for field, size in (("vocab_size", vocab_size), ("max_position_embeddings", max_position_embeddings)):
        if size < 1:
            raise ValueError(f"{field}={size} is below 1; give a positive number")
    special_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    for field, token_id in special_ids.items():
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{field}={token_id} is outside the vocabulary; give an id from 0 to {vocab_size - 1}, or None"
            )
    from transformers import LlamaConfig

    shape = PRESETS[preset]
    return LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        attention_dropout=0.0,
        **special_ids,
    )
