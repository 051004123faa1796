"""Decide whether a candidate is not worse than the model in use, from two evaluations. Pure: no files, no store.

The rule is non-inferiority: for each quantity the loss (how much worse the candidate is) is bootstrapped over pairs of
the same passage or the same prompt, and the candidate passes if the upper end of the 95 % interval is below a margin.
Absence of proof that it is worse is not enough: a noisy evaluation would let anything through.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.evaluation import Evaluation, Protocol

DEFAULT_BITS_MARGIN = 0.01  # bits per byte
DEFAULT_SCORE_MARGIN = 0.02
RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
# Below this a percentile bootstrap is too narrow to be believed; of one pair it has no width at all.
MIN_PAIRS = 20
_DRAWS_AT_ONCE = 1 << 20

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Margins:
    """The loss that is still called "not worse". ValueError unless both are finite and at least 0."""

    bits_per_byte: float = DEFAULT_BITS_MARGIN
    score: float = DEFAULT_SCORE_MARGIN

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"margin {field.name}={value} is not usable; give a finite number of 0 or more")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of both models. loss > 0: the candidate is worse; low, high: its 95 % interval.

    candidate_too_short, incumbent_too_short: prompts whose continuation could not be scored and counts as 0.
    """

    quantity: str
    candidate: float
    incumbent: float
    loss: float
    low: float
    high: float
    margin: float
    num_pairs: int
    pairs_of: str
    candidate_too_short: int = 0
    incumbent_too_short: int = 0

    @property
    def accepted(self) -> bool:
        return self.high < self.margin

    @property
    def verdict(self) -> str:
        """In words, for the table."""
        if self.high < 0:
            return "better"
        if self.accepted:
            return "worse, but within the margin" if self.low > 0 else "not worse"
        if self.low > 0:
            return "REFUSED: worse"
        return "REFUSED: may be worse by more than the margin"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "accepted": self.accepted, "verdict": self.verdict}


def rule() -> dict[str, Any]:
    """What the figures of a comparison were made with, for the record."""
    return {"test": "non-inferiority", "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}


def refuse_few(evaluation: Evaluation) -> None:
    """ValueError if an evaluation holds too little to be compared with any other."""
    for what, found in (("passages", len(evaluation.passages)), ("prompt_scores", len(evaluation.prompt_scores))):
        if found < MIN_PAIRS:
            raise ValueError(f"{what} has {found} entries; the gate needs {MIN_PAIRS} or more: evaluate on more text")


def compare(candidate: Evaluation, incumbent: Evaluation, margins: Margins) -> tuple[Comparison, Comparison]:
    """Bits per byte over passages, then the score over prompts; the gate is passed if both are accepted.

    Raises ValueError if the two were not taken alike or hold too little to compare.
    """
    refuse_few(candidate)
    if differing := unlike(candidate, incumbent):
        raise ValueError(f"the evaluations differ in {', '.join(differing)}; take both alike")
    return _bits_per_byte(candidate, incumbent, margins.bits_per_byte), _score(candidate, incumbent, margins.score)


def unlike(candidate: Evaluation, incumbent: Evaluation) -> tuple[str, ...]:
    """The fields that must agree for a comparison and do not."""
    names = [field.name for field in fields(Protocol)]
    differing = [
        f"protocol.{name}" for name in names if getattr(candidate.protocol, name) != getattr(incumbent.protocol, name)
    ]
    if _num_bytes(candidate).tolist() != _num_bytes(incumbent).tolist():
        differing.append("passages.num_bytes")
    return tuple(differing)


def _bits_per_byte(candidate: Evaluation, incumbent: Evaluation, margin: float) -> Comparison:
    weights = _num_bytes(candidate)
    ours, theirs = (
        np.array([passage.nats for passage in model.passages]) / math.log(2) for model in (candidate, incumbent)
    )
    low, high = _interval(ours - theirs, weights)
    num_bytes = weights.sum()
    return Comparison(
        quantity="bits per byte",
        candidate=float(ours.sum() / num_bytes),
        incumbent=float(theirs.sum() / num_bytes),
        loss=float((ours - theirs).sum() / num_bytes),
        low=low,
        high=high,
        margin=margin,
        num_pairs=len(weights),
        pairs_of="passages",
    )


def _score(candidate: Evaluation, incumbent: Evaluation, margin: float) -> Comparison:
    """A continuation too short to score counts as 0: left out, a model that stops at every hard prompt would gain."""
    ours, theirs = (
        np.array([0.0 if score is None else score for score in model.prompt_scores]) for model in (candidate, incumbent)
    )
    too_short = [model.prompt_scores.count(None) for model in (candidate, incumbent)]
    if min(too_short) == len(ours):
        raise ValueError("no continuation of either model was long enough to score; evaluate with more new tokens")
    low, high = _interval(theirs - ours, np.ones(len(ours)))
    return Comparison(
        quantity="quality score",
        candidate=float(ours.mean()),
        incumbent=float(theirs.mean()),
        loss=float((theirs - ours).mean()),
        low=low,
        high=high,
        margin=margin,
        num_pairs=len(ours),
        pairs_of="prompts",
        candidate_too_short=too_short[0],
        incumbent_too_short=too_short[1],
    )


def _interval(losses: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Percentile bootstrap of sum(losses) / sum(weights), pairs resampled together."""
    generator = np.random.default_rng(SEED)
    num_pairs = len(losses)
    at_once = max(1, _DRAWS_AT_ONCE // num_pairs)
    drawn: list[FloatArray] = []
    for start in range(0, RESAMPLES, at_once):
        chosen = generator.integers(0, num_pairs, (min(at_once, RESAMPLES - start), num_pairs))
        drawn.append(losses[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)


def _num_bytes(evaluation: Evaluation) -> FloatArray:
    return np.array([passage.num_bytes for passage in evaluation.passages], dtype=np.float64)
