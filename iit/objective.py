"""The auxiliary objective of training: Phi of one layer's heads as a differentiable term.

loss = cross-entropy - weight * phi01. A caller with weight 0 never builds this, so it trains bit for bit like the plain
model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from iit.gaussian import joint_covariance, project, random_projections, state_pairs
from iit.measures import minimum_cut
from iit.nulls import chi_square_p_value, null_mean
from iit.partitions import Cut


@dataclass(frozen=True)
class PhiTerm:
    """Phi of one batch. phi in nats and phi01 in [0, 1) are 0-dim, differentiable; the rest are plain numbers."""

    phi: Tensor
    phi01: Tensor
    null_mean: float
    p_value: float
    num_pairs: int
    cut: Cut


class PhiObjective:
    """Phi of a batch of head outputs, at the minimum information partition of the heads.

    rank: channels each head is projected to; lag: positions between x and y; num_dropped: first positions left out.
    """

    def __init__(self, rank: int = 4, lag: int = 1, num_dropped: int = 8) -> None:
        self.rank = rank
        self.lag = lag
        self.num_dropped = num_dropped

    def __call__(self, heads_BTKD: Tensor, generator: torch.Generator) -> PhiTerm:
        """Redraw the projections from generator (torch's global generator is never touched) and evaluate Phi.

        heads_BTKD: K >= 2 heads' outputs, any floating dtype. Raises ValueError where no pair is left or the rank is too
        large.
        """
        if heads_BTKD.ndim != 4 or heads_BTKD.shape[2] < 2:
            raise ValueError(
                f"heads have shape {tuple(heads_BTKD.shape)}: give (batch, positions, at least 2 heads, channels)"
            )
        num_units, width = heads_BTKD.shape[2:]
        with torch.autocast(heads_BTKD.device.type, enabled=False):
            projections_KDR = random_projections(num_units, width, self.rank, generator)
            x_Nn, y_Nn = state_pairs(project(heads_BTKD, projections_KDR), self.lag, self.num_dropped)
            # The matrices are tiny: on an accelerator, launches would cost more than the trip to the CPU.
            joint_MM = joint_covariance(x_Nn, y_Nn).cpu()
            cut, phi, _ = minimum_cut(joint_MM, num_units, tolerance=1e-7, max_rounds=30)
        channels = (len(cut[0]) * self.rank, len(cut[1]) * self.rank)
        value, num_pairs = float(phi.detach()), x_Nn.shape[0]
        return PhiTerm(
            phi=phi.to(heads_BTKD.device),
            phi01=-torch.expm1(-phi / channels[0]).to(heads_BTKD.device),
            null_mean=null_mean(channels, num_pairs),
            p_value=chi_square_p_value(value, channels, num_pairs),
            num_pairs=num_pairs,
            cut=cut,
        )
