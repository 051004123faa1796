"""Text in, score with its reasons out. Python and numpy; no torch, no clocks, no HTTP. Under 1 ms for 256 tokens.

    score = 1 / (1 + exp(-logit)),  logit = sum(contributions.values()), in that order, exactly.

The contribution "baseline" is what a text without any deviation from human text would have; every other one is at most
0 and belongs to one feature. A text longer than a window gets the mean of its windows' contributions (words.windows).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.quality.features import (
    DOCUMENT_FEATURES,
    TEXT_FEATURES,
    document_features,
    split_sentences,
    text_features,
)
from serve.quality.reference import GRADES, Head, QualityReference, find_reference, load_reference
from serve.quality.surprise import MIN_TOKENS, TokenSurprise, surprise_features
from serve.quality.words import split_pieces, tokens_of, windows

SHORTEST = 32
"""Tokens. Below this there is no score."""
_FEW_KNOWN_WORDS = 0.35
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QualityReport:
    """score: probability that the text reads like held-out human text, None with a reason when it is too short.

    grade: EXCELLENT, GOOD, FAIR or POOR by the reference's quantiles of human text. num_tokens: given or estimated.
    head: "text", or "surprise" when the model's own numbers took part. contributions: add up to logit exactly.
    seed_score: the formula of the 2025 report, for continuity; it grades nothing. notes: what to mind when reading.
    """

    score: float | None
    grade: str | None
    reason: str | None
    num_tokens: int
    head: str
    logit: float | None
    features: dict[str, float]
    contributions: dict[str, float]
    seed_score: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: plain numbers, strings, lists and None; finite throughout."""
        # Not asdict(), which copies every number: it took a quarter of a score's time.
        report = {name: getattr(self, name) for name in self.__slots__}
        return report | {"notes": list(self.notes)}


def seed_score(text: str) -> float:
    """0.4 * distinct/words + 0.3 * min(characters, 200)/200 + 0.3. Ranks gibberish above prose: never grade by it."""
    words = text.split()
    distinct = len(set(words)) / len(words) if words else 0.0
    return 0.4 * distinct + 0.3 * min(len(text), 200) / 200 + 0.3


Split = tuple[list[str], list[list[str]]]
"""The windows of a text and the pieces of each."""


def split_text(text: str) -> Split:
    """The windows of a text and the pieces of each: nearly all that is known of its length."""
    parts = windows(text)
    return parts, [split_pieces(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Measured:
    """Features of a text and their deviations (2, features) from human text, means over its windows."""

    values: FloatArray
    deviations_2F: FloatArray
    num_pieces: int


def measure_text(reference: QualityReference, text: str, split: Split | None = None) -> Measured:
    """Text and document features together, in the order of TEXT_FEATURES + DOCUMENT_FEATURES.

    split: split_text(text), if it is at hand.
    """
    parts, pieces = split or split_text(text)
    values = np.zeros(len(TEXT_FEATURES) + len(DOCUMENT_FEATURES))
    deviations = np.zeros((2, len(values)))
    end = len(TEXT_FEATURES)
    total = 0
    sentences = split_sentences(parts[0] if len(parts) == 1 else text)
    for part, words in zip(parts, pieces, strict=True):
        shared = sentences if len(parts) == 1 else None
        found, num_pieces = text_features(part, reference.lexicon, words, shared)
        values[:end] += found
        deviations[:, :end] += reference.text.deviations(found, num_pieces)
        total += num_pieces
    if len(parts) > 1:
        values /= len(parts)
        deviations /= len(parts)
    values[end:] = document_features(sentences)
    if values[end:].any():  # none of them can be too low
        deviations[:, end:] = reference.document.deviations(values[end:], total)
    return Measured(values, deviations, total)


class QualityScorer:
    """Scores texts by one reference. Holds no state between texts; safe to share between threads."""

    def __init__(self, reference: QualityReference) -> None:
        self.reference = reference
        self._thresholds = {
            name: [(grade, head.threshold(grade)) for grade in GRADES] for name, head in reference.heads.items()
        }
        self._names = {
            name: [("baseline"), *(feature.name for feature in head.features)] for name, head in reference.heads.items()
        }

    @staticmethod
    def load(path: Path | str) -> "QualityScorer":
        """From a reference's file, or for a model folder (find_reference). ValueError if it is missing or broken."""
        return QualityScorer(find_reference(path) if Path(path).is_dir() else load_reference(path))

    def score(self, text: str, surprise: TokenSurprise | None = None, num_tokens: int | None = None) -> QualityReport:
        """Any string has an answer. num_tokens: the text's tokens, if known; else the surprise's, else estimated.

        ValueError only for surprise arrays that are not finite.
        """
        split = None
        if num_tokens is None and surprise is not None:
            num_tokens = len(surprise)
        elif num_tokens is None:
            split = split_text(text)
            num_tokens = tokens_of(*split, len(text))
        if num_tokens < SHORTEST:
            return _too_short(text, num_tokens)
        measured = measure_text(self.reference, text, split)
        name, values, deviations = "text", measured.values, measured.deviations_2F
        if surprise is not None and self.reference.surprise is not None and len(surprise) >= MIN_TOKENS:
            name, found = "surprise", surprise_features(surprise)
            values = np.concatenate([values, found])
            more = self.reference.surprise.deviations(found, len(surprise))
            deviations = np.concatenate([deviations, more], axis=1)
        return self._report(text, num_tokens, name, values, deviations)

    def _report(
        self, text: str, num_tokens: int, name: str, values: FloatArray, deviations_2F: FloatArray
    ) -> QualityReport:
        head = self.reference.heads[name]
        parts = (head.weights_2F[0] * deviations_2F[0] + head.weights_2F[1] * deviations_2F[1]).tolist()
        contributions = dict(zip(self._names[name], [head.intercept, *parts], strict=True))
        logit = sum(contributions.values())
        score = sigmoid(logit)
        features = dict(zip(self._names[name][1:], values.tolist(), strict=True))
        return QualityReport(
            score=score,
            grade=next((grade for grade, least in self._thresholds[name] if score >= least), "POOR"),
            reason=None,
            num_tokens=num_tokens,
            head=name,
            logit=logit,
            features=features,
            contributions=contributions,
            seed_score=seed_score(text),
            notes=_notes(features),
        )


def score_matrix(head: Head, deviations_N2F: FloatArray) -> FloatArray:
    """Scores of many texts at once, as score() gives them (to rounding)."""
    logits = head.intercept + np.einsum("nsf,sf->n", deviations_N2F, head.weights_2F)
    scores: FloatArray = 0.5 * (1 + np.tanh(logits / 2))
    return scores


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    e = math.exp(max(logit, -700.0))
    return e / (1 + e)


def _too_short(text: str, num_tokens: int) -> QualityReport:
    what = f"{num_tokens} token" + ("s" if num_tokens != 1 else "")
    reason = f"too short to score: {what}, {SHORTEST} are needed" if text else "too short to score: the text is empty"
    return QualityReport(None, None, reason, num_tokens, "none", None, {}, {}, seed_score(text))


def _notes(features: dict[str, float]) -> tuple[str, ...]:
    known = features["known_words"]
    if known >= _FEW_KNOWN_WORDS:
        return ()
    return (
        f"{known:.0%} of the words are in the reference's vocabulary: this is another language, code or noise, "
        "and the score only says how little it reads like the reference's text",
    )
