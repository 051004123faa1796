"""Deltas are whole characters, join to decode(), cost a constant per token, and stop where they should."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve.engine.detokenizer import Detokenizer
from tests.engine.tokenizers_built_here import KINDS, TEXT, byte_fallback, byte_level


@st.composite
def tokenizer_and_ids(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    tokenizer = KINDS[draw(st.sampled_from(sorted(KINDS)))]()
    anything = st.integers(0, tokenizer.get_vocab_size() + 2)
    # Random ids are mostly broken bytes; pieces of real text are mostly not: mix them.
    words = st.text(st.sampled_from("the STOP. aé日👩 \n"), max_size=12)
    real = words.map(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    parts = draw(st.lists(st.one_of(real, st.lists(anything, max_size=4)), max_size=8))
    return tokenizer, [i for part in parts for i in part]


def in_pieces(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(ids[at : at + size])
        at += size
    return [*pieces, ids[at:]]


@settings(max_examples=250, deadline=None)
@given(tokenizer_and_ids(), st.lists(st.integers(0, 3), max_size=20), st.booleans())
def test_deltas_join_to_what_decode_gives(case, sizes, skip_special) -> None:
    tokenizer, ids = case
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special)
    deltas = [detokenizer.push(piece) for piece in in_pieces(ids, sizes)] + [detokenizer.flush()]
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip_special)


@settings(max_examples=200, deadline=None)
@given(tokenizer_and_ids(), st.lists(st.text("STOP. the", min_size=1, max_size=5), min_size=1, max_size=3))
def test_stop_strings_cut_alike_however_the_tokens_arrive(case, stop) -> None:
    tokenizer, ids = case
    whole = tokenizer.decode(ids)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stop if s in whole]
    one_by_one, at_once = Detokenizer(tokenizer, stop), Detokenizer(tokenizer, stop)
    text = "".join([one_by_one.push([i]) for i in ids] + [one_by_one.flush()])
    assert text == (whole[: min(ends)[1]] if ends else whole)
    assert (one_by_one.finished_by_stop in stop) if ends else (one_by_one.finished_by_stop is None)
    assert at_once.push(ids) + at_once.flush() == text
    assert at_once.finished_by_stop == one_by_one.finished_by_stop


@settings(max_examples=100, deadline=None)
@given(tokenizer_and_ids(), st.lists(st.text("STOP. the", min_size=1, max_size=5), min_size=1, max_size=3))
def test_only_what_could_become_a_stop_string_is_held_back(case, stop) -> None:
    tokenizer, ids = case
    plain, cutting = Detokenizer(tokenizer), Detokenizer(tokenizer, stop)
    certain = told = ""
    for i in ids:
        certain += plain.push([i])
        told += cutting.push([i])
        if cutting.finished_by_stop is not None:
            return
        held = certain[len(told) :]
        assert certain.startswith(told)
        assert held == "" or any(s.startswith(held) and s != held for s in stop)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_real_text_streams_without_replacement_characters(kind) -> None:
    tokenizer = KINDS[kind]()
    for text in TEXT:
        ids = tokenizer.encode(text).ids
        detokenizer = Detokenizer(tokenizer)
        deltas = [detokenizer.push([i]) for i in ids] + [detokenizer.flush()]
        assert "".join(deltas) == tokenizer.decode(ids)
        assert "�" not in "".join(deltas)
        # Tokens tell what they can at once. (Most of the byte_fallback text is runs of bytes, told at their end.)
        assert sum(bool(d) for d in deltas[:-1]) >= len(ids) // 5


def test_an_id_outside_the_vocabulary_does_not_split_a_run_of_bytes() -> None:
    first, last, outside = 3, 131, byte_fallback().get_vocab_size() + 1
    detokenizer = Detokenizer(byte_fallback())
    text = detokenizer.push([first, outside]) + detokenizer.push([last]) + detokenizer.flush()
    assert text == byte_fallback().decode([first, outside, last]) == "��"


def test_a_token_without_text_does_not_cost_the_space_after_it() -> None:
    tokenizer = byte_fallback()
    ids = [tokenizer.token_to_id(t) for t in ("a", "<gone>", "▁a")]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([i]) for i in ids] == ["a", "", " a"]


def test_a_character_in_pieces_comes_whole_and_a_cut_one_as_replacement() -> None:
    ids = byte_level().encode("👩").ids
    detokenizer = Detokenizer(byte_level())
    assert [detokenizer.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["👩"]
    detokenizer = Detokenizer(byte_level())
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.flush() == byte_level().decode(ids[:-1])


class CountingTokenizer:
    """Stands in for a Tokenizer and counts how many ids it was asked to decode."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self.num_decoded = 0

    def decode(self, ids: list[int], **options: bool) -> str:
        self.num_decoded += len(ids)
        return self._inner.decode(ids, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_the_cost_per_token_does_not_grow_with_the_text() -> None:
    counting = CountingTokenizer(byte_fallback())
    ids = byte_fallback().encode("the a the " * 200).ids
    detokenizer = Detokenizer(counting)  # type: ignore[arg-type]
    for i in ids:
        detokenizer.push([i])
    assert counting.num_decoded <= 4 * len(ids)


@pytest.mark.parametrize("stop", ["abc", ["a", ""], [1]])
def test_a_stop_that_is_not_a_list_of_strings_is_refused(stop) -> None:
    with pytest.raises(ValueError, match="stop is"):
        Detokenizer(byte_level(), stop)
