"""How a token is drawn from logits: one vectorised torch pipeline over the rows of a step, each with its parameters.

THE RULE (a native runner implements the same; two implementations may differ only where a sum of float rounding
straddles a boundary). For one row with vocabulary ids 0..V-1, logits z in float32:

1. Reported numbers come from z as the model gave it: log-softmax at the chosen token, and the entropy, in nats.
2. Processors, in the order of transformers' generate(), each skipped at its neutral value:
   a. logit_bias             z[t] += bias[t]
   b. repetition_penalty r   for each t in prompt or output: z[t] = z[t] * r if z[t] < 0 else z[t] / r
   c. no_repeat_ngram n      z[t] = -inf for each t that followed, anywhere in prompt + output, the last n - 1 tokens
                             (nothing while prompt + output has fewer than n tokens; nothing either in a step in which
                             that would ban all V tokens)
   d. frequency f, presence p   z[t] -= f * count(t) + p * (count(t) > 0), counts over generated tokens only
3. temperature 0: the token is argmax z, the lowest id among equals. Done; no randomness is used.
4. z = z / temperature;  w[t] = exp(z[t] - max z), so that the largest weight is 1. Sums of w are carried in float64
   (or in float32 by blocks, with a relative error below 1e-6).
5. Truncation, each on what the one before left:
   K  top_k k     {t : fewer than k tokens have z > z[t]}                          (k = 0: all)
   P  top_p p     {t in K : sum of w over {j in K, z[j] > z[t]} < p * sum of w over K}    (p = 1: K)
   M  min_p m     {t in P : w[t] >= m}
   Y  typical_p   transformers' TypicalLogitsWarper on M                            (1: M)
   Tokens of equal z are kept or dropped together, always (transformers' top_p may split them by sort order).
6. The draw. u(d) is the uniform number of (seed, index of the generated token, d), see below.
   invert(A, u): the first id t in ascending order with  sum of w over {j in A, j <= t}  >  u * sum of w over A;
   should rounding leave none, the last id of A with w > 0.
   - typical_p < 1:  token = invert(Y, u(0)).
   - otherwise let B = {t in K : w[t] >= m}, the cheap filters.
     p = 1:  token = invert(B, u(0)).
     p < 1:  for d = 0..15: token = invert(B, u(d)); accept it if it is in P. After 16 refusals
             token = invert(M, u(16)).
   This is exact: rejection from B to M = B and P leaves w normalised over M, the restricted draw after it likewise,
   and no draw looks at another's number. The vocabulary is never sorted: membership of P is one masked sum.

Uniform numbers, all arithmetic modulo 2**64:
   mix(x):  x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31
   G = 0x9E3779B97F4A7C15
   u(seed, index, d) = (mix(mix(seed + G) + (index * 2**32 + d + 1) * G) >> 11) * 2**-53            in [0, 1)
index is 0 for a request's first generated token. This is splitmix64 (Steele, Lea, Flood 2014) at the place a counter
names, so a row's result depends on its own request only, never on its neighbours, its slot or a preemption.
Reference values: u(0, 0, 0), u(1, 0, 0), u(1, 1, 0), u(1, 0, 1), u(2**63 - 1, 1000, 16) are asserted in
tests/engine/test_sampling.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_DRAWS = 16
"""Draws by rejection before the restricted draw; its uniform number has draw index NUM_DRAWS."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], indices: NDArray[np.int64], draw: int) -> NDArray[np.float64]:
    """u(seed, index, draw) for each row: (R,), in [0, 1). See the module's docstring."""
    counter = (indices.astype(np.uint64) << np.uint64(32)) + np.uint64(draw + 1)
    bits = _mix(_mix(seeds + _GOLDEN) + counter * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


# Shapes: N rows, V vocabulary ids. z: processed logits over temperature, float32. w: exp(z - max z).


@dataclass(slots=True)
class Truncation:
    """The truncating parameters of N rows, each (N,), on the CPU. Neutral values: 0, 1.0, 0.0, 1.0."""

    top_k: NDArray[np.int64]
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float32]
    typical_p: NDArray[np.float64]

    def rows(self, index: NDArray[np.int64]) -> "Truncation":
        """Those of some rows."""
        return Truncation(self.top_k[index], self.top_p[index], self.min_p[index], self.typical_p[index])


def top_k_weights(z_NV: Tensor, w_NV: Tensor, top_k: NDArray[np.int64]) -> Tensor:
    """w with everything outside K set to 0, by partial selection."""
    vocab_size = z_NV.shape[1]
    if not top_k.any():
        return w_NV
    k_N = np.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
    limited = np.flatnonzero(k_N < vocab_size)
    if not limited.size:
        return w_NV
    threshold_N1 = z_NV.new_full((z_NV.shape[0], 1), -torch.inf)
    rows = torch.from_numpy(limited).to(z_NV.device)
    best = z_NV[rows].topk(int(k_N[limited].max()), dim=1).values
    last = torch.from_numpy(k_N[limited] - 1).to(z_NV.device)
    threshold_N1[rows] = best.gather(1, last[:, None])
    return torch.where(z_NV >= threshold_N1, w_NV, 0.0)


def nucleus_mask(z_NV: Tensor, w_NV: Tensor, top_p: NDArray[np.float64]) -> Tensor:
    """P by sorting: True for tokens with less than top_p of the mass of w on strictly likelier ones. The slow twin."""
    order = z_NV.argsort(dim=1, descending=True)
    z_sorted, w_sorted = z_NV.gather(1, order), w_NV.gather(1, order).double()
    inclusive = w_sorted.cumsum(1)
    likelier = inclusive - w_sorted
    # Equal logits share the mass before the first of them: that mass never falls along the row.
    starts = torch.ones_like(z_sorted, dtype=torch.bool)
    starts[:, 1:] = z_sorted[:, 1:] != z_sorted[:, :-1]
    likelier = torch.where(starts, likelier, -1.0).cummax(1).values
    limit = torch.from_numpy(top_p).to(z_NV.device)[:, None] * inclusive[:, -1:]
    kept = (likelier < limit) | (limit >= inclusive[:, -1:])
    return torch.zeros_like(kept).scatter(1, order, kept)


def typical_mask(z_NV: Tensor, kept_NV: Tensor, typical_p: NDArray[np.float64]) -> Tensor:
    """Y: locally typical tokens (Meister et al. 2022) among the kept ones, as TypicalLogitsWarper has it."""
    scores = z_NV.masked_fill(~kept_NV, -torch.inf)
    logp = scores.log_softmax(1)
    entropy = torch.special.entr(logp.exp()).sum(1, keepdim=True)
    distance = (-logp - entropy).abs()
    sorted_distance, order = distance.sort(dim=1)
    cumulative = scores.gather(1, order).softmax(1).cumsum(1)
    mass = torch.from_numpy(typical_p.astype(np.float32)).to(z_NV.device)[:, None]
    last = (cumulative < mass).sum(1, keepdim=True).clamp_(max=z_NV.shape[1] - 1)
    near: Tensor = distance <= sorted_distance.gather(1, last)
    return kept_NV & near


def kept_mask(z_NV: Tensor, cut: Truncation) -> Tensor:
    """The set a row draws from (Y of the rule), by sorting: the slow twin, and the exact way when rejection gave up."""
    w = torch.exp(z_NV - z_NV.amax(1, keepdim=True))
    w_K = top_k_weights(z_NV, w, cut.top_k)
    min_p = torch.from_numpy(cut.min_p).to(z_NV.device)[:, None]
    kept = (w_K > 0) & (w >= min_p) & nucleus_mask(z_NV, w_K, cut.top_p)
    typical = np.flatnonzero(cut.typical_p < 1.0)
    if typical.size:
        rows = torch.from_numpy(typical).to(z_NV.device)
        kept[rows] = typical_mask(z_NV[rows], kept[rows], cut.typical_p[typical])
    return kept


def invert(w_NV: Tensor, cumulative_NV: Tensor, u: NDArray[np.float64]) -> Tensor:
    """invert(A, u) of the rule, w being 0 outside A: (N,) ids. cumulative: running sums of w, float64."""
    total_N1 = cumulative_NV[:, -1:]
    target_N1 = torch.from_numpy(u).to(w_NV.device)[:, None] * total_N1
    ids = torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0]
    vocab_size = w_NV.shape[1]
    if bool((ids >= vocab_size).any()):
        last = vocab_size - 1 - (w_NV > 0).flip(1).int().argmax(1)
        ids = torch.where(ids >= vocab_size, last, ids)
    return ids


def draw(z_NV: Tensor, cut: Truncation, seeds: NDArray[np.uint64], indices: NDArray[np.int64]) -> Tensor:
    """Steps 5 and 6 of the rule for N rows: (N,) token ids. seeds, indices: (N,), as uniforms() takes them."""
    w = torch.exp(z_NV - z_NV.amax(1, keepdim=True))
    w_K = top_k_weights(z_NV, w, cut.top_k)
    w_B = w_K
    if cut.min_p.any():
        w_B = torch.where(w >= torch.from_numpy(cut.min_p).to(w.device)[:, None], w_K, 0.0)
    cumulative = w_B.cumsum(1, dtype=torch.float64)
    tokens = invert(w_B, cumulative, uniforms(seeds, indices, 0))
    restricted = cut.typical_p < 1.0
    pending = np.flatnonzero((cut.top_p < 1.0) & ~restricted)
    pending = pending[~_in_nucleus(z_NV, w_K, tokens, cut.top_p, pending)]
    for d in range(1, NUM_DRAWS):
        if not pending.size:
            break
        rows = torch.from_numpy(pending).to(w.device)
        tokens[rows] = invert(w_B[rows], cumulative[rows], uniforms(seeds[pending], indices[pending], d))
        pending = pending[~_in_nucleus(z_NV, w_K, tokens, cut.top_p, pending)]
    for index, d in ((pending, NUM_DRAWS), (np.flatnonzero(restricted), 0)):
        if index.size:
            rows = torch.from_numpy(index).to(w.device)
            kept = torch.where(kept_mask(z_NV[rows], cut.rows(index)), w[rows], 0.0)
            sums = kept.cumsum(1, dtype=torch.float64)
            tokens[rows] = invert(kept, sums, uniforms(seeds[index], indices[index], d))
    return tokens


def _in_nucleus(
    z_NV: Tensor, w_NV: Tensor, tokens_N: Tensor, top_p: NDArray[np.float64], index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """For the rows of index, whether their token is in P: one masked sum each, no sorting."""
    if not index.size:
        return np.zeros(0, dtype=np.bool_)
    if index.size < z_NV.shape[0]:
        rows = torch.from_numpy(index).to(z_NV.device)
        z_NV, w_NV, tokens_N = z_NV[rows], w_NV[rows], tokens_N[rows]
    z_token = z_NV.gather(1, tokens_N[:, None])
    likelier = torch.where(z_NV > z_token, w_NV, 0.0).sum(1, dtype=torch.float64)
    limit = torch.from_numpy(top_p[index]).to(z_NV.device) * w_NV.sum(1, dtype=torch.float64)
    inside: NDArray[np.bool_] = (likelier < limit).cpu().numpy()
    return inside
