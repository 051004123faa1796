"""Measures of integration of a linear-Gaussian system, from the joint covariance of (x_t, x_{t+lag}). All in nats.

Nothing here knows where the covariance came from. Shape suffixes: C cuts, n channels, M = 2n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.disconnected import block_masks, fit_disconnected, residual_covariance
from iit.gaussian import logdet, split_joint
from iit.partitions import MAX_EXHAUSTIVE_UNITS, Cut, bipartitions, make_cut, neighbours, queyranne_cuts


@dataclass(frozen=True)
class Precision:
    """When the fit of the disconnected model ends: no cut falls by more than tolerance (nats) in a round, or
    max_rounds.
    """

    tolerance: float
    max_rounds: int


EXACT = Precision(tolerance=1e-14, max_rounds=2000)
_SEARCH_WIDTH = 4
QUICK = Precision(tolerance=1e-7, max_rounds=30)  # far below the null mean of any batch or text


@dataclass(frozen=True)
class MinimumCut:
    """The minimum information partition: phi is 0-dim and differentiable in the covariance; phi_of_cuts is every cut
    tried.
    """

    cut: Cut
    phi: Tensor
    phi_of_cuts: dict[Cut, float]


def phi_g(joint_covariance: Any, cut: Sequence[Sequence[int]]) -> float:
    """Geometric integrated information Phi_G across one cut, in nats.

    joint_covariance: the (2n, 2n) covariance of (x_t, x_{t+lag}), numpy array, torch tensor or nested lists.
    cut: two lists of channel indices, which together name each of 0..n-1 once.
    Raises ValueError where the matrix is not square, symmetric and positive definite, or the cut is not one.
    Source: Oizumi, Tsuchiya & Amari, PNAS 113:14817 (2016).
    """
    joint_MM = as_joint_covariance(joint_covariance)
    labels_n = labels_of_channels(cut, joint_MM.shape[0] // 2)
    masks_1nn = block_masks(labels_n[None])
    # Phi does not change with the scale of a channel; the arithmetic is better at one scale.
    scale_M = joint_MM.diagonal().rsqrt()
    joint_MM = joint_MM * scale_M[:, None] * scale_M[None, :]
    b_1nn = fit_disconnected(joint_MM, masks_1nn, tolerance=EXACT.tolerance, max_rounds=EXACT.max_rounds)
    return max(0.0, float(phi_of_fit(joint_MM, b_1nn)[0]))


def phi_r(joint_covariance: Any, cut: Sequence[Sequence[int]]) -> float:
    """Phi^R across one cut, nats: I(X;Y) - sum_i I(X_i;Y_i) + min_ij I(X_i;Y_j). Arguments and errors as for phi_g.

    Integrated information decomposition with minimum-mutual-information redundancy.
    Source: Mediano et al., "Towards an extended taxonomy of information dynamics via integrated information
    decomposition", arXiv:2109.13186 (2021).
    """
    joint_MM = as_joint_covariance(joint_covariance)
    return phi_r_of_parts(joint_MM, _parts(labels_of_channels(cut, joint_MM.shape[0] // 2)))


def phi_r_of_parts(joint_MM: Tensor, parts: Sequence[Tensor]) -> float:
    """As phi_r, unchecked, of two tensors of channel indices: a training loop asks at every step."""
    size = joint_MM.shape[0] // 2
    of_source = [_logdet_of(joint_MM, part) for part in parts]
    of_target = [_logdet_of(joint_MM, part + size) for part in parts]
    information = {
        (i, j): 0.5 * (of_source[i] + of_target[j] - _logdet_of(joint_MM, torch.cat([parts[i], parts[j] + size])))
        for i in range(2)
        for j in range(2)
    }
    whole = _mutual_information(joint_MM, torch.arange(size), torch.arange(size))
    return whole - information[0, 0] - information[1, 1] + min(information.values())


def whole_minus_sum(joint_covariance: Any, cut: Sequence[Sequence[int]]) -> float:
    """I(X;Y) - sum_i I(X_i;Y_i) across one cut, nats; negative where the parts are redundant. Arguments as for
    phi_g.
    """
    joint_MM = as_joint_covariance(joint_covariance)
    parts = _parts(labels_of_channels(cut, joint_MM.shape[0] // 2))
    within = sum(_mutual_information(joint_MM, part, part) for part in parts)
    return time_delayed_mutual_information(joint_MM) - within


def time_delayed_mutual_information(joint_covariance: Any) -> float:
    """I(x_t; x_{t+lag}) of the whole, nats: the upper bound of Phi_G. Argument and errors as for phi_g."""
    joint_MM = as_joint_covariance(joint_covariance)
    everything = torch.arange(joint_MM.shape[0] // 2)
    return _mutual_information(joint_MM, everything, everything)


def stochastic_interaction(joint_covariance: Any, cut: Sequence[Sequence[int]]) -> float:
    """Phi_H across one cut, nats: sum_i H(Y_i | X_i) - H(Y | X). Counts instantaneous common drive; can exceed I(X;Y).

    Arguments and errors as for phi_g. Source: Ay, "Information geometry on complexity and stochastic interaction",
    Entropy 17:2432 (2015); Barrett & Seth, PLoS Comput Biol 7:e1001052 (2011).
    """
    joint_MM = as_joint_covariance(joint_covariance)
    size = joint_MM.shape[0] // 2
    conditional = sum(_conditional_logdet(joint_MM, part) for part in _parts(labels_of_channels(cut, size)))
    return 0.5 * (conditional - _conditional_logdet(joint_MM, torch.arange(size)))


def phi_of_fit(joint_MM: Tensor, b_Cnn: Tensor) -> Tensor:
    """Phi of fitted disconnected models, (C,), differentiable in the covariance with B held constant."""
    s_x, _, _ = split_joint(joint_MM)
    # ln det S of the full model = ln det joint - ln det S_x
    return 0.5 * (logdet(residual_covariance(joint_MM, b_Cnn)) + logdet(s_x) - logdet(joint_MM))


def phi_of_cuts(joint_MM: Tensor, cuts: Sequence[Cut], precision: Precision) -> tuple[Tensor, Tensor]:
    """Phi of each cut of equally large units, (C,), and the fits B, (C, n, n). No gradient.

    joint_MM: one covariance for all cuts or (C, 2n, 2n), one for each.
    """
    num_units = len(cuts[0][0]) + len(cuts[0][1])
    masks_Cnn = block_masks(labels_of_cuts(cuts, joint_MM.shape[-1] // 2 // num_units)).to(joint_MM.device)
    b_Cnn = fit_disconnected(
        joint_MM.detach(), masks_Cnn, tolerance=precision.tolerance, max_rounds=precision.max_rounds
    )
    return phi_of_fit(joint_MM.detach(), b_Cnn), b_Cnn


def minimum_cut(joint_MM: Tensor, num_units: int, precision: Precision = QUICK) -> MinimumCut:
    """Find the cut of equally large units with the smallest Phi(cut) / d1, d1 the channels of the smaller part.

    All cuts are tried up to MAX_EXHAUSTIVE_UNITS units; beyond, those that Queyranne's algorithm visits.
    Raises ValueError where the channels do not split into num_units >= 2 units of equal size.
    """
    num_channels = joint_MM.shape[0] // 2
    if num_units < 2 or num_channels % num_units:
        raise ValueError(
            f"num_units={num_units}: {num_channels} channels must split into at least 2 units of equal size"
        )
    if num_units <= MAX_EXHAUSTIVE_UNITS:
        return _cheapest(joint_MM, list(bipartitions(num_units)), precision)
    return minimum_cut_by_queyranne(joint_MM, num_units, precision)


def minimum_cut_by_queyranne(joint_MM: Tensor, num_units: int, precision: Precision = QUICK) -> MinimumCut:
    """As minimum_cut, among the cuts that Queyranne's algorithm visits under Phi and under Phi / d1.

    Phi / d1 is what is minimised, Phi is closer to submodular: each search visits good cuts that the other misses.
    The best few are then improved by moving and swapping units until no such step helps.
    """
    known: dict[Cut, float] = {}

    def learn(cuts: Sequence[Cut]) -> None:
        new = sorted(set(cuts) - known.keys())
        if new:
            known.update(zip(new, phi_of_cuts(joint_MM, new, precision)[0].tolist(), strict=True))

    def cost(cuts: Sequence[Cut]) -> list[float]:
        learn(cuts)
        return [known[cut] for cut in cuts]

    def cost_per_unit(cuts: Sequence[Cut]) -> list[float]:
        learn(cuts)
        return [known[cut] / len(cut[0]) for cut in cuts]

    queyranne_cuts(num_units, cost)
    queyranne_cuts(num_units, cost_per_unit)
    explored: set[Cut] = set()
    while unexplored := set(sorted(known, key=lambda cut: known[cut] / len(cut[0]))[:_SEARCH_WIDTH]) - explored:
        learn([neighbour for cut in unexplored for neighbour in neighbours(cut)])
        explored |= unexplored
    best = min(known, key=lambda cut: known[cut] / len(cut[0]))
    return MinimumCut(best, _cheapest(joint_MM, [best], precision).phi, known)


def _cheapest(joint_MM: Tensor, cuts: list[Cut], precision: Precision) -> MinimumCut:
    phi_C, b_Cnn = phi_of_cuts(joint_MM, cuts, precision)
    best = int((phi_C / torch.tensor([len(first) for first, _ in cuts], device=phi_C.device)).argmin())
    phi = phi_of_fit(joint_MM, b_Cnn[best : best + 1])[0]
    return MinimumCut(cuts[best], phi, dict(zip(cuts, phi_C.tolist(), strict=True)))


def labels_of_cuts(cuts: Sequence[Cut], channels_per_unit: int) -> Tensor:
    """The part, 0 or 1, of every channel under every cut of the units: (C, n)."""
    num_units = len(cuts[0][0]) + len(cuts[0][1])
    labels_CK = torch.ones(len(cuts), num_units, dtype=torch.int64)
    for row, (first, _) in enumerate(cuts):
        labels_CK[row, list(first)] = 0
    return labels_CK.repeat_interleave(channels_per_unit, dim=1)


def labels_of_channels(cut: Sequence[Sequence[int]], num_channels: int) -> Tensor:
    """The part of every channel, (n,). Raises ValueError if the cut does not name each channel once in two parts."""
    parts = [[int(channel) for channel in part] for part in cut]
    if len(parts) != 2 or not all(parts) or sorted(parts[0] + parts[1]) != list(range(num_channels)):
        raise ValueError(f"cut={parts}: two non-empty lists must together name each channel 0..{num_channels - 1} once")
    return labels_of_cuts([make_cut(parts[0], num_channels)], 1)[0]


def as_joint_covariance(joint_covariance: Any) -> Tensor:
    """Check and copy a joint covariance: detached (2n, 2n) float64 tensor on the CPU. Raises ValueError, see phi_g."""
    if isinstance(joint_covariance, Tensor):
        joint_MM = joint_covariance.detach().to("cpu", torch.float64)
    else:
        joint_MM = torch.from_numpy(np.array(joint_covariance, dtype=np.float64))
    shape = tuple(joint_MM.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] % 2 or shape[0] < 4:
        raise ValueError(f"joint_covariance has shape {shape}: give the (2n, 2n) covariance of (x_t, x_t+lag), n >= 2")
    if not bool(torch.isfinite(joint_MM).all()):
        raise ValueError("joint_covariance holds NaN or infinity: remove the samples that are not finite")
    asymmetry = float((joint_MM - joint_MM.mT).abs().max())
    if asymmetry > 1e-6 * float(joint_MM.abs().max()):
        raise ValueError(f"joint_covariance differs from its transpose by {asymmetry:.3g}: give a symmetric matrix")
    joint_MM = (joint_MM + joint_MM.mT) / 2
    if int(torch.linalg.cholesky_ex(joint_MM).info):
        smallest = float(torch.linalg.eigvalsh(joint_MM)[0])
        raise ValueError(
            f"joint_covariance is not positive definite (smallest eigenvalue {smallest:.3g}): "
            "drop redundant channels, use more samples, or shrink it towards the identity"
        )
    return joint_MM


def _parts(labels_n: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nonzero(labels_n == 0).flatten(), torch.nonzero(labels_n == 1).flatten()


def _mutual_information(joint_MM: Tensor, sources: Tensor, targets: Tensor) -> float:
    """I(x_sources; y_targets), nats."""
    targets = targets + joint_MM.shape[0] // 2
    both = torch.cat([sources, targets])
    return 0.5 * (_logdet_of(joint_MM, sources) + _logdet_of(joint_MM, targets) - _logdet_of(joint_MM, both))


def _conditional_logdet(joint_MM: Tensor, part: Tensor) -> float:
    """ln det of the covariance of y_part given x_part."""
    return _logdet_of(joint_MM, torch.cat([part, part + joint_MM.shape[0] // 2])) - _logdet_of(joint_MM, part)


def _logdet_of(joint_MM: Tensor, channels: Tensor) -> float:
    index = channels.numpy()
    return float(np.linalg.slogdet(joint_MM.numpy()[np.ix_(index, index)])[1])  # numpy: see fit_disconnected
