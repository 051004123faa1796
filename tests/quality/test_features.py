"""Features of small texts by hand, the windows, and the model's own numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.quality.features import (
    DOCUMENT_FEATURES,
    TEXT_FEATURES,
    document_features,
    split_sentences,
    text_features,
)
from serve.quality.lexicon import LETTERS, letter_codes
from serve.quality.reference import QualityReference
from serve.quality.repetition import longest_repeat, number
from serve.quality.surprise import SURPRISE_FEATURES, TokenSurprise, surprise_features
from serve.quality.words import (
    MAX_WINDOWS,
    WINDOW_CHARACTERS,
    estimate_num_tokens,
    split_pieces,
    untokenised,
    windows,
)
from tests.quality.conftest import PROSE
from tests.quality.plain_features import plain_sentences, plain_text_features

# ruff: noqa: RUF001
# Words the reference of the tests knows, and what is odd: capitals that grow when lowered, a sigma at a word's end,
# typographic marks, brackets, digits that are none to ASCII, white space that only str knows, lone surrogates.
ODD_WORDS = (
    "the", "The", "a", "of", "statement", "If", "McDonald", "iPhone", "ΣΟΦΟΣ", "σς", "İstanbul", "É", "naïve", "don't",
    "don’t", "“", "”", '"', "(", ")", "[", "}", "«", "»", ".", "!", "?\"", "...", "12", "²", "٣", "_", "x_1", "-", "—",
    "\x1c", "\x85", "\u2028", "\n\n", "\ud800", "😀", "漢字", "e\u0301", "\x00", "Yes.", "no.) And", "'s", "walking",
)  # fmt: skip


def features(text: str, reference: QualityReference) -> dict[str, float]:
    values, _ = text_features(text, reference.lexicon)
    return dict(zip([f.name for f in TEXT_FEATURES], values.tolist(), strict=True))


@given(st.lists(st.sampled_from(ODD_WORDS), max_size=80), st.sampled_from(["", " ", "  "]))
@settings(max_examples=150, deadline=None)
def test_features_equal_their_slow_twins(reference: QualityReference, words: list[str], between: str) -> None:
    text = between.join(words)
    plain = plain_text_features(text, reference.lexicon)
    found = features(text, reference)
    # The network is computed in float32.
    assert found.pop("context_gain") == pytest.approx(plain.pop("context_gain"), abs=1e-5)
    assert found == pytest.approx(plain, abs=1e-9)


@given(st.text(alphabet="ab.!?\"'”’) \n\t\x1c", max_size=60))
def test_sentences_equal_their_slow_twin(text: str) -> None:
    assert split_sentences(text) == plain_sentences(text)


@pytest.mark.parametrize("text", [PROSE, PROSE.upper(), PROSE.replace("e", "é"), PROSE[::-1], "the " * 200])
def test_features_of_long_texts_equal_their_slow_twins(reference: QualityReference, text: str) -> None:
    assert features(text, reference) == pytest.approx(plain_text_features(text, reference.lexicon), abs=1e-5)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_features_of_any_text_equal_their_slow_twins(reference: QualityReference, text: str) -> None:
    plain = plain_text_features(text, reference.lexicon)
    assert features(text, reference) == pytest.approx(plain, abs=1e-5)


def test_feature_names_are_distinct() -> None:
    names = [f.name for f in TEXT_FEATURES + DOCUMENT_FEATURES + SURPRISE_FEATURES]
    assert len(set(names)) == len(names)


def test_form_of_a_small_text_by_hand(reference: QualityReference) -> None:
    found = features('He said (twice: "No. Go away!" Then 12 men left', reference)
    # Pieces: He said ( twice : " No . Go away ! " Then 12 men left
    assert found["marks"] == pytest.approx(6 / 16)
    assert found["digits"] == pytest.approx(1 / 16)
    assert found["word_length"] == pytest.approx((2 + 4 + 5 + 2 + 2 + 4 + 4 + 3 + 4) / 9)
    assert found["capitals"] == pytest.approx(4 / 30)
    assert found["sentence_capitals"] == 1.0
    assert found["unbalanced"] == 0.0, "one opener at a cut is forgiven"


def test_brackets_without_partner_are_counted(reference: QualityReference) -> None:
    assert features("((( a b", reference)["unbalanced"] == pytest.approx(2 / 5)
    assert features(") ) a b", reference)["unbalanced"] == pytest.approx(1 / 4)
    assert features("(a) [b] {c}", reference)["unbalanced"] == 0.0


@given(st.lists(st.sampled_from(["the", "old", "man", "river", "."]), min_size=1, max_size=40))
def test_the_longest_repeat_is_right_with_and_without_repeated_4_grams(
    reference: QualityReference, pieces: list[str]
) -> None:
    found = features(" ".join(pieces), reference)["longest_repeat"]
    assert found == pytest.approx(math.log2(1 + longest_repeat(number(pieces)[1])))


def test_order_features_fall_when_words_are_shuffled(reference: QualityReference) -> None:
    prose = features(PROSE, reference)
    words = PROSE.split()
    shuffled = features(" ".join(np.random.default_rng(0).permutation(words)), reference)
    assert shuffled["pair_fit"] < prose["pair_fit"] - 0.2
    assert shuffled["odd_pairs"] > prose["odd_pairs"]
    assert shuffled["seq_rep_1"] == pytest.approx(prose["seq_rep_1"]), "the same words"


def test_letter_fit_falls_for_noise(reference: QualityReference) -> None:
    assert features("xq zvk wqj pxf " * 10, reference)["letter_fit"] < features(PROSE, reference)["letter_fit"] - 1


def test_context_model_gives_normalised_probabilities(reference: QualityReference) -> None:
    context = reference.lexicon.context
    classes = np.arange(9, dtype=np.intp)
    total = 0.0
    for last in range(len(reference.lexicon.group)):
        classes[8] = last
        total += float(np.exp(context.log_probabilities(classes, np.array([8]))[0]))
    assert total == pytest.approx(1.0, abs=1e-4)


def test_duplicate_sentences_are_measured_in_characters() -> None:
    once = "This sentence is thirty long.. "
    assert document_features(split_sentences(once * 4))[0] == pytest.approx(3 / 4, abs=0.02)
    assert document_features(split_sentences("Yes. " * 50))[0] == 0.0, "short sentences recur in any dialogue"


def test_letter_codes() -> None:
    assert letter_codes("aZ é1").tolist() == [0, 25, LETTERS - 1, 26, LETTERS - 1]
    assert len(letter_codes("\ud800")) == 1


def test_tokenised_corpora_are_read_as_if_they_were_not() -> None:
    assert untokenised("the cat 's co @-@ op did n't cost 5 @.@ 2 <unk>") == "the cat's co-op didn't cost 5.2 Unk"
    assert untokenised(PROSE) == PROSE


@given(st.text(max_size=300))
def test_every_visible_character_is_in_a_piece(text: str) -> None:
    assert "".join(split_pieces(text)) == "".join(c for c in text if not c.isspace())


@given(st.integers(0, 200_000))
def test_windows_are_bounded_and_reach_both_ends(length: int) -> None:
    text = ("abcdefgh " * (length // 9 + 1))[:length]
    parts = windows(text)
    assert 1 <= len(parts) <= MAX_WINDOWS
    assert sum(map(len, parts)) <= max(MAX_WINDOWS * WINDOW_CHARACTERS, length)
    assert text.startswith(parts[0])
    assert text.endswith(parts[-1])


def test_token_estimates_grow_with_the_text() -> None:
    assert estimate_num_tokens("") == 0
    assert estimate_num_tokens(" \n\t" * 100) == 0
    assert 95 <= estimate_num_tokens(PROSE) <= 140
    assert estimate_num_tokens("word " * 200_000) == pytest.approx(200_000, rel=0.02)
    assert estimate_num_tokens("漢" * 40) >= 40


def test_surprise_features_by_hand() -> None:
    found = surprise_features(TokenSurprise([1, 2, 3, 4], [-1.0, -3.0, -0.05, -4.0], [1.0, 1.0, 1.0, 1.0]))
    named = dict(zip([f.name for f in SURPRISE_FEATURES], found.tolist(), strict=True))
    assert named["logprob"] == pytest.approx(-8.05 / 4)
    assert named["entropy"] == 1.0
    assert named["entropy_spread"] == 0.0
    assert named["entropy_gap"] == pytest.approx(8.05 / 4 - 1)
    assert named["typical_share"] == pytest.approx(2 / 4)
    assert named["certain_share"] == pytest.approx(1 / 4)


def test_broken_surprise_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        TokenSurprise([1, 2], [-1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        surprise_features(TokenSurprise([1], [float("nan")], [1.0]))
