"""How a token is drawn from logits: one vectorised torch pipeline over the rows of a step, each with its parameters.

THE RULE (a native runner implements the same; two implementations may differ only where a sum of float rounding
straddles a boundary). For one row with vocabulary ids 0..V-1, logits z in float32:

1. Reported numbers come from z as the model gave it: log-softmax at the chosen token, and the entropy, in nats.
2. Processors, in the order of transformers' generate(), each skipped at its neutral value:
   a. logit_bias             z[t] += bias[t]
   b. repetition_penalty r   for each t in prompt or output: z[t] = z[t] * r if z[t] < 0 else z[t] / r
   c. no_repeat_ngram n      z[t] = -inf for each t that followed, anywhere in prompt + output, the last n - 1 tokens
                             (nothing while prompt + output has fewer than n tokens)
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

import numpy as np
from numpy.typing import NDArray

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
