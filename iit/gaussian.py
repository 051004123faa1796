"""From states over time to one joint covariance: projection, pairing, standardising, shrinking.

Pure tensor arithmetic, differentiable, float64 from the covariance on. Knows nothing of cuts, models or text.

Shape suffixes: B batch, T positions, K units, D channels of a unit, R projected channels of a unit, N pairs,
n = K * R channels of the state, M = 2n channels of (x, y).
"""

from typing import Any

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-4  # times the median variance: a dead channel must not be blown up to unit variance
SHRINKAGE_RANGE = (1e-3, 0.5)
_TINY_VARIANCE = 1e-30


def random_projections(num_units: int, width: int, rank: int, generator: torch.Generator) -> Tensor:
    """Draw one orthonormal matrix per unit, uniformly: (num_units, width, rank), float32, on the generator's device.

    Raises ValueError if rank is not within 1..width.
    """
    if not 1 <= rank <= width:
        raise ValueError(f"rank={rank}: a unit has {width} channels; choose a rank from 1 to {width}")
    normal_KDR = torch.randn(num_units, width, rank, generator=generator, device=generator.device)
    q_KDR, r_KRR = torch.linalg.qr(normal_KDR)
    # QR alone is not uniform: LAPACK fixes the signs of the reflectors, so the sign of R's diagonal is given back to Q.
    projections_KDR: Tensor = q_KDR * torch.sign(torch.diagonal(r_KRR, dim1=-2, dim2=-1))[:, None, :]
    return projections_KDR


def directions(projections_KDR: Tensor) -> Tensor:
    """The units' projections as one block-diagonal matrix: (H = K * D, n = K * R), orthonormal columns."""
    directions_Hn: Tensor = torch.block_diag(*projections_KDR)  # type: ignore[no-untyped-call]
    return directions_Hn


def project(heads_BTKD: Tensor, directions_Hn: Tensor) -> Tensor:
    """Project each unit by its own matrix: (B, T, K, D) -> (B, T, n), float32 at least.

    One product for all units: K times the arithmetic, yet faster than K strided products.
    """
    dtype = torch.promote_types(heads_BTKD.dtype, torch.float32)
    directions_Hn = directions_Hn.to(heads_BTKD.device, dtype)
    # One sequence at a time: its float32 copy stays in the cache, that of a whole batch costs more than the product.
    return torch.cat([heads_1TH.to(dtype) @ directions_Hn for heads_1TH in torch.split(heads_BTKD.flatten(2), 1)])


def state_pairs(states_BTn: Tensor, lag: int, num_dropped: int) -> tuple[Tensor, Tensor]:
    """x = z_t and y = z_{t+lag} of all positions after the first num_dropped: two (B, T - num_dropped - lag, n)
    tensors.

    Raises ValueError if lag < 1, num_dropped < 0, or a sequence is too short to give a pair.
    """
    if lag < 1:
        raise ValueError(f"lag={lag}: use a lag of at least 1 position")
    if num_dropped < 0:
        raise ValueError(f"num_dropped={num_dropped}: use 0 or more positions")
    num_positions = states_BTn.shape[1]
    if num_positions - num_dropped <= lag:
        raise ValueError(
            f"sequence length {num_positions}: after num_dropped={num_dropped} positions no pair at lag={lag} is left; "
            f"use sequences of at least {num_dropped + lag + 1} positions"
        )
    kept_BTn = states_BTn[:, num_dropped:]
    return kept_BTn[:, :-lag], kept_BTn[:, lag:]


def oas_intensity(covariance_MM: Tensor, num_samples: int) -> float:
    """Shrinkage intensity of the oracle approximating shrinkage estimator, clipped to SHRINKAGE_RANGE.

    Source: Chen, Wiesel, Eldar & Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE Transactions on
    Signal Processing 58:5016 (2010), equation 23.
    """
    size = covariance_MM.shape[0]
    trace_of_square = covariance_MM.square().sum().item()
    square_of_trace = covariance_MM.diagonal().sum().item() ** 2
    numerator = (1 - 2 / size) * trace_of_square + square_of_trace
    denominator = (num_samples + 1 - 2 / size) * (trace_of_square - square_of_trace / size)
    intensity = 1.0 if denominator <= 0 else numerator / denominator
    return min(max(intensity, SHRINKAGE_RANGE[0]), SHRINKAGE_RANGE[1])


def standardised_covariance(x_Nn: Tensor, y_Nn: Tensor) -> Tensor:
    """Covariance of (x, y) after each channel is divided by its standard deviation: (2n, 2n), float64, differentiable.

    The variance is floored at VARIANCE_FLOOR times the median variance. Raises ValueError where a state is not finite.
    """
    raw_MM: Tensor = _RawCovariance.apply(x_Nn, y_Nn)  # type: ignore[no-untyped-call]
    if not bool(torch.isfinite(raw_MM.detach()).all()):
        raise ValueError("states hold NaN or infinity: the model has diverged, or its weights are damaged")
    return standardise(raw_MM)


class _RawCovariance(torch.autograd.Function):
    """Covariance of (x, y), float64. Its own backward is one product; autograd's takes two and more passes."""

    @staticmethod
    def forward(ctx: Any, x_Nn: Tensor, y_Nn: Tensor) -> Tensor:
        centred_NM = torch.cat([x_Nn, y_Nn], dim=1).double()
        centred_NM -= centred_NM.mean(dim=0)
        ctx.save_for_backward(centred_NM.to(x_Nn.dtype))
        return centred_NM.mT @ centred_NM / len(centred_NM)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        (centred_NM,) = ctx.saved_tensors
        # The part through the mean is zero: centred columns sum to nothing.
        gradient_NM = centred_NM @ ((gradients[0] + gradients[0].mT) / len(centred_NM)).to(centred_NM.dtype)
        x_Nn, y_Nn = gradient_NM.chunk(2, dim=1)
        return x_Nn, y_Nn


def standardise(raw_MM: Tensor) -> Tensor:
    """Divide a covariance (..., M, M) by its standard deviations, floored as above."""
    variance_M = raw_MM.diagonal(dim1=-2, dim2=-1)
    floor = (VARIANCE_FLOOR * variance_M.detach().median(dim=-1, keepdim=True).values).clamp_min(_TINY_VARIANCE)
    scale_M = torch.maximum(variance_M, floor).rsqrt()
    covariance_MM: Tensor = raw_MM * scale_M[..., :, None] * scale_M[..., None, :]
    return covariance_MM


def shrink(covariance_MM: Tensor, num_samples: int) -> Tensor:
    """C <- (1 - rho) C + rho I with the OAS intensity rho, which is a constant for the gradient: positive definite."""
    intensity = oas_intensity(covariance_MM.detach(), num_samples)
    identity_MM = torch.eye(covariance_MM.shape[0], dtype=torch.float64, device=covariance_MM.device)
    return (1 - intensity) * covariance_MM + intensity * identity_MM


def joint_covariance(x_Nn: Tensor, y_Nn: Tensor) -> Tensor:
    """Standardised and shrunk covariance of N pairs (x, y): (2n, 2n), float64, positive definite, differentiable."""
    return shrink(standardised_covariance(x_Nn, y_Nn), x_Nn.shape[0])


def effective_rank(covariance_nn: Tensor) -> float:
    """Number of dimensions the state really uses, 1..n: exp of the entropy of the normalised eigenvalues.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    eigenvalues_n = torch.linalg.eigvalsh(covariance_nn.detach().double()).clamp_min(0)
    shares_n = eigenvalues_n / eigenvalues_n.sum().clamp_min(_TINY_VARIANCE)
    return float(torch.special.entr(shares_n).sum().exp())


def logdet(positive_definite: Tensor) -> Tensor:
    """Natural log-determinant of symmetric positive definite matrices (..., m, m) -> (...), by Cholesky."""
    factor = torch.linalg.cholesky(positive_definite)
    values: Tensor = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return values


def split_joint(joint_MM: Any) -> tuple[Any, Any, Any]:
    """Take S_x, S_y and S_yx out of the joint covariance of (x, y), tensor or array, each (..., n, n)."""
    size = joint_MM.shape[-1] // 2
    return joint_MM[..., :size, :size], joint_MM[..., size:, size:], joint_MM[..., size:, :size]
