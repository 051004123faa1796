"""The figures of an evaluation's sections, JSON-ready: held-out text, Phi by layer, quality of written text."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from iit.__main__ import read_states
from iit.measurement import measure_states
from iit.probe import decoder_layers
from serve.quality.reference import GRADES
from serve.quality.score import QualityReport, QualityScorer
from serve.quality.statistics import bootstrap, mean
from serve.quality.text_statistics import distinct_n, self_bleu
from training.continuations import Continuation, Prompt
from training.mauve import mauve_score
from training.passages import SplitNats

OWN = "own defaults"
"""The decoding setting of the checkpoint's generation_config.json."""
PHI_RANK = 4
PHI_LAG = 1
_PHI_WINDOWS = 64
FloatArray = NDArray[np.float64]


def load_model(model_dir: Path) -> nn.Module:
    """A checkpoint in float32 on the CPU, in eval mode."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    return model.eval()


def describe_split(found: SplitNats, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """Bits per byte with its interval over passages, token and word perplexity, and the passages themselves."""
    nats = float(found.nats_P.sum())
    rows_P2 = np.stack([found.nats_P, found.bytes_P.astype(np.float64)], axis=1)
    bits = bootstrap(bits_per_byte, [rows_P2], np.random.default_rng(seed), num_bootstrap)
    return {
        "bits_per_byte": bits.to_json(),
        "token_perplexity": _perplexity(nats, found.num_tokens),
        "word_perplexity": _perplexity(nats, found.num_words),
        "tokens_per_word": found.num_tokens / found.num_words,
        "num_documents": found.num_documents,
        "num_passages": len(found.bytes_P),
        "num_tokens": found.num_tokens,
        "num_words": found.num_words,
        "num_bytes": int(found.bytes_P.sum()),
        "passages": [
            {"num_bytes": n, "nats": x} for n, x in zip(found.bytes_P.tolist(), found.nats_P.tolist(), strict=True)
        ],
    }


def bits_per_byte(rows_P2: FloatArray) -> float:
    """Of passages' nats and bytes."""
    nats, num_bytes = rows_P2.sum(0)
    return float(nats / math.log(2) / num_bytes)


def _perplexity(nats: float, count: int) -> float:
    return math.exp(min(nats / count, 700.0))


def measure_phi(
    model: nn.Module, tokenizer: Tokenizer, documents: Sequence[str], *, context: int, seed: int
) -> list[dict[str, Any]]:
    """Phi of each layer over the first windows of the text, with the mean it has when there is nothing to find."""
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document, add_special_tokens=False).ids
        if len(ids) >= _PHI_WINDOWS * context:
            break
    count = min(_PHI_WINDOWS, len(ids) // context)
    if count == 0:
        raise ValueError(f"context is {context}: the text holds {len(ids)} tokens; give more text or a smaller context")
    windows_WT = torch.tensor(ids[: count * context]).view(count, context)
    layers = range(len(decoder_layers(model)))
    states, num_units = read_states(model, windows_WT, layers, rank=PHI_RANK, seed=seed)
    found = []
    for layer in layers:
        record = measure_states(states[layer], num_units[layer], lag=PHI_LAG, seed=seed)
        names = (
            "phi",
            "null_mean",
            "p_value",
            "phi01",
            "phi_r",
            "effective_rank",
            "num_pairs",
            "num_units",
            "rank",
            "lag",
        )
        found.append({"layer": layer, **{name: getattr(record, name) for name in names}})
    return found


def measure_human(scorer: QualityScorer, prompts: Sequence[Prompt], num_bootstrap: int, seed: int) -> dict[str, Any]:
    """The human continuations of the prompts, judged as written text is: the yardstick."""
    reports = [scorer.score(prompt.human, num_tokens=prompt.human_tokens) for prompt in prompts]
    return _figures([prompt.human for prompt in prompts], reports, num_bootstrap, seed)


def measure_decoding(
    model_dir: Path,
    scorer: QualityScorer,
    prompts: Sequence[Prompt],
    written: Sequence[Continuation],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What one decoding setting wrote, one text a prompt, with the scores and texts themselves.

    Text head only: the surprise head knows the model, and would call its likeliest text the best.
    """
    texts = [continuation.text for continuation in written]
    reports = [scorer.score(c.text, num_tokens=len(c.token_ids)) for c in written]
    mauve = mauve_score([prompt.human for prompt in prompts], texts, model_dir, seed=seed, num_bootstrap=num_bootstrap)
    return {
        **_figures(texts, reports, num_bootstrap, seed),
        "mauve": {"value": mauve.value, "low": mauve.low, "high": mauve.high, "num_texts": mauve.num_texts},
        "mean_tokens": sum(len(c.token_ids) for c in written) / len(written),
        "scores": [report.score for report in reports],
        "texts": texts,
    }


def _figures(texts: Sequence[str], reports: Sequence[QualityReport], num_bootstrap: int, seed: int) -> dict[str, Any]:
    scores = np.array([report.score for report in reports if report.score is not None], dtype=np.float64)
    grades = Counter(report.grade for report in reports if report.grade is not None)
    rng = np.random.default_rng(seed)
    return {
        "num_texts": len(texts),
        "num_too_short": len(texts) - len(scores),
        "score": bootstrap(mean, [scores], rng, num_bootstrap).to_json() if len(scores) else None,
        "grades": {grade: grades[grade] / max(1, len(scores)) for grade in (*GRADES, "POOR")},
        "distinct": {str(n): distinct_n(texts, n) for n in (1, 2, 3, 4)},
        "self_bleu": self_bleu(texts),
    }
