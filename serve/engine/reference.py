"""The oracle: one request, no cache, no batch, a whole plain forward for every token. Torch, transformers, numpy.

Slow and literal. It follows the rule in sampling.py with other tools: transformers' own processors, and one row at a
time in numpy. Nothing is shared with the engine but the uniform numbers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from serve.engine.request import FinishReason, SamplingParams
from serve.engine.sampling import NUM_DRAWS, uniforms


@dataclass(slots=True)
class NaiveText:
    """What one request generates: as the joined deltas of the engine."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


def generate_naively(
    model: Any,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_token_ids: Collection[int] = (),
    seed: int | None = None,
) -> NaiveText:
    """Generate from a transformers model (with its own attention) until eos, a stop token or max_new_tokens.

    seed: None takes params.seed, which must then be given unless the request is greedy.
    """
    seed = params.seed if seed is None else seed
    if seed is None and params.temperature > 0:
        raise ValueError("seed is None: give one, here or in params; the oracle draws none of its own")
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    text = NaiveText()
    for index in range(params.max_new_tokens):
        with torch.inference_mode():
            ids = torch.tensor([[*prompt_ids, *text.token_ids]])
            raw_V = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        token = choose_naively(raw_V, prompt_ids, text.token_ids, params, seed or 0, index)
        logp_V = raw_V.log_softmax(0)
        text.token_ids.append(token)
        text.logprobs.append(float(logp_V[token]))
        text.entropies.append(float(-(logp_V.exp() * logp_V).nansum()))
        if token in stop_ids:
            text.finish_reason = "stop"
            return text
    text.finish_reason = "length"
    return text


def process_naively(
    raw_V: Tensor, prompt_ids: Sequence[int], output_ids: Sequence[int], params: SamplingParams
) -> Tensor:
    """Step 2 of the rule: (V,) logits after bias, repetition, n-gram, frequency and presence, before temperature."""
    ids = torch.tensor([[*prompt_ids, *output_ids]])
    scores = raw_V[None].clone()
    if params.logit_bias:
        bias = [[[token], float(amount)] for token, amount in params.logit_bias.items()]
        scores = SequenceBiasLogitsProcessor(bias)(ids, scores)
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(ids, scores)
    if params.no_repeat_ngram_size:
        banned = NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)(ids, scores)
        scores = scores if bool((banned == -torch.inf).all()) else banned
    counts = torch.bincount(torch.tensor(list(output_ids), dtype=torch.int64), minlength=raw_V.shape[0])
    penalty = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    processed: Tensor = scores[0] - penalty
    return processed


def choose_naively(
    raw_V: Tensor, prompt_ids: Sequence[int], output_ids: Sequence[int], params: SamplingParams, seed: int, index: int
) -> int:
    """One token by the rule. raw: (V,) float32 logits of the model."""
    z_V = process_naively(raw_V, prompt_ids, output_ids, params)
    if params.temperature == 0:
        return int(np.flatnonzero(z_V == z_V.max())[0])
    scores = z_V[None]
    if params.temperature != 1.0:
        scores = TemperatureLogitsWarper(float(params.temperature))(None, scores)
    z, weights = scores[0].numpy(), torch.exp(scores[0] - scores[0].max()).numpy().astype(np.float64)
    in_k = np.ones(len(z), dtype=bool)
    if params.top_k:
        in_k = (TopKLogitsWarper(params.top_k)(None, scores) > -torch.inf)[0].numpy()
    in_b = in_k & (weights >= np.float32(params.min_p))

    def in_nucleus(token: int) -> bool:
        return bool(weights[in_k & (z > z[token])].sum() < params.top_p * weights[in_k].sum())

    def uniform(draw: int) -> float:
        return float(uniforms(np.array([seed], np.uint64), np.array([index], np.int64), draw)[0])

    return _draw(weights, in_b, in_nucleus, uniform, params, scores)


def _draw(
    weights: NDArray[np.float64],
    in_b: NDArray[np.bool_],
    in_nucleus: Callable[[int], bool],
    uniform: Callable[[int], float],
    params: SamplingParams,
    scores: Tensor,
) -> int:
    """Step 6 of the rule."""
    if params.top_p == 1.0 and params.typical_p == 1.0:
        return _invert(weights, in_b, uniform(0))
    if params.typical_p == 1.0:
        for draw in range(NUM_DRAWS):
            token = _invert(weights, in_b, uniform(draw))
            if in_nucleus(token):
                return token
    kept = in_b.copy()
    if params.top_p < 1.0:
        kept[[t for t in np.flatnonzero(in_b) if not in_nucleus(int(t))]] = False
    if params.typical_p == 1.0:
        return _invert(weights, kept, uniform(NUM_DRAWS))
    masked = scores.masked_fill(torch.from_numpy(~kept)[None], -torch.inf)
    typical = (TypicalLogitsWarper(params.typical_p)(None, masked) > -torch.inf)[0].numpy()
    return _invert(weights, typical, uniform(0))


def _invert(weights: NDArray[np.float64], allowed: NDArray[np.bool_], u: float) -> int:
    sums = np.cumsum(np.where(allowed, weights, 0.0))
    above = np.flatnonzero(sums > u * sums[-1])
    return int(above[0]) if above.size else int(np.flatnonzero(allowed & (weights > 0))[-1])
