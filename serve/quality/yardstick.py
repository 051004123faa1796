"""What a checkpoint's generations score today, the yardstick of drift: part of a fit, and renewed by itself.

Drift is measured against what is served, not against human text. So the yardstick belongs to the decoding defaults in
the folder's generation_config.json as well as to the weights, and is stale when they change; the rest of a reference
is not. Offline.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from serve.engine.model_files import default_sampling_params
from serve.quality.corpus import Corpus
from serve.quality.examples import generations, prompts
from serve.quality.reference import QualityReference
from serve.quality.score import QualityScorer

NUM_SAMPLES = 512
FloatArray = NDArray[np.float64]


def with_served_scores(
    reference: QualityReference,
    checkpoint: Path,
    held_out: Sequence[Corpus],
    *,
    seed: int = 0,
) -> QualityReference:
    """The reference with new served_scores: of continuations of held-out beginnings at the checkpoint's own decoding.

    ValueError if none of them is long enough to be scored.
    """
    random, params = Random(seed), default_sampling_params(checkpoint)
    starts = prompts([document for corpus in held_out for document in corpus.documents], NUM_SAMPLES, random)
    samples = generations(checkpoint, "served", starts, params, random, lengths=None, seed=seed)
    scorer = QualityScorer(reference)
    heads = {}
    for name, head in reference.heads.items():
        reports = [scorer.score(s.text, s.surprise if name == "surprise" else None) for s in samples]
        scores = [report.score for report in reports if report.score is not None and report.head == name]
        if not scores:
            raise ValueError(f"{checkpoint}: none of {len(starts)} generations is long enough to be scored")
        heads[name] = replace(head, served_scores=percentiles(np.array(scores)))
    served = {
        "held_out": [corpus.identity() for corpus in held_out],
        "num_samples": len(samples),
        "seed": seed,
        "decoding": {
            name: getattr(params, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "max_new_tokens")
        },
    }
    return replace(reference, heads=heads, origin=dict(reference.origin) | {"served": served})


def percentiles(scores: FloatArray) -> tuple[float, ...]:
    """At 0, 1, ..., 100 %."""
    return tuple(float(x) for x in np.round(np.quantile(scores, np.arange(101) / 100), 6))
