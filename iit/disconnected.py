"""Fit the disconnected model: the block-diagonal regression B of y on x that lies closest to the full one.

min over block-diagonal B of 1/2 { ln det[S + (A-B) S_x (A-B)^T] - ln det S }, for many cuts at once.
The same B is the maximum-likelihood fit of Zellner's seemingly unrelated regressions. No gradient passes through the
fit: by the envelope theorem the caller differentiates the expression with B held constant.

Shape suffixes: C cuts, n channels, h remembered rounds, p = n * n.
"""

import torch
from torch import Tensor

from iit.gaussian import logdet, split_joint

ANDERSON_DEPTH = 6


def block_masks(labels_Cn: Tensor) -> Tensor:
    """From the part of each channel (C, n) to the 0/1 masks of the block-diagonal entries (C, n, n), float64."""
    return (labels_Cn[:, :, None] == labels_Cn[:, None, :]).double()


def residual_covariance(joint_MM: Tensor, b_Cnn: Tensor) -> Tensor:
    """Covariance of y - B x for each B: (C, n, n). Equals S + (A-B) S_x (A-B)^T, without forming A."""
    s_x, s_y, s_yx = split_joint(joint_MM)
    cross_Cnn = b_Cnn @ s_yx.mT
    residual_Cnn: Tensor = s_y - cross_Cnn - cross_Cnn.mT + b_Cnn @ s_x @ b_Cnn.mT
    return residual_Cnn


@torch.no_grad()
def fit_disconnected(joint_MM: Tensor, masks_Cnn: Tensor, *, tolerance: float, max_rounds: int) -> Tensor:
    """Fit B for every mask: (C, n, n), zero outside its blocks.

    Starts at the blockwise least-squares fit; each round takes, for every part s and its complement o,
    B_s <- B_s + [R_ss - G R_os] S_x,ss^-1 with G = S'_so S'_oo^-1 and R = (A - B) S_x, for both parts at once: with
    P = S'^-1 that is B + blocks(P)^-1 blocks(P R) blocks(S_x)^-1. Rounds are extrapolated by Anderson's method
    (Walker & Ni, SIAM J. Numer. Anal. 49:1715, 2011), kept only where that is lower than the plain round: on
    strongly coupled systems plain rounds need hundreds. Ends when no cut fell by more than tolerance (nats of 1/2 ln
    det) in a round.

    joint_MM: one covariance for all masks, or (C, 2n, 2n), one for each.
    """
    s_x, _, s_yx = split_joint(joint_MM)
    inverse_x_Cnn = torch.linalg.inv(masks_Cnn * s_x)
    b_Cnn: Tensor = (masks_Cnn * s_yx) @ inverse_x_Cnn
    residual_Cnn = residual_covariance(joint_MM, b_Cnn)
    value_C = 0.5 * logdet(residual_Cnn)
    plains: list[Tensor] = []
    steps: list[Tensor] = []
    for _ in range(max_rounds):
        precision_Cnn = torch.cholesky_inverse(torch.linalg.cholesky(residual_Cnn))
        gap_Cnn = masks_Cnn * (precision_Cnn @ (s_yx - b_Cnn @ s_x))
        step_Cnn = torch.linalg.solve(masks_Cnn * precision_Cnn, gap_Cnn) @ inverse_x_Cnn
        plains = [*plains, b_Cnn + step_Cnn][-ANDERSON_DEPTH:]
        steps = [*steps, step_Cnn][-ANDERSON_DEPTH:]
        b_Cnn, residual_Cnn, new_value_C = _lower_of(joint_MM, plains[-1], _extrapolate(plains, steps))
        fall_C, value_C = value_C - new_value_C, new_value_C
        if float(fall_C.max()) <= tolerance:
            break
    return b_Cnn


def _extrapolate(plains: list[Tensor], steps: list[Tensor]) -> Tensor | None:
    """Anderson's combination of the remembered rounds: the one whose step is smallest in the least-squares sense."""
    if len(steps) < 2:
        return None
    steps_hCp, plains_hCp = torch.stack(steps).flatten(2), torch.stack(plains).flatten(2)
    step_change_Cph, plain_change_Cph = steps_hCp.diff(dim=0).permute(1, 2, 0), plains_hCp.diff(dim=0).permute(1, 2, 0)
    gram_Chh = step_change_Cph.mT @ step_change_Cph
    # The ridge keeps the system solvable once the changes are parallel or zero; a bad answer is refused by _lower_of.
    ridge_C = 1e-12 * gram_Chh.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-280
    identity_hh = torch.eye(gram_Chh.shape[-1], dtype=torch.float64, device=gram_Chh.device)
    gram_Chh = gram_Chh + ridge_C[:, None, None] * identity_hh
    weights_Ch1 = torch.linalg.solve(gram_Chh, step_change_Cph.mT @ steps_hCp[-1].unsqueeze(-1))
    bold_Cnn: Tensor = plains[-1] - (plain_change_Cph @ weights_Ch1).reshape(plains[-1].shape)
    return bold_Cnn


def _lower_of(joint_MM: Tensor, plain_Cnn: Tensor, bold_Cnn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each cut the better of two candidates, with its residual covariance and its value."""
    residual_Cnn = residual_covariance(joint_MM, plain_Cnn)
    value_C = 0.5 * logdet(residual_Cnn)
    if bold_Cnn is None:
        return plain_Cnn, residual_Cnn, value_C
    bold_residual_Cnn = residual_covariance(joint_MM, bold_Cnn)
    factor_Cnn, failed_C = torch.linalg.cholesky_ex(bold_residual_Cnn)
    bold_value_C = factor_Cnn.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    better_C = (failed_C == 0) & (bold_value_C < value_C)
    choose = better_C[:, None, None]
    return (
        torch.where(choose, bold_Cnn, plain_Cnn),
        torch.where(choose, bold_residual_Cnn, residual_Cnn),
        torch.where(better_C, bold_value_C, value_C),
    )
