"""The slow twin of serve.quality.features.text_features: the same numbers, each from its definition, piece by piece.

It shares with the fast one the tables of the lexicon and what is tested by itself (repetition). No caching,
no counting of what is equal, no bytes: the text as it stands.
"""

import math
import re
import statistics
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np

from serve.quality.context_model import CONTEXT
from serve.quality.features import TEXT_FEATURES
from serve.quality.lexicon import LETTERS, Lexicon, letter_codes, shape_of
from serve.quality.repetition import longest_repeat, longest_run, number, seq_rep
from serve.quality.words import PIECE

_COMMON_MARKS = ".,;:!?'\"-()[]—–…“”‘’"  # noqa: RUF001
_PARTNERS = {")": "(", "]": "[", "}": "{", "”": "“", "»": "«"}


def plain_text_features(text: str, lexicon: Lexicon) -> dict[str, float]:
    """By name, in the order of TEXT_FEATURES; all 0 without a piece."""
    pieces = PIECE.findall(text)
    if not pieces:
        return dict.fromkeys((f.name for f in TEXT_FEATURES), 0.0)
    lowered = [piece.lower() for piece in pieces]
    words = [piece for piece in lowered if piece[0].isalpha()]
    values = _repetition(text, lowered, words) + _language(text, pieces, lowered, words, lexicon)
    values += _form(text, pieces, words)
    return dict(zip((f.name for f in TEXT_FEATURES), values, strict=True))


def _repetition(text: str, lowered: list[str], words: list[str]) -> list[float]:
    raw = text.encode("utf-8", "replace")
    ids = number(lowered)[1]
    repetition = [
        math.log2(1 + longest_repeat(ids)),
        math.log2(longest_run(ids)),
        len(zlib.compress(raw, 9)) / len(raw),
    ]
    return [*seq_rep(ids), *repetition, math.log(1 + plain_mtld(words)), _zipf(Counter(words))]


def plain_mtld(words: list[str]) -> float:
    """The type-token ratio looked at behind every word."""

    def one_way(words: list[str]) -> float:
        factors, stretch = 0.0, list[str]()
        for word in words:
            stretch.append(word)
            if len(set(stretch)) < 0.72 * len(stretch):
                factors, stretch = factors + 1, []
        if stretch:
            factors += (1 - len(set(stretch)) / len(stretch)) / (1 - 0.72)
        return len(words) / factors if factors > 1 else float(len(words))

    return (one_way(words) + one_way(words[::-1])) / 2


def _zipf(counts: Counter[str]) -> float:
    if len(counts) < 2:
        return 0.0
    x = [math.log(rank) for rank in range(1, len(counts) + 1)]
    y = [math.log(count) for count in sorted(counts.values(), reverse=True)]
    mean = statistics.fmean(x)
    return -sum((a - mean) * b for a, b in zip(x, y, strict=True)) / sum((a - mean) ** 2 for a in x)


def _language(text: str, pieces: list[str], lowered: list[str], words: list[str], lexicon: Lexicon) -> list[float]:
    index = {word: i for i, word in enumerate(lexicon.words)}
    shapes = [shape_of(piece) for piece in pieces]
    known = [index[piece] for piece in lowered if piece in index and piece[0].isalpha()]
    names = sum(
        1 for piece, shape in zip(lowered, shapes, strict=True) if piece not in index and shape == "capitalised"
    )
    codes = letter_codes(text).tolist()
    triples = [t for t in zip(codes, codes[1:], codes[2:], strict=False) if t[1:] != (LETTERS - 1, LETTERS - 1)]
    fits = [float(lexicon.letter_L_L_L[t]) for t in triples]
    classes = [
        int(lexicon.word_class[index[piece]]) if piece in index else lexicon.shape_class[shape]
        for piece, shape in zip(lowered, shapes, strict=True)
    ]
    return [
        len(known) / max(1, len(words) - names),
        sum(1 for i in known if i < 100) / max(1, len(words)),
        statistics.fmean(float(lexicon.word_log_frequency[i]) for i in known) if known else -12.0,
        *_order(classes, [piece in index for piece in lowered], lexicon),
        statistics.fmean(fits) if fits else -6.3,
        sum(1 for fit in fits if fit < -5.0) / len(fits) if fits else 1.0,
    ]


def _order(classes: list[int], known: list[bool], lexicon: Lexicon) -> list[float]:
    both = [a and b for a, b in pairwise(known)]
    pairs = [float(lexicon.pair_C_C[classes[i], classes[i + 1]]) for i, b in enumerate(both) if b]
    groups = lexicon.group[classes].tolist()
    triples = [
        float(lexicon.triple_G_G_G[tuple(groups[i : i + 3])]) for i in range(len(both) - 1) if all(both[i : i + 2])
    ]
    gains = []
    for i in range(CONTEXT, len(classes)):
        if both[i - 1]:
            alone = float(lexicon.pair_C_C[classes[i - 1], classes[i]] + lexicon.log_share_C[classes[i]])
            gains.append(_context_log_probability(classes[i - CONTEXT : i], classes[i], lexicon) - alone)
    return [
        sum(pairs) / (len(pairs) + 2),
        sum(triples) / (len(triples) + 2),
        sum(1 for pair in pairs if pair < -1.0) / (len(pairs) + 2),
        sum(gains) / (len(gains) + 2),
    ]


def _context_log_probability(before: list[int], chosen: int, lexicon: Lexicon) -> float:
    """In double precision, from the formula of the network."""
    embedding, hidden, hidden_bias, output, output_bias = (
        array.astype(np.float64) for array in lexicon.context.arrays().values()
    )
    x = np.concatenate([embedding[c] for c in before])
    logits = np.maximum(x @ hidden + hidden_bias, 0.0) @ output + output_bias
    return float(logits[chosen] - np.log(np.exp(logits).sum()))


def plain_sentences(text: str) -> list[str]:
    """Parted by white space behind a sentence's end, with up to two closing marks, and by blank lines."""
    closing = "[\"'”’)\\]]"  # noqa: RUF001
    end = f"(?:(?<=[.!?])|(?<=[.!?]{closing})|(?<=[.!?]{closing}{closing}))"
    return re.split(rf"{end}\s+|\n\s*\n\s*", text)


def _form(text: str, pieces: list[str], words: list[str]) -> list[float]:
    lengths = [len(word) for word in words]
    sentences = [math.log(n) for n in (len(s.split()) for s in plain_sentences(text)) if n] or [0.0]
    marks = [piece for piece in pieces if not piece[0].isalnum()]
    ends = re.findall(r"[.!?][\"'”’)\]]*\s+[\"'“‘(\[]*(\S)", text)  # noqa: RUF001
    num_words = max(1, len(words))
    return [
        min(30.0, sum(lengths) / num_words),
        min(30.0, statistics.pstdev(lengths) if lengths else 0.0),
        math.log(num_words / len(sentences) + 1),
        statistics.pstdev(sentences),
        len(marks) / len(pieces),
        sum(1 for mark in marks if mark not in _COMMON_MARKS) / len(pieces),
        (len(pieces) - len(marks) - len(words)) / len(pieces),
        _num_unbalanced(marks) / len(pieces),
        len(re.findall("[A-ZÀ-ÖØ-ÞА-ЯΑ-Ω]", text)) / max(1, sum(lengths)),
        (sum(1 for c in ends if not c.islower()) + 1) / (len(ends) + 1),
        len(re.findall("[a-z][A-Z]", text)) / num_words,
    ]


def _num_unbalanced(marks: list[str]) -> int:
    still_open: list[str] = []
    loose = 0
    for mark in marks:
        if mark == '"' and '"' in still_open:
            still_open.remove('"')
        elif mark == '"' or mark in _PARTNERS.values():
            still_open.append(mark)
        elif mark in _PARTNERS and _PARTNERS[mark] in still_open:
            still_open.remove(_PARTNERS[mark])
        elif mark in _PARTNERS:
            loose += 1
    return max(0, loose - 1) + max(0, len(still_open) - 1)
