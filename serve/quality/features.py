"""The numbers a text is judged by: each has a name and a source in the literature. Python and numpy; no torch.

text_features() reads one window of a text, document_features() the whole of it, surprise.py the model's own numbers.
Every feature is defined for every text: where there is nothing to measure it takes the value of its docstring.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve.quality.context_model import CONTEXT
from serve.quality.lexicon import LETTERS, Lexicon, letter_codes
from serve.quality.repetition import longest_repeat, longest_run, mtld, number, seq_rep, zipf_exponent
from serve.quality.words import split_pieces

Side = Literal["high", "low", "both"]


@dataclass(frozen=True, slots=True)
class Feature:
    """side: where unlike human text means worse.

    resolution: the least spread that human text is credited with, whatever the corpus shows. Where genres differ more
    than the books of one corpus do (vocabulary, names, marks), it is wide: a tolerance, not an estimate.
    """

    name: str
    side: Side
    resolution: float
    source: str


TEXT_FEATURES = (
    Feature("seq_rep_1", "both", 0.02, "share of repeated words and marks (Welleck et al. 2020)"),
    Feature("seq_rep_2", "both", 0.02, "share of repeated 2-grams; 1 - distinct-2 (Li et al. 2016)"),
    Feature("seq_rep_3", "high", 0.02, "share of repeated 3-grams (Welleck et al. 2020)"),
    Feature("seq_rep_4", "high", 0.02, "share of repeated 4-grams (Welleck et al. 2020)"),
    Feature("longest_repeat", "high", 0.3, "log2(1 + length of the longest n-gram that occurs twice)"),
    Feature("longest_run", "high", 0.3, "log2(most times one piece stands in a row)"),
    Feature("compression", "both", 0.03, "zlib bytes / UTF-8 bytes"),
    Feature("mtld", "both", 0.1, "log of MTLD (McCarthy & Jarvis 2010)"),
    Feature("zipf", "both", 0.04, "Zipf exponent of the word frequencies (Zipf 1949)"),
    Feature("known_words", "low", 0.12, "share of words, names left out, in the reference vocabulary"),
    Feature("common_words", "both", 0.06, "share of words among the reference's 100 commonest"),
    Feature("word_frequency", "both", 0.3, "mean log frequency of the known words"),
    Feature("pair_fit", "low", 0.25, "mean PMI of neighbouring word classes (Church & Hanks 1990; Brown et al. 1992)"),
    Feature("triple_fit", "low", 0.08, "mean log p(c3|c1 c2)/p(c3|c2) over word classes (Brown et al. 1992)"),
    Feature("odd_pairs", "high", 0.045, "share of neighbours with PMI below -1"),
    Feature("context_gain", "low", 0.02, "mean log p(c | 8 before)/p(c | 1 before) by a network (Bengio et al. 2003)"),
    Feature("letter_fit", "low", 0.12, "mean log p(letter | two before) (Shannon 1951)"),
    Feature("odd_letters", "high", 0.02, "share of letter triples below exp(-5)"),
    Feature("word_length", "both", 0.3, "mean letters of a word"),
    Feature("word_length_spread", "both", 0.5, "standard deviation of the letters of a word"),
    Feature("sentence_length", "both", 0.2, "log of mean words between sentence ends"),
    Feature("sentence_spread", "low", 0.1, "standard deviation of log sentence length"),
    Feature("marks", "both", 0.05, "share of pieces that are punctuation"),
    Feature("symbols", "high", 0.03, "share of pieces that are neither words, numbers nor common punctuation"),
    Feature("digits", "high", 0.03, "share of pieces that are numbers"),
    Feature("unbalanced", "high", 0.01, "brackets and double quotes without a partner, as a share of pieces"),
    Feature("capitals", "high", 0.1, "share of letters that are upper case"),
    Feature("sentence_capitals", "low", 0.15, "share of sentence ends followed by a capital, a number or a mark"),
    Feature("inner_capitals", "high", 0.02, "share of words with a capital behind a lower-case letter"),
)  # fmt: skip
DOCUMENT_FEATURES = (
    Feature("duplicate_sentences", "high", 0.02, "characters in sentences that occurred before (Rae et al. 2021)"),
)  # fmt: skip

# Begins at white space: a million full stops are not tried a million times each, and the engine skips to candidates.
# The first look back is implied by the others; it turns nearly all white space away at once.
_SENTENCE = re.compile(
    r"\s(?<=[.!?\"'”’)\]]\s)(?:(?<=[.!?]\s)|(?<=[.!?][\"'”’)\]]\s)|(?<=[.!?][\"'”’)\]]{2}\s))\s*|\n\s*\n\s*"  # noqa: RUF001
)
_AFTER_END = re.compile(r"[.!?][\"'”’)\]]*\s+[\"'“‘(\[]*(\S)")  # noqa: RUF001
_FOREIGN_CAPITAL = re.compile(r"[À-ÖØ-ÞА-ЯΑ-Ω]")
_COMMON_MARKS = frozenset(".,;:!?'\"-()[]—–…“”‘’")  # noqa: RUF001
_PARTNERS = {")": "(", "]": "[", "}": "{", "”": "“", "»": "«"}
_OPENERS = frozenset(_PARTNERS.values())
_BRACKETS = _OPENERS | frozenset(_PARTNERS) | {'"'}
_MAX_SENTENCES = 20_000
_NUM_COMMON = 100
FloatArray = NDArray[np.float64]


def split_sentences(text: str) -> list[str]:
    """At white space behind . ! ? (and closing quotes or brackets) and at blank lines; at most _MAX_SENTENCES."""
    return _SENTENCE.split(text, maxsplit=_MAX_SENTENCES)[:_MAX_SENTENCES]


def text_features(
    text: str, lexicon: Lexicon, pieces: list[str] | None = None, sentences: list[str] | None = None
) -> tuple[FloatArray, int]:
    """Features of one window, in the order of TEXT_FEATURES, and its number of pieces. Without a piece: all zero.

    pieces, sentences: split_pieces(text) and split_sentences(text), if they are at hand.
    """
    pieces = split_pieces(text) if pieces is None else pieces
    if not pieces:
        return np.zeros(len(TEXT_FEATURES)), 0
    counted = count_pieces(pieces)
    raw = text.encode("utf-8", "replace")
    values = _repetition(raw, counted) + _language(text, counted, lexicon)
    values += _form(text, raw, counted, split_sentences(text) if sentences is None else sentences)
    return np.array(values), len(pieces)


@dataclass(frozen=True, slots=True)
class CountedPieces:
    """The N pieces of a window as numbers, so that most of the work is done once for each of its D different pieces.

    distinct: the pieces in lower case, each once. ids_N: which of them stands where. counts_D: how often.
    is_word_D: whether it begins with a letter. word_ids: ids of the words alone, in order.
    """

    pieces: list[str]
    distinct: list[str]
    ids_N: NDArray[np.int64]
    counts_D: NDArray[np.intp]
    is_word_D: NDArray[np.bool_]
    word_ids: list[int]


def count_pieces(pieces: list[str]) -> CountedPieces:
    """Of at least one piece."""
    # No piece holds white space, and what is joined by it is lowered as each piece would be by itself.
    lowered = "\n".join(pieces).lower().split("\n")
    distinct, ids = number(lowered)
    is_word = np.array([piece[0].isalpha() for piece in distinct])
    return CountedPieces(pieces, distinct, ids, np.bincount(ids), is_word, ids[is_word[ids]].tolist())


def _repetition(raw: bytes, counted: CountedPieces) -> list[float]:
    ids = counted.ids_N
    shares = seq_rep(ids)
    # Without a repeated 4-gram, which is the rule, the longest repeat is the last n that repeats.
    longest = longest_repeat(ids) if shares[3] else sum(1 for share in shares if share)
    return [
        *shares,
        math.log2(1 + longest),
        math.log2(longest_run(ids)),
        len(zlib.compress(raw, 9)) / len(raw),
        math.log(1 + mtld(counted.word_ids)),
        zipf_exponent(counted.counts_D[counted.is_word_D]),
    ]


def _language(text: str, counted: CountedPieces, lexicon: Lexicon) -> list[float]:
    indices = lexicon.indices(counted.pieces, counted.distinct, counted.ids_N)
    known = indices[lexicon.is_word[indices]]
    names = int(np.count_nonzero(indices == lexicon.name_index))
    all_words = len(counted.word_ids)
    num_words = max(1, all_words)
    codes = letter_codes(text)
    letters = lexicon.letter_L_L_L[codes[:-2], codes[1:-1], codes[2:]]
    letters = letters[(codes[2:] != LETTERS - 1) | (codes[1:-1] != LETTERS - 1)]
    return [
        len(known) / max(1, all_words - names),
        np.count_nonzero(known < _NUM_COMMON) / num_words,
        _mean(lexicon.word_log_frequency[known], -12.0),
        *_order(indices, lexicon),
        _mean(letters, -6.3),
        _mean(letters < -5.0, 1.0),
    ]


def _order(indices: NDArray[np.intp], lexicon: Lexicon) -> list[float]:
    """pair_fit, triple_fit, odd_pairs, context_gain: over known words and marks only.

    What stands beside a name, a number or a foreign word depends on the genre; what stands beside "the" does not.
    Means are taken as if two more had been seen that say nothing, lest a text with one known pair be judged by it.
    """
    known = indices < len(lexicon.words)
    both = known[:-1] & known[1:]
    classes = lexicon.word_classes[indices]
    all_pairs = lexicon.pair_C_C[classes[:-1], classes[1:]]
    pairs = all_pairs[both]
    groups = lexicon.group[classes]
    triples = lexicon.triple_G_G_G[groups[:-2], groups[1:-1], groups[2:]][both[:-1] & both[1:]]
    at = np.flatnonzero(both[CONTEXT - 1 :]) + CONTEXT
    gain = 0.0
    if len(at):
        alone = all_pairs[at - 1] + lexicon.log_share_C[classes[at]]
        gain = float(lexicon.context.log_probabilities(classes, at).sum() - alone.sum())
    return [
        float(pairs.sum()) / (len(pairs) + 2),
        float(triples.sum()) / (len(triples) + 2),
        np.count_nonzero(pairs < -1.0) / (len(pairs) + 2),
        gain / (len(at) + 2),
    ]


def _mean(values: NDArray[np.float64] | NDArray[np.bool_], empty: float) -> float:
    return float(np.add.reduce(values)) / len(values) if len(values) else empty


def _form(text: str, raw: bytes, counted: CountedPieces, sentences: list[str]) -> list[float]:
    count, all_words = len(counted.pieces), len(counted.word_ids)
    num_words = max(1, all_words)
    letters, length_spread = _word_lengths(counted)
    capitals, inner_capitals = _num_capitals(text, raw)
    log_sentences = [math.log(n) for n in map(len, map(str.split, sentences)) if n] or [0.0]
    marks = {piece: at for at, piece in enumerate(counted.distinct) if not piece[0].isalnum()}
    num_marks = int(counted.counts_D[list(marks.values())].sum())
    symbols = [at for mark, at in marks.items() if mark not in _COMMON_MARKS]
    ends = _AFTER_END.findall(text)
    return [
        min(30.0, letters / num_words),
        min(30.0, length_spread),
        math.log(num_words / len(log_sentences) + 1),
        _spread(log_sentences),
        num_marks / count,
        int(counted.counts_D[symbols].sum()) / count,
        (count - num_marks - all_words) / count,
        (_num_unbalanced(counted.pieces) if not _BRACKETS.isdisjoint(marks) else 0) / count,
        capitals / max(1, letters),
        (sum(1 for c in ends if not c.islower()) + 1) / (len(ends) + 1),
        inner_capitals / num_words,
    ]


def _word_lengths(counted: CountedPieces) -> tuple[int, float]:
    """Sum and standard deviation of the lengths of the words; 0 without a word."""
    lengths = np.array([len(piece) for piece in counted.distinct])[counted.is_word_D]
    counts = counted.counts_D[counted.is_word_D]
    num, total, squares = len(counted.word_ids), int(counts @ lengths), int(counts @ (lengths * lengths))
    # In integers up to the division: nothing cancels.
    return total, math.sqrt(num * squares - total * total) / max(1, num)


def _num_capitals(text: str, raw: bytes) -> tuple[int, int]:
    """Upper-case letters, and those of ASCII that stand behind a lower-case one. raw: the text in UTF-8."""
    codes = np.frombuffer(raw, dtype=np.uint8)
    # Below 26 only where the letter is in range: what is smaller wraps around. UTF-8 keeps ASCII's codes for ASCII.
    upper, lower = (codes - np.uint8(65)) < 26, (codes - np.uint8(97)) < 26
    inner = int(np.count_nonzero(lower[:-1] & upper[1:]))
    foreign = 0 if text.isascii() else len(_FOREIGN_CAPITAL.findall(text))
    return int(np.count_nonzero(upper)) + foreign, inner


def _spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 of nothing. In plain Python: numpy takes longer to begin than this to end."""
    if not values:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum([(value - mean) ** 2 for value in values]) / len(values))


def _num_unbalanced(pieces: list[str]) -> int:
    """Openers never closed, closers never opened, an odd double quote. Apostrophes are left out: nobody balances them.

    One opener and one closer are forgiven: a passage cut from a text may begin or end inside a pair.
    """
    depth: Counter[str] = Counter()
    loose = 0
    for mark in pieces:
        if mark not in _BRACKETS:
            continue
        if mark in _OPENERS:
            depth[mark] += 1
        elif mark == '"':
            depth[mark] ^= 1
        elif depth[_PARTNERS[mark]]:
            depth[_PARTNERS[mark]] -= 1
        else:
            loose += 1
    return max(0, loose - 1) + max(0, depth.total() - 1)


def document_features(sentences: list[str]) -> FloatArray:
    """Features of a whole text, from its split_sentences(), in the order of DOCUMENT_FEATURES."""
    seen: set[str] = set()
    total = repeated = 0
    for sentence in sentences:
        key = sentence.strip()
        # Short ones ("Yes.", "Chapter I") recur in any dialogue.
        if len(key) < 20:
            continue
        total += len(key)
        if key in seen:
            repeated += len(key)
        seen.add(key)
    return np.array([repeated / total if total else 0.0])
