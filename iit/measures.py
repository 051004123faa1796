"""Measures of integration of a linear-Gaussian system, from the joint covariance of (x_t, x_{t+lag}). All in nats.

Nothing here knows where the covariance came from. Shape suffixes: C cuts, n channels, M = 2n.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.disconnected import block_masks, fit_disconnected, residual_covariance
from iit.gaussian import logdet, split_joint
from iit.partitions import Cut, bipartitions

EXACT = {"tolerance": 1e-14, "max_rounds": 2000}
QUICK = {"tolerance": 1e-7, "max_rounds": 30}  # for training: far below the null mean of any batch


def phi_g(joint_covariance: Any, cut: Sequence[Sequence[int]]) -> float:
    """Geometric integrated information Phi_G across one cut, in nats.

    joint_covariance: the (2n, 2n) covariance of (x_t, x_{t+lag}), numpy array, torch tensor or nested lists.
    cut: two lists of channel indices, which together name each of 0..n-1 once.
    Raises ValueError where the matrix is not square, symmetric and positive definite, or the cut is not one.
    Source: Oizumi, Tsuchiya & Amari, PNAS 113:14817 (2016).
    """
    joint_MM = as_joint_covariance(joint_covariance)
    labels_1n = _labels_of_channels(cut, joint_MM.shape[0] // 2)
    b_1nn = fit_disconnected(joint_MM, block_masks(labels_1n), tolerance=1e-14, max_rounds=2000)
    return max(0.0, float(phi_of_fit(joint_MM, b_1nn)[0]))


def phi_of_fit(joint_MM: Tensor, b_Cnn: Tensor) -> Tensor:
    """Phi of fitted disconnected models, (C,), differentiable in the covariance with B held constant."""
    s_x, _, _ = split_joint(joint_MM)
    # ln det S of the full model = ln det joint - ln det S_x
    return 0.5 * (logdet(residual_covariance(joint_MM, b_Cnn)) + logdet(s_x) - logdet(joint_MM))


def labels_of_cuts(cuts: Sequence[Cut], channels_per_unit: int) -> Tensor:
    """The part, 0 or 1, of every channel under every cut of the units: (C, n)."""
    num_units = len(cuts[0][0]) + len(cuts[0][1])
    labels_CK = torch.ones(len(cuts), num_units, dtype=torch.int64)
    for row, (first, _) in enumerate(cuts):
        labels_CK[row, list(first)] = 0
    return labels_CK.repeat_interleave(channels_per_unit, dim=1)


def minimum_cut(
    joint_MM: Tensor, num_units: int, *, tolerance: float = 1e-14, max_rounds: int = 2000
) -> tuple[Cut, Tensor, dict[Cut, float]]:
    """The cut with the smallest Phi(cut) / d1, its Phi (0-dim, differentiable), and Phi of every cut that was tried."""
    channels_per_unit = joint_MM.shape[0] // 2 // num_units
    cuts = list(bipartitions(num_units))
    masks_Cnn = block_masks(labels_of_cuts(cuts, channels_per_unit))
    b_Cnn = fit_disconnected(joint_MM.detach(), masks_Cnn, tolerance=tolerance, max_rounds=max_rounds)
    phi_C = phi_of_fit(joint_MM.detach(), b_Cnn)
    smaller_C = torch.tensor([len(first) * channels_per_unit for first, _ in cuts])
    best = int((phi_C / smaller_C).argmin())
    return cuts[best], phi_of_fit(joint_MM, b_Cnn[best : best + 1])[0], dict(zip(cuts, phi_C.tolist(), strict=True))


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


def _labels_of_channels(cut: Sequence[Sequence[int]], num_channels: int) -> Tensor:
    """The part of every channel, (1, n). Raises ValueError if the cut does not name each channel once in two parts."""
    parts = [[int(channel) for channel in part] for part in cut]
    if len(parts) != 2 or not all(parts) or sorted(parts[0] + parts[1]) != list(range(num_channels)):
        raise ValueError(
            f"cut={parts}: give two non-empty lists that together name each channel 0..{num_channels - 1} once"
        )
    labels_1n = torch.ones(1, num_channels, dtype=torch.int64)
    labels_1n[0, parts[0]] = 0
    return labels_1n
