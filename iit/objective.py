"""The auxiliary objective of training: Phi of one layer's heads as a differentiable term.

loss = cross-entropy - weight * phi01. A caller with weight 0 never builds this, so it trains bit for bit like the plain
model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from iit.gaussian import (
    directions,
    effective_rank,
    project,
    random_projections,
    shrink,
    standardised_covariance,
    state_pairs,
)
from iit.measures import QUICK, minimum_cut, phi_r_of_parts
from iit.nulls import chi_square_p_value, null_mean
from iit.partitions import Cut


@dataclass(frozen=True)
class PhiTerm:
    """Phi of one batch. phi in nats and phi01 in [0, 1) are 0-dim, differentiable; the rest are plain numbers.

    covariance_MM: standardised covariance of the pairs that phi was taken of, not shrunk, detached, on the CPU.
    """

    phi: Tensor
    phi01: Tensor
    null_mean: float
    p_value: float
    num_pairs: int
    cut: Cut
    covariance_MM: Tensor

    def phi_r(self) -> float:
        """Phi^R of the same pairs across the same cut, nats."""
        rank = self.covariance_MM.shape[0] // 2 // (len(self.cut[0]) + len(self.cut[1]))
        parts = [torch.tensor([unit * rank + r for unit in part for r in range(rank)]) for part in self.cut]
        return phi_r_of_parts(shrink(self.covariance_MM, self.num_pairs), parts)

    def effective_rank(self) -> float:
        """Dimensions that the states x of these pairs really use, from 1 to their number of channels."""
        num_channels = self.covariance_MM.shape[0] // 2
        return effective_rank(self.covariance_MM[:num_channels, :num_channels])


class PhiObjective:
    """Phi of a batch of head outputs, at the minimum information partition of the heads.

    rank: channels each head is projected to; lag: positions between x and y; num_dropped: first positions left out.
    sham: turn y in time by a random far offset, for the arm with the same gradient plumbing and no integration.
    Raises ValueError on settings below their range.
    """

    def __init__(self, rank: int = 4, lag: int = 1, num_dropped: int = 8, *, sham: bool = False) -> None:
        for name, value, least in (("rank", rank, 1), ("lag", lag, 1), ("num_dropped", num_dropped, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: use {least} or more")
        self.rank = rank
        self.lag = lag
        self.num_dropped = num_dropped
        self.sham = sham

    def __call__(self, heads_BTKD: Tensor, generator: torch.Generator) -> PhiTerm:
        """Redraw the projections from generator (torch's global generator is never touched) and evaluate Phi.

        heads_BTKD: outputs of K >= 2 heads, any floating dtype; eager or out of a compiled model, under autocast or
        not. Raises ValueError where the shape does not fit, no pair is left, or a value is not finite.
        """
        states_BTn, _ = self.project(heads_BTKD, generator)
        return self.of_states(states_BTn, generator)

    def project(self, heads_BTKD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First half of a call: the states, (B, T, n = K * rank), and the newly drawn directions they are taken along,
        (K * D, n), orthonormal columns: gradient at the heads = gradient at the states @ directions.T. Errors as above.
        """
        if heads_BTKD.ndim != 4 or heads_BTKD.shape[2] < 2:
            raise ValueError(
                f"heads have shape {tuple(heads_BTKD.shape)}: give (batch, positions, >= 2 units, channels)"
            )
        num_units, width = heads_BTKD.shape[2:]
        with torch.autocast(heads_BTKD.device.type, enabled=False):
            directions_Hn = directions(random_projections(num_units, width, self.rank, generator))
            return project(heads_BTKD, directions_Hn), directions_Hn

    def of_states(self, states_BTn: Tensor, generator: torch.Generator) -> PhiTerm:
        """Second half of a call: Phi of projected states. generator: the same again, for the offset of the sham."""
        device = states_BTn.device
        with torch.autocast(device.type, enabled=False):
            x_BTn, y_BTn = state_pairs(states_BTn, self.lag, self.num_dropped)
            if self.sham:
                y_BTn = _turned_in_time(y_BTn, generator)
            x_Nn, y_Nn = x_BTn.flatten(0, 1), y_BTn.flatten(0, 1)
            # The matrices are tiny: on an accelerator, launches would cost more than the trip to the CPU.
            covariance_MM = standardised_covariance(x_Nn, y_Nn).cpu()
            num_pairs = x_Nn.shape[0]
            found = minimum_cut(shrink(covariance_MM, num_pairs), states_BTn.shape[2] // self.rank, QUICK)
        channels = (len(found.cut[0]) * self.rank, len(found.cut[1]) * self.rank)
        return PhiTerm(
            phi=found.phi.to(device),
            phi01=-torch.expm1(-found.phi / channels[0]).to(device),
            null_mean=null_mean(channels, num_pairs),
            p_value=chi_square_p_value(float(found.phi.detach()), channels, num_pairs),
            num_pairs=num_pairs,
            cut=found.cut,
            covariance_MM=covariance_MM.detach(),
        )


def _turned_in_time(y_BTn: Tensor, generator: torch.Generator) -> Tensor:
    """y rolled by between a quarter and three quarters of the sequence, the same for the whole batch."""
    num_positions = y_BTn.shape[1]
    quarter = num_positions // 4
    offset = int(torch.randint(quarter, num_positions - quarter, (), generator=generator, device=generator.device))
    return y_BTn.roll(offset, dims=1)
