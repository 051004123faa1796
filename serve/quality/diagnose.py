"""Is this model healthy? A pure function over what a model says; probe_model() collects that from a folder.

untrained:  it spreads its probability over the vocabulary nearly evenly.
collapsed:  it is sure of tokens that are wrong, or its numbers are not finite.
repetitive: what it writes repeats itself even when sampled as it says, or every greedy sample is a short loop.
healthy:    none of these. It says nothing of how good the model is: the score and bits per byte do.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.quality.repetition import seq_rep

EVEN_SHARE = 0.8
"""Mean entropy as a share of ln(vocabulary) above which a model knows nothing; a trained one has 0.1 to 0.65."""
SURE_SHARE = 0.03
"""Mean entropy as a share of ln(vocabulary) below which a model is always sure."""
REPEATS = 0.2
"""seq-rep-4 of a sample that repeats itself; human passages of this length stay below 0.05."""
SHORT_LOOP = 4
"""Tokens. Greedy decoding of sound small models loops too, but over phrases; a loop this short is a defect."""

REMEDIES = {
    "untrained": "Check that the weights were loaded and the checkpoint is not the first; train it, or serve another.",
    "collapsed": "Go back to a checkpoint before the loss jumped; lower the learning rate, or use float32.",
    "repetitive": "Set repetition_penalty to 1.1-1.3 or no_repeat_ngram_size to 4; train on less duplicated text.",
    "healthy": "Nothing to do.",
}
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """verdict: untrained, collapsed, repetitive or healthy. evidence: the numbers. reasons: sentences. remedy."""

    verdict: str
    evidence: dict[str, float]
    reasons: tuple[str, ...]
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Findings:
    """What was seen of a model. Entropies, log-probabilities: nats, temperature 1. Empty where it was not looked at.

    entropies: next-token entropies, over given text or its own. text_logprobs: of ordinary text that it was given.
    top_probabilities: of the likeliest token. greedy, sampled: token ids of samples, 64 tokens or more each.
    """

    vocab_size: int
    entropies: Sequence[float] | FloatArray
    text_logprobs: Sequence[float] | FloatArray = ()
    top_probabilities: Sequence[float] | FloatArray = ()
    greedy: Sequence[Sequence[int]] = field(default=())
    sampled: Sequence[Sequence[int]] = field(default=())

    def __post_init__(self) -> None:
        """ValueError without a vocabulary or entropies: there is nothing to judge by."""
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size is {self.vocab_size}: give the number of the model's token ids")
        if not len(self.entropies):
            raise ValueError("entropies is empty: give the next-token entropies of at least one text")


def diagnose(findings: Findings) -> Diagnosis:
    """The first of untrained, collapsed, repetitive that holds, else healthy."""
    numbers = [np.asarray(x, dtype=np.float64) for x in (findings.entropies, findings.text_logprobs)]
    if not all(np.isfinite(x).all() for x in numbers):
        return _verdict("collapsed", {}, ["The model's probabilities are not finite numbers."])
    evidence = _evidence(findings)
    log_vocab = evidence["log_vocabulary"]
    share, surprise = evidence["entropy_share"], evidence.get("surprise")
    seen = f"Mean next-token entropy is {evidence['entropy']:.2f} nats, {share:.0%} of ln(vocabulary) = {log_vocab:.2f}"
    if share > EVEN_SHARE:
        return _verdict("untrained", evidence, [f"{seen}: nearly every token is thought equally likely."])
    if surprise is not None and surprise > log_vocab:
        reason = f"Ordinary text surprises it by {surprise:.2f} nats a token, more than guessing evenly would ({seen})."
        return _verdict("collapsed", evidence, [reason])
    if share < SURE_SHARE:
        return _verdict("collapsed", evidence, [f"{seen}: it is sure of nearly every token."])
    reasons = _repetition_reasons(evidence)
    if reasons:
        return _verdict("repetitive", evidence, reasons)
    return _verdict("healthy", evidence, [f"{seen}."])


def _verdict(name: str, evidence: dict[str, float], reasons: list[str]) -> Diagnosis:
    return Diagnosis(name, evidence, tuple(reasons), REMEDIES[name])


def _evidence(findings: Findings) -> dict[str, float]:
    log_vocab = math.log(findings.vocab_size)
    entropy = float(np.mean(findings.entropies))
    found = {
        "log_vocabulary": log_vocab,
        "entropy": entropy,
        "entropy_share": entropy / log_vocab,
        "entropy_spread": float(np.std(findings.entropies)),
    }
    if len(findings.text_logprobs):
        found["surprise"] = -float(np.mean(findings.text_logprobs))
    if len(findings.top_probabilities):
        found["top_probability"] = float(np.mean(findings.top_probabilities))
    for name, samples in (("greedy", findings.greedy), ("sampled", findings.sampled)):
        if samples:
            repeats = [seq_rep(np.asarray(ids, dtype=np.int64))[3] for ids in samples]
            periods = [loop_period(ids) for ids in samples]
            found[f"{name}_seq_rep_4"] = float(np.mean(repeats))
            found[f"{name}_looping_share"] = float(np.mean([p > 0 for p in periods]))
            found[f"{name}_short_loop_share"] = float(np.mean([0 < p <= SHORT_LOOP for p in periods]))
    return found


def _repetition_reasons(evidence: dict[str, float]) -> list[str]:
    reasons = []
    sampled = evidence.get("sampled_seq_rep_4", 0.0)
    if sampled > REPEATS:
        reasons.append(f"Samples at temperature 1 repeat {sampled:.0%} of their 4-grams.")
    short = evidence.get("greedy_short_loop_share", 0.0)
    if short > 0.5:
        reasons.append(f"{short:.0%} of the greedy samples end in a loop of at most {SHORT_LOOP} tokens.")
    return reasons


def loop_period(ids: Sequence[int], longest: int = 64) -> int:
    """Period of the loop that a sequence ends in, at least three times round; 0 if it ends in none."""
    tail = np.asarray(ids, dtype=np.int64)
    for period in range(1, min(longest, len(tail) // 3) + 1):
        last = tail[-3 * period :]
        if (last[period:] == last[:-period]).all():
            return period
    return 0


PROBES = (
    "The old man walked slowly down to the river, for the morning was cold and he had nowhere else to go.",
    "When she opened the letter there was nothing in it but a key, and she knew at once which door it belonged to.",
    "It rained all that week. On Friday the road to the village was under water and no one came to the shop.",
    '"I do not think," said the captain, "that we shall see land before night, unless the wind changes."',
    "There are three ways to cross the hills, and the shortest of them is the one that nobody takes in winter.",
    "In the evening they sat by the fire and told each other what they had done during the day.",
    "The city was built upon seven islands, joined by bridges of stone which the people kept in good repair.",
    "Nobody could say when the clock had stopped, but from that hour everything in the house seemed to wait.",
)
"""Plain sentences written for this purpose; part of no corpus."""


def probe_model(model_dir: Path | str, num_tokens: int = 128, seed: int = 0) -> Findings:
    """Run a checkpoint on PROBES: a forward pass, a greedy and a sampled continuation of each. Loads torch."""
    from serve.engine.request import SamplingParams
    from serve.quality.model_runs import TextScorer, generate

    scorer = TextScorer(model_dir)
    scored = scorer.score(PROBES)
    entropies = np.concatenate([np.asarray(s.surprise.entropies) for s in scored])
    if not np.isfinite(entropies).all():
        return Findings(scorer.vocab_size, entropies)
    runs = []
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_new_tokens=num_tokens, temperature=temperature, ignore_eos=True)
        runs.append([list(s.surprise.token_ids) for s in generate(model_dir, PROBES, params, seed=seed)])
    return Findings(
        scorer.vocab_size,
        entropies,
        np.concatenate([np.asarray(s.surprise.logprobs) for s in scored]),
        np.concatenate([s.top1 for s in scored]),
        *runs,
    )
