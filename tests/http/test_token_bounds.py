"""A text is refused unread only if reading it would refuse it too, whatever the tokenizer is made of."""

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from serve.errors import ApiError
from serve.schemas import GenerateRequest, Limits, encode, refuse_too_long
from serve.settings import ServeSettings
from serve.token_bounds import fewest_tokens, longest_token
from tests.engine.tokenizers_built_here import KINDS

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WITHOUT_A_SPACE = [letter for letter in ALPHABET if letter != "Ġ"]
PIECES = ["a", "b", "aa", "▁", "▁▁", "ab", "é"]

NORMALIZERS = {
    "none": lambda: None,
    "prepend": lambda: normalizers.Prepend("▁"),
    "longer": lambda: normalizers.Replace("a", "bbb"),
    "shorter": lambda: normalizers.Replace("aa", "b"),
    "collapse": lambda: normalizers.Replace(Regex(r"\s+"), " "),
    "llama": lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "bytes": normalizers.ByteLevel,
    "bytes, then others": lambda: normalizers.Sequence([normalizers.ByteLevel(), normalizers.Replace("Ġ", "漢漢")]),
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "strip": normalizers.Strip,
    "accents": normalizers.StripAccents,
}
PRE_TOKENIZERS = {
    "none": lambda: None,
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(use_regex=False)]),
    "split": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel()]),
    "removed": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]),
    "metaspace": pre_tokenizers.Metaspace,
    "bytes, then metaspace": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(), pre_tokenizers.Metaspace(replacement="漢")]
    ),
    "white space": pre_tokenizers.Whitespace,
}
POST_PROCESSORS = {
    "none": lambda: None,
    "bytes": processors.ByteLevel,
    "template": lambda: processors.TemplateProcessing("? $A", special_tokens=[("?", 0)]),
}
PARTS = {"normalizer": NORMALIZERS, "pre_tokenizer": PRE_TOKENIZERS, "post_processor": POST_PROCESSORS}
KEEPING = {"none", "prepend", "longer", "llama", "bytes", "digits", "split", "metaspace", "template"}


@st.composite
def tokenizers(draw: st.DrawFn) -> Tokenizer:
    """A usual tokenizer, some of whose parts, each for itself, are unlike those of any real one."""
    odd = st.integers(0, 3).map(lambda number: number == 0)
    kind = draw(st.sampled_from(["bytes", "fallback", "unknown"]))
    letters = {"bytes": ALPHABET, "fallback": BYTES, "unknown": []}[kind]
    if draw(odd):
        letters = draw(st.sampled_from([[], WITHOUT_A_SPACE, BYTES[:-1]]))
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(["?", *PIECES, *letters]))}
    merges = draw(st.sampled_from([[], [("a", "a"), ("a", "b"), ("▁", "▁")]]))
    unknown = "?" if (kind == "unknown") != draw(odd) else None
    flags = {"fuse_unk": draw(odd), "byte_fallback": (kind == "fallback") != draw(odd), "ignore_merges": draw(odd)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, **flags))
    if draw(st.integers(0, 19)) == 0:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="?"))
    for name, choices in PARTS.items():
        some_are_odd = draw(odd)
        keeping = KEEPING if kind != "bytes" or name != "pre_tokenizer" else {"bytes", "digits", "split"}
        part = choices[draw(st.sampled_from([which for which in choices if some_are_odd or which in keeping]))]()
        if part is not None:
            setattr(tokenizer, name, part)
    for content in draw(st.lists(st.sampled_from(["aaaa", "<end>", "é b"]), max_size=2, unique=True)):
        strip = {side: draw(odd) for side in ("lstrip", "rstrip")}
        tokenizer.add_tokens([AddedToken(content, normalized=draw(st.booleans()), **strip)])
    if draw(st.integers(0, 19)) == 0:
        tokenizer.enable_truncation(2)
    return tokenizer


texts = st.text("ab é漢K\u0301 \n1.▁", max_size=30) | st.lists(
    st.sampled_from(["aaaa", "<end>", "é b", "bbb", "aa" * 9, " " * 40, "漢" * 40, "e\u0301" * 20]), max_size=4
).map("".join)


@settings(max_examples=200)  # one tokenizer in seven has a bound
@given(tokenizers(), texts)
def test_no_text_has_fewer_tokens_than_the_bound_says(tokenizer: Tokenizer, text: str) -> None:
    assert fewest_tokens(text, tokenizer) <= len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert fewest_tokens(text, tokenizer) <= len(tokenizer.encode(text).ids)


@given(st.sampled_from(sorted(KINDS)), texts, st.integers(1, 8))
def test_what_is_refused_unread_would_be_refused_read(kind: str, text: str, most: int) -> None:
    tokenizer = KINDS[kind]()
    with contextlib.suppress(ApiError):
        refuse_too_long("prompt", text, tokenizer, most)
        return
    assert len(tokenizer.encode(text).ids) > most


def base(kind: str) -> Tokenizer:
    """A tokenizer of a kind that has a bound, for one change to take it away."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(ALPHABET)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tokenizer
    return Tokenizer(models.BPE({piece: i for i, piece in enumerate(["?", "a", *BYTES])}, [], unk_token="?"))


LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ("bytes", {"normalizer": make()})
        for name, make in NORMALIZERS.items()
        if name not in {*KEEPING, "bytes, then others"}
    },
    **{name: ("bytes", {"pre_tokenizer": make()}) for name, make in PRE_TOKENIZERS.items() if name not in KEEPING},
    "removed punctuation": ("unknown", {"pre_tokenizer": pre_tokenizers.Punctuation("removed")}),
    "an unknown letter for a byte": (
        "bytes",
        {"model": models.BPE({letter: i for i, letter in enumerate(WITHOUT_A_SPACE)}, [])},
    ),
    "fused unknown characters": ("unknown", {"model": models.BPE({"?": 0}, [], unk_token="?", fuse_unk=True)}),
    "dropped unknown characters": ("unknown", {"model": models.BPE({b: i for i, b in enumerate(BYTES)}, [])}),
    "bytes without one": (
        "unknown",
        {"model": models.BPE({b: i for i, b in enumerate(BYTES[1:])}, [], byte_fallback=True)},
    ),
    "long words unknown": ("unknown", {"model": models.WordPiece({"?": 0}, unk_token="?")}),
    "unigram": ("unknown", {"model": models.Unigram([("?", 0.0)], 0, True)}),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_no_bound_is_claimed_where_one_part_makes_a_text_shorter(loss: str) -> None:
    kind, parts = LOSSES[loss]
    tokenizer = base(kind)
    assert longest_token(base(kind)) is not None
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    assert longest_token(tokenizer) is None


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_no_bound_is_claimed_for_added_tokens_that_take_spaces_or_for_texts_cut_short(side: str) -> None:
    strips, cuts = base("bytes"), base("bytes")
    strips.add_tokens([AddedToken("<end>", **{side: True})])
    cuts.enable_truncation(3)
    assert longest_token(strips) is longest_token(cuts) is None


def test_an_added_token_counts_as_it_is_found_in_the_normalised_text() -> None:
    tokenizer = base("unknown")
    tokenizer.normalizer = normalizers.Replace("a", "bbb")
    tokenizer.add_tokens([AddedToken("aaa", normalized=True)])
    assert len(tokenizer.encode("b" * 9).ids) == 1
    assert longest_token(tokenizer) == 9


def test_the_bound_is_known_for_the_shipped_checkpoint_and_for_common_kinds() -> None:
    shipped = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    found = {kind: longest_token(made()) for kind, made in KINDS.items()}
    assert longest_token(shipped) == len("Ġdisappointment")
    assert found["byte_level"] is not None
    assert found["byte_fallback"] is not None
    assert found["metaspace"] is not None
    assert found["word_piece"] is None  # a long word is one unknown token


def test_a_text_that_cannot_fit_is_refused_without_tokenising_it_or_those_before_it() -> None:
    real = KINDS["byte_level"]()
    longest = longest_token(real)
    assert longest is not None
    unread: Any = Mock(wraps=real)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "truncation", "model"):
        setattr(unread, name, getattr(real, name))
    with pytest.raises(ApiError, match=r"prompt has \d+ characters, which are at least 11 tokens") as failure:
        encode(GenerateRequest(prompt=["a", "a" * (10 * longest + 1)]), unread, Limits(10, 11, 330, ServeSettings()))
    assert unread.encode.call_count == 0
    assert failure.value.remedy == "give at most 10 tokens"
