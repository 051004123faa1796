"""The fewest tokens that a text can have, known without tokenising it. `tokenizers` only; no HTTP, no limits.

Tokenising a text takes many times its size in memory, and the allocator keeps much of that: a text that cannot fit is
better not tokenised. The bound counts characters: if no step before the model makes a text shorter, the model drops
nothing and no token stands for more than n characters, then a text of m characters has at least m / n tokens.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

_KEEPING_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace")  # they split or replace one for one or more
_SPLITTING_PRE_TOKENIZERS = ("Split", "Punctuation")  # they drop what they split at, if told to
_REPLACING = ("ByteLevel", "Metaspace", "Replace")
_ADDING_POST_PROCESSORS = ("ByteLevel", "RobertaProcessing", "BertProcessing")


@cache
def longest_token(tokenizer: Tokenizer) -> int | None:
    """The most characters of a text that one token can stand for; None where no such bound is proven.

    Proven for BPE that has a token for every byte or for every unknown character: GPT-2, Llama, Mistral, this project's
    own. Not for what shortens a text before the model or in it: NFC and NFKC (Qwen), Precompiled, stripped
    accents or spaces, words that become one unknown token (WordPiece, Unigram), added tokens that take the spaces
    beside them.
    """
    normalizers = _steps(tokenizer.normalizer, "normalizers")
    pre_tokenizers = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    replacing = [step["type"] for step in [*normalizers, *pre_tokenizers] if step["type"] in _REPLACING]
    if (
        tokenizer.truncation is not None
        or not all(_keeps_normalized(step) for step in normalizers)
        or not all(_keeps_split(step) for step in pre_tokenizers)
        or not all(_keeps_tokens(step) for step in _steps(tokenizer.post_processor, "processors"))
        or not _drops_nothing(tokenizer.model, vocab, bytewise=replacing[-1:] == ["ByteLevel"])
    ):
        return None
    longest = max(map(len, vocab))
    for added in tokenizer.get_added_tokens_decoder().values():
        if added.lstrip or added.rstrip:
            return None
        is_plain = tokenizer.normalizer is None
        found = added.content if is_plain else tokenizer.normalizer.normalize_str(added.content)
        longest = max(longest, len(added.content), len(found))
    return longest


def fewest_tokens(text: str, tokenizer: Tokenizer) -> int:
    """A number of tokens that the text has at least; 0 where no bound is proven for the tokenizer."""
    longest = longest_token(tokenizer)
    return 0 if longest is None else -(-len(text) // longest)


def _steps(component: Any, parts: str) -> list[Mapping[str, Any]]:
    """A tokenizer's normaliser, pre-tokeniser or post-processor as a flat list of its steps."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), parts)


def _flat(step: Mapping[str, Any], parts: str) -> list[Mapping[str, Any]]:
    return [inner for part in step[parts] for inner in _flat(part, parts)] if step["type"] == "Sequence" else [step]


def _keeps_normalized(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        replaced = step["pattern"].get("String")
        return bool(replaced) and len(step["content"]) >= len(replaced)
    return step["type"] in ("Prepend", "ByteLevel")


def _keeps_split(step: Mapping[str, Any]) -> bool:
    if step["type"] in _SPLITTING_PRE_TOKENIZERS:
        return bool(step["behavior"] != "Removed")
    return step["type"] in _KEEPING_PRE_TOKENIZERS


def _keeps_tokens(step: Mapping[str, Any]) -> bool:
    if step["type"] == "TemplateProcessing":
        return any("Sequence" in piece and piece["Sequence"]["id"] == "A" for piece in step["single"])
    return step["type"] in _ADDING_POST_PROCESSORS


def _drops_nothing(model: Any, vocab: Mapping[str, int], *, bytewise: bool) -> bool:
    """Whether every character that comes to the model becomes a part of a token, or one or more of its own.

    bytewise: those characters are the letters that stand for bytes.
    """
    if not isinstance(model, models.BPE):
        return False
    if bytewise and not model.continuing_subword_prefix and not model.end_of_word_suffix:
        return all(letter in vocab for letter in ByteLevel.alphabet())
    if model.byte_fallback and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return True
    # an unknown character without an unknown token is dropped; fused, any number of them is one token
    return model.unk_token in vocab and not model.fuse_unk
