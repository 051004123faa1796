"""Fit a quality reference: `python -m serve.quality fit`. Offline; needs the `train` extra.

Two kinds of human text go in. `corpora`: large, for the lexicon and the text features; the checkpoint may have been
trained on it. `held_out`: text the checkpoint was NOT trained on, for the surprise features: a model knows its training
text better than any other human text, and would set the ranges of human surprise too low.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine.request import SamplingParams
from serve.quality.corpus import Corpus, passages, read_corpus
from serve.quality.degradations import FITTED, Bank
from serve.quality.examples import (
    Example,
    generations,
    human,
    loops,
    prompts,
    spoiled,
    untrained_generations,
    with_surprise,
)
from serve.quality.features import DOCUMENT_FEATURES, TEXT_FEATURES, Feature
from serve.quality.heads_fit import FittedHead, fit_head, surprise_range, text_ranges
from serve.quality.lexicon_fit import fit_lexicon
from serve.quality.model_runs import TextScorer
from serve.quality.reference import Head, QualityReference, weights_identity
from serve.quality.restyling import restyle
from serve.quality.score import measure_text, score_matrix
from serve.quality.surprise import SURPRISE_FEATURES, surprise_features
from serve.quality.yardstick import percentiles, with_served_scores

_SET_ASIDE = 5
"""Every fifth document is kept from the lexicon and gives passages instead."""
_LEXICON_CHARACTERS = 160_000
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FitConfig:
    """num_passages: human ones a head is fitted on. penalty: of squared weights. undertrained: early checkpoints.

    num_ranges: passages that the ranges of human text are taken from. context_steps: of the lexicon's network.
    """

    corpora: tuple[Path, ...]
    held_out: tuple[Path, ...]
    checkpoint: Path | None = None
    undertrained: tuple[Path, ...] = ()
    num_passages: int = 3000
    num_samples: int = 64
    num_ranges: int = 1200
    context_steps: int = 700
    penalty: float = 1e-3
    seed: int = 0


def fit(config: FitConfig) -> QualityReference:
    """Everything, from files to a reference; deterministic in the files and the seed. Minutes with a checkpoint."""
    random = Random(config.seed)
    corpora = [read_corpus(path) for path in config.corpora]
    held_out = [read_corpus(path) for path in config.held_out]
    known, unknown = _set_aside([d for corpus in corpora for d in corpus.documents])
    fresh = [d for corpus in held_out for d in corpus.documents]
    lexicon = fit_lexicon([d[:_LEXICON_CHARACTERS] for d in known], config.seed, config.context_steps)
    bank = Bank([d[: _LEXICON_CHARACTERS // 4] for d in known[:60]])
    human_documents = unknown + fresh
    long = passages(human_documents, config.num_ranges, random, (700, 760))
    long = [restyle(text, random, bank) if random.random() < 0.5 else text for text in long]
    text, document = text_ranges(long, lexicon)
    reference = QualityReference(lexicon, text, document, None, {}, _origin(config, corpora, held_out))

    each = max(20, config.num_passages // len(FITTED))
    examples = human(human_documents, config.num_passages, random, bank)
    examples += spoiled(human_documents, FITTED, each, random, bank)
    if config.checkpoint is None:
        return _with_heads(reference, examples, [], config)
    samples = _samples(config, config.checkpoint, fresh, random)
    scorer = TextScorer(config.checkpoint)
    seen = human(fresh, config.num_passages // 3, random, bank) + spoiled(fresh, FITTED, each // 3, random, bank)
    seen = with_surprise(seen, scorer) + samples + with_surprise([Example(e.text, e.kind) for e in samples], scorer)
    plain = with_surprise([Example(t, "human") for t in passages(fresh, 500, random, (540, 560))], scorer)
    surprise = surprise_range([e.surprise for e in plain if e.surprise is not None])
    reference = QualityReference(lexicon, text, document, surprise, {}, reference.origin)
    reference = _with_heads(reference, examples + samples, seen, config)
    return with_served_scores(reference, config.checkpoint, held_out, seed=config.seed)


def _set_aside(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """(for the lexicon, for passages), by document; by part where there are few."""
    if len(documents) >= 2 * _SET_ASIDE:
        return [d for i, d in enumerate(documents) if i % _SET_ASIDE], list(documents[::_SET_ASIDE])
    cuts = [len(d) * 7 // 10 for d in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [d[:at] for d, at in pairs], [d[at:] for d, at in pairs]


def _samples(config: FitConfig, checkpoint: Path, fresh: Sequence[str], random: Random) -> list[Example]:
    """What real models do wrong: too hot, looping, undertrained, untrained. Good samples are no negatives."""
    starts = prompts(fresh, config.num_samples, random)
    make = SamplingParams

    def at(temperature: float) -> SamplingParams:
        return make(max_new_tokens=240, temperature=temperature, ignore_eos=True)

    found: list[Example] = []
    for temperature in (1.6, 2.0, 2.5):
        found += generations(checkpoint, "too_hot", starts, at(temperature), random, seed=config.seed)
    greedy = generations(checkpoint, "greedy_loop", starts, at(0.0), random, seed=config.seed)
    found += loops(greedy + generations(checkpoint, "greedy_loop", starts, at(0.2), random, seed=config.seed))
    found += untrained_generations(checkpoint, starts, at(1.0), random, seed=config.seed)
    for folder in config.undertrained:
        kind = "undertrained_model"
        found += generations(folder, kind, starts, at(1.0), random, seed=config.seed, tokenizer_dir=checkpoint)
    return found


def _deviations(reference: QualityReference, examples: Sequence[Example], with_model: bool) -> FloatArray:
    """(N, 2, F) for the text head, or for the surprise head."""
    rows = []
    for example in examples:
        row = measure_text(reference, example.text).deviations_2F
        if with_model:
            assert reference.surprise is not None
            assert example.surprise is not None
            found = surprise_features(example.surprise)
            row = np.concatenate([row, reference.surprise.deviations(found, len(example.surprise))], axis=1)
        rows.append(row)
    return np.stack(rows)


def _with_heads(
    reference: QualityReference, examples: Sequence[Example], seen: Sequence[Example], config: FitConfig
) -> QualityReference:
    heads = {"text": _head(reference, examples, TEXT_FEATURES + DOCUMENT_FEATURES, config)}
    if seen:
        features = TEXT_FEATURES + DOCUMENT_FEATURES + SURPRISE_FEATURES
        usable = [e for e in seen if e.surprise is not None and len(e.surprise) >= 16]
        heads["surprise"] = _head(reference, usable, features, config)
    return QualityReference(
        reference.lexicon, reference.text, reference.document, reference.surprise, heads, reference.origin
    )


def _head(
    reference: QualityReference, examples: Sequence[Example], features: tuple[Feature, ...], config: FitConfig
) -> Head:
    kinds = [e.kind for e in examples]
    deviations = _deviations(reference, examples, len(features) > len(TEXT_FEATURES + DOCUMENT_FEATURES))
    calibrating = np.random.default_rng(config.seed).random(len(examples)) < 0.4
    fitted: FittedHead = fit_head(deviations, kinds, calibrating, config.penalty)
    summary: dict[str, Any] = {
        "num_human": kinds.count("human"),
        "num_spoiled": len(kinds) - kinds.count("human"),
        "kinds": sorted(set(kinds) - {"human"}),
        "penalty": config.penalty,
        "calibration_slope": round(fitted.slope, 5),
        "calibration_offset": round(fitted.offset, 5),
    }
    head = Head(features, fitted.intercept, fitted.weights_2F, (), None, summary)
    held = calibrating & np.array([kind == "human" for kind in kinds])
    return replace(head, human_scores=percentiles(score_matrix(head, deviations[held])))


def _origin(config: FitConfig, corpora: Sequence[Corpus], held_out: Sequence[Corpus]) -> dict[str, Any]:
    import zlib

    return {
        "checkpoint": None if config.checkpoint is None else {"weights": weights_identity(config.checkpoint)},
        "corpora": [corpus.identity() for corpus in corpora],
        "held_out": [corpus.identity() for corpus in held_out],
        "seed": config.seed,
        "num_passages": config.num_passages,
        "libraries": {
            "python": platform.python_version(),
            # Compressed sizes differ a little between zlib implementations.
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            **{name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        },
    }
