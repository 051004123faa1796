"""Fit the disconnected model: the block-diagonal regression B of y on x that lies closest to the full one.

min over block-diagonal B of 1/2 { ln det[S + (A-B) S_x (A-B)^T] - ln det S }, for many cuts at once.
The same B is the maximum-likelihood fit of Zellner's seemingly unrelated regressions. No gradient passes through the
fit: by the envelope theorem the caller differentiates the expression with B held constant.

Shape suffixes: C cuts, n channels, h remembered rounds, p = n * n.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iit.gaussian import split_joint

ANDERSON_DEPTH = 6
Array = NDArray[np.float64]
TensorOrArray = TypeVar("TensorOrArray", Tensor, Array)


def block_masks(labels_Cn: Tensor) -> Tensor:
    """From the part of each channel (C, n) to the 0/1 masks of the block-diagonal entries (C, n, n), float64."""
    return (labels_Cn[:, :, None] == labels_Cn[:, None, :]).double()


def residual_covariance(joint_MM: TensorOrArray, b_Cnn: TensorOrArray) -> TensorOrArray:
    """Covariance of y - B x for each B: (C, n, n). Equals S + (A-B) S_x (A-B)^T, without forming A."""
    s_x, s_y, s_yx = split_joint(joint_MM)
    cross_Cnn = b_Cnn @ s_yx.mT
    residual_Cnn: TensorOrArray = s_y - cross_Cnn - cross_Cnn.mT + b_Cnn @ s_x @ b_Cnn.mT
    return residual_Cnn


def fit_disconnected(joint_MM: Tensor, masks_Cnn: Tensor, *, tolerance: float, max_rounds: int) -> Tensor:
    """Fit B for every mask: (C, n, n), zero outside its blocks, on the device of joint_MM. No gradient.

    Starts at the blockwise least-squares fit; each round takes, for every part s and its complement o,
    B_s <- B_s + [R_ss - G R_os] S_x,ss^-1 with G = S'_so S'_oo^-1 and R = (A - B) S_x, for both parts at once: with
    P = S'^-1 that is B + blocks(P)^-1 blocks(P R) blocks(S_x)^-1. Rounds are extrapolated by Anderson's method
    (Walker & Ni, SIAM J. Numer. Anal. 49:1715, 2011), kept only where that is lower than the plain round: on
    strongly coupled systems plain rounds need hundreds. Ends when no cut fell by more than tolerance (nats of 1/2 ln
    det) in a round.

    joint_MM: one covariance for all masks, or (C, 2n, 2n), one for each.
    """
    # numpy: on matrices of this size its calls take half as long as torch's or less.
    joint, masks = joint_MM.detach().cpu().numpy(), masks_Cnn.cpu().numpy()
    return torch.from_numpy(_fit(joint, masks, tolerance, max_rounds)).to(joint_MM.device)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a bold step that overflows is not taken
def _fit(joint_MM: Array, masks_Cnn: Array, tolerance: float, max_rounds: int) -> Array:
    s_x, _, s_yx = split_joint(joint_MM)
    inverse_x_Cnn = np.linalg.inv(masks_Cnn * s_x)
    b_Cnn: Array = (masks_Cnn * s_yx) @ inverse_x_Cnn
    residual_Cnn = residual_covariance(joint_MM, b_Cnn)
    value_C = _value(residual_Cnn)
    plains: list[Array] = []
    steps: list[Array] = []
    for _ in range(max_rounds):
        precision_Cnn = np.linalg.inv(residual_Cnn)
        gap_Cnn = masks_Cnn * (precision_Cnn @ (s_yx - b_Cnn @ s_x))
        step_Cnn = np.linalg.solve(masks_Cnn * precision_Cnn, gap_Cnn) @ inverse_x_Cnn
        plains = [*plains, b_Cnn + step_Cnn][-ANDERSON_DEPTH:]
        steps = [*steps, step_Cnn][-ANDERSON_DEPTH:]
        b_Cnn, residual_Cnn, new_value_C = _lower_of(joint_MM, plains[-1], _extrapolate(plains, steps))
        fall_C, value_C = value_C - new_value_C, new_value_C
        if float(fall_C.max()) <= tolerance:
            break
    return b_Cnn


def _value(residual_Cnn: Array) -> Array:
    """What a fit minimises, up to a constant: 1/2 ln det; infinite where the matrix is not positive."""
    sign_C, logdet_C = np.linalg.slogdet(residual_Cnn)
    return np.where(sign_C > 0, 0.5 * logdet_C, np.inf)


def _extrapolate(plains: list[Array], steps: list[Array]) -> Array | None:
    """Anderson's combination of the remembered rounds: the one whose step is smallest in the least-squares sense."""
    if len(steps) < 2:
        return None
    num_rounds, num_cuts = len(steps), len(steps[0])
    steps_hCp, plains_hCp = (np.stack(each).reshape(num_rounds, num_cuts, -1) for each in (steps, plains))
    step_change_Cph = np.diff(steps_hCp, axis=0).transpose(1, 2, 0)
    plain_change_Cph = np.diff(plains_hCp, axis=0).transpose(1, 2, 0)
    gram_Chh = step_change_Cph.mT @ step_change_Cph
    # The ridge keeps the system solvable once the changes are parallel or zero; a bad answer is refused by _lower_of.
    ridge_C = 1e-12 * np.trace(gram_Chh, axis1=-2, axis2=-1) + 1e-280
    gram_Chh = gram_Chh + ridge_C[:, None, None] * np.eye(num_rounds - 1)
    weights_Ch1 = np.linalg.solve(gram_Chh, step_change_Cph.mT @ steps_hCp[-1][..., None])
    bold_Cnn: Array = plains[-1] - (plain_change_Cph @ weights_Ch1).reshape(plains[-1].shape)
    return bold_Cnn


def _lower_of(joint_MM: Array, plain_Cnn: Array, bold_Cnn: Array | None) -> tuple[Array, Array, Array]:
    """For each cut the better of two candidates, with its residual covariance and its value."""
    residual_Cnn = residual_covariance(joint_MM, plain_Cnn)
    value_C = _value(residual_Cnn)
    if bold_Cnn is None:
        return plain_Cnn, residual_Cnn, value_C
    bold_residual_Cnn = residual_covariance(joint_MM, bold_Cnn)
    bold_value_C = _value(bold_residual_Cnn)
    better_C = bold_value_C < value_C
    choose = better_C[:, None, None]
    return (
        np.where(choose, bold_Cnn, plain_Cnn),
        np.where(choose, bold_residual_Cnn, residual_Cnn),
        np.where(better_C, bold_value_C, value_C),
    )
