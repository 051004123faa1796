"""MAUVE (Pillutla et al. 2021) between human and generated text, by the package mauve-text, with an interval.

The features are the model's own: the last hidden state of a text's last token under the checkpoint at hand, not under
GPT-2 large as published. So a value compares only with values from the same features, number and length of texts.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.engine.loader import load_tokenizer

_MAX_ROWS = 16
_LEAST_TEXTS = 20  # the package makes a cluster for every ten texts, and at least two
_NUM_CLUSTERINGS = 5
# The package's defaults: weights of the mixture along the divergence curve, and the scale of its divergences.
_MIXTURES = np.linspace(1e-6, 1 - 1e-6, 25)
_SCALE = 5.0
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MauveResult:
    """value: 0 to 1, higher is closer, the mean over five k-means clusterings. low, high: its 95 % interval.

    num_texts: of each kind. draws: the bootstrap's values, shifted so that their mean is value; for differences, so
    not cut at 1 as the interval is.
    """

    value: float
    low: float
    high: float
    num_texts: int
    num_clusters: int
    draws: FloatArray = field(repr=False)


class LastHiddenStates:
    """The last hidden state of each text's last token under one checkpoint, float32 on the CPU."""

    def __init__(self, model_dir: Path | str) -> None:
        """ValueError for a folder without tokenizer.json."""
        import torch
        from transformers import AutoModel

        self._tokenizer = load_tokenizer(model_dir)
        self._model = AutoModel.from_pretrained(
            model_dir, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        ).eval()
        self._max_tokens = int(getattr(self._model.config, "max_position_embeddings", 1024))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, hidden). Texts beyond the model's length are cut; an empty text is the token 0 alone."""
        import torch

        rows = [(e.ids or [0])[: self._max_tokens] for e in self._tokenizer.encode_batch(list(texts))]
        features_ND = np.empty((len(rows), self._model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for at in range(0, len(order), _MAX_ROWS):
            batch = order[at : at + _MAX_ROWS]
            # Padding stands behind the text and attention is causal, so it needs no mask.
            ids_BT = torch.zeros((len(batch), len(rows[batch[-1]])), dtype=torch.long)
            for row, i in enumerate(batch):
                ids_BT[row, : len(rows[i])] = torch.tensor(rows[i])
            with torch.inference_mode():
                hidden_BTD = self._model(input_ids=ids_BT, use_cache=False).last_hidden_state
            for row, i in enumerate(batch):
                features_ND[i] = hidden_BTD[row, len(rows[i]) - 1].numpy()
        return features_ND


def mauve_score(
    human_texts: Sequence[str],
    generated_texts: Sequence[str],
    features_model_dir: Path | str,
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> MauveResult:
    """MAUVE of two sets of texts; hand in continuations without their prompts, which both sets would share.

    ValueError for fewer than 20 texts on a side.
    """
    features = LastHiddenStates(features_model_dir)
    return mauve_of_features(features(human_texts), features(generated_texts), seed=seed, num_bootstrap=num_bootstrap)


def mauve_of_features(
    human_ND: NDArray[np.float32], generated_ND: NDArray[np.float32], *, seed: int = 0, num_bootstrap: int = 1000
) -> MauveResult:
    """MAUVE of two sets of features, (texts, hidden) each; seed: of the clusterings and the bootstrap.

    The bootstrap resamples both sets of texts, clusters held fixed. MAUVE of a resample is lower on average than that
    of the sample, as the sample's is lower than that of endless text: draws are centred on the value, so the interval
    shows the spread and leaves the bias, which sets of equal size share. It is wide for a mean of clusterings: each
    draw uses one of them. ValueError for fewer than 20 texts on a side or num_bootstrap below 1.
    """
    num_texts = min(len(human_ND), len(generated_ND))
    if num_texts < _LEAST_TEXTS:
        raise ValueError(f"MAUVE of {num_texts} texts: give at least {_LEAST_TEXTS} of each kind")
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap is {num_bootstrap}: give a whole number of at least 1")
    from mauve.compute_mauve import compute_mauve

    rng = np.random.default_rng(seed)
    values, draws = [], []
    for clustering in range(_NUM_CLUSTERINGS):
        with _quiet_faiss():
            found = compute_mauve(
                p_features=human_ND, q_features=generated_ND, seed=seed * _NUM_CLUSTERINGS + clustering
            )
        values.append(float(found.mauve))
        count = len(range(clustering, num_bootstrap, _NUM_CLUSTERINGS))
        human_BK = rng.multinomial(len(human_ND), found.p_hist, size=count) / len(human_ND)
        generated_BK = rng.multinomial(len(generated_ND), found.q_hist, size=count) / len(generated_ND)
        drawn = area_of_histograms(human_BK, generated_BK)
        draws.append(drawn - (drawn.mean() if count else 0.0))
    value = float(np.mean(values))
    centred = np.concatenate(draws) + value
    low, high = np.clip(np.quantile(centred, [0.025, 0.975]), 0.0, 1.0)
    return MauveResult(value, float(low), float(high), num_texts, int(found.num_buckets), centred)


def area_of_histograms(p_BK: FloatArray, q_BK: FloatArray) -> FloatArray:
    """MAUVE of each pair of rows of probabilities: the area under their divergence curve; (B,).

    The package does one pair at a time; this is for thousands, and a test holds it against the package.
    """
    curve = []
    for weight in _MIXTURES:
        r_BK = weight * p_BK + (1 - weight) * q_BK
        curve.append((np.exp(-_SCALE * _divergence(q_BK, r_BK)), np.exp(-_SCALE * _divergence(p_BK, r_BK))))
    zeros, ones = np.zeros(len(p_BK)), np.ones(len(p_BK))
    x_WB = np.stack([ones, *(x for x, _ in curve), zeros])
    y_WB = np.stack([zeros, *(y for _, y in curve), ones])
    area: FloatArray = (0.5 * (y_WB[1:] + y_WB[:-1]) * (x_WB[:-1] - x_WB[1:])).sum(0)
    return area


def _divergence(p_BK: FloatArray, r_BK: FloatArray) -> FloatArray:
    """Kullback-Leibler divergence of rows, nats; r is above 0 wherever p is."""
    ratio = np.divide(p_BK, r_BK, out=np.ones_like(p_BK), where=p_BK > 0)
    divergence: FloatArray = (p_BK * np.log(ratio)).sum(1)
    return divergence


@contextmanager
def _quiet_faiss() -> Iterator[None]:
    """Drop what faiss prints from C++: a warning at fewer than 39 points a cluster, where the package always gives 20.

    It goes past sys.stderr, straight to the descriptor. Errors of faiss are exceptions and come through.
    """
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
