"""Measure Phi of hidden states, with its null beside it: from unit outputs to one record.

Joins the other rooms; holds no mathematics of its own. Shape suffixes: B sequences, T positions, K units, D channels
of a unit, n = K * R channels of the projected state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from iit.measures import (
    QUICK,
    minimum_cut,
    phi_of_cuts,
    phi_r,
    stochastic_interaction,
    time_delayed_mutual_information,
)
from iit.nulls import chi_square_p_value, null_mean, surrogate_p_value, surrogate_values
from iit.partitions import MAX_EXHAUSTIVE_UNITS, Cut

MIN_PAIRS = 80  # below this the null mean of 4 units at rank 1 is a twentieth of a nat: no Phi is reported


@dataclass(frozen=True)
class Phi:
    """Phi of one layer over one body of text. All but phi01, p-values and ranks in nats.

    phi is never to be reported without null_mean. surrogate_* are None where no surrogates were asked for.
    """

    phi: float
    phi01: float
    null_mean: float
    p_value: float
    num_pairs: int
    num_units: int
    rank: int
    lag: int
    cut: Cut
    phi_of_cuts: dict[Cut, float]
    phi_r: float
    time_delayed_mutual_information: float
    stochastic_interaction: float
    effective_rank: float
    surrogate_p_value: float | None = None
    surrogate_mean: float | None = None
    surrogate_quantile_95: float | None = None

    @property
    def num_channels(self) -> int:
        return self.num_units * self.rank


def project_units(heads_BTKD: Tensor, rank: int, seed: int) -> Tensor:
    """Project every unit by its own matrix, fixed by the seed: (B, T, K * rank). Raises ValueError on a rank too
    large.
    """
    generator = torch.Generator().manual_seed(seed)
    num_units, width = heads_BTKD.shape[-2:]
    return project(heads_BTKD, directions(random_projections(num_units, width, rank, generator)))


def measure(
    heads: Tensor | Sequence[Tensor],
    *,
    rank: int = 1,
    lag: int = 1,
    num_dropped: int = 8,
    seed: int = 0,
    num_surrogates: int = 0,
) -> Phi:
    """Measure Phi of unit outputs, (B, T, K, D) or a list of them to be pooled. The seed fixes projections and
    surrogates.

    Raises ValueError where fewer than MIN_PAIRS pairs are left, or a shape or setting does not fit.
    """
    batches = [heads] if isinstance(heads, Tensor) else list(heads)
    for heads_BTKD in batches:
        if heads_BTKD.ndim != 4 or heads_BTKD.shape[2] < 2:
            raise ValueError(
                f"heads have shape {tuple(heads_BTKD.shape)}: give (batch, positions, >= 2 units, channels)"
            )
    if not batches:
        raise ValueError("heads=[]: give at least one (batch, positions, units, channels) tensor")
    states = [project_units(heads_BTKD, rank, seed) for heads_BTKD in batches]
    return measure_states(
        states, batches[0].shape[2], lag=lag, num_dropped=num_dropped, seed=seed, num_surrogates=num_surrogates
    )


@torch.no_grad()
def measure_states(
    states: Sequence[Tensor],
    num_units: int,
    *,
    lag: int = 1,
    num_dropped: int = 8,
    seed: int = 0,
    num_surrogates: int = 0,
) -> Phi:
    """As measure, of states that are projected already: (B, T, n) each, the units in equal groups of channels."""
    covariance_MM, num_pairs = _pooled_covariance(states, lag, num_dropped)
    if num_pairs < MIN_PAIRS:
        raise ValueError(f"num_pairs={num_pairs}: Phi is not reported below {MIN_PAIRS} pairs; use more text")
    joint_MM = shrink(covariance_MM, num_pairs)
    found = minimum_cut(joint_MM, num_units)
    num_channels = joint_MM.shape[0] // 2
    rank = num_channels // num_units
    channels = (len(found.cut[0]) * rank, len(found.cut[1]) * rank)
    channel_cut = [[unit * rank + r for unit in part for r in range(rank)] for part in found.cut]
    phi = max(0.0, float(found.phi))
    record = Phi(
        phi=phi,
        phi01=-math.expm1(-phi / channels[0]),
        null_mean=null_mean(channels, num_pairs),
        p_value=chi_square_p_value(phi, channels, num_pairs),
        num_pairs=num_pairs,
        num_units=num_units,
        rank=rank,
        lag=lag,
        cut=found.cut,
        phi_of_cuts=found.phi_of_cuts,
        phi_r=phi_r(joint_MM, channel_cut),
        time_delayed_mutual_information=time_delayed_mutual_information(joint_MM),
        stochastic_interaction=stochastic_interaction(joint_MM, channel_cut),
        effective_rank=effective_rank(covariance_MM[:num_channels, :num_channels]),
    )
    return _with_surrogates(record, states, num_dropped, seed, num_surrogates) if num_surrogates else record


def _pooled_covariance(states: Sequence[Tensor], lag: int, num_dropped: int) -> tuple[Tensor, int]:
    """Standardised covariance of all pairs, on the CPU, and their number."""
    pairs = [state_pairs(states_BTn, lag, num_dropped) for states_BTn in states]
    x_Nn, y_Nn = (torch.cat([part.flatten(0, 1) for part in side]) for side in zip(*pairs, strict=True))
    return standardised_covariance(x_Nn, y_Nn).cpu(), x_Nn.shape[0]


def _with_surrogates(record: Phi, states: Sequence[Tensor], num_dropped: int, seed: int, num_surrogates: int) -> Phi:
    """Add the time-shift null. It compares Phi / d1, what the search minimises, and repeats the whole search where
    it can.
    """
    smaller = len(record.cut[0]) * record.rank

    def phi_per_channel(shifted: Sequence[Tensor]) -> float:
        covariance_MM, num_pairs = _pooled_covariance(shifted, record.lag, 0)
        joint_MM = shrink(covariance_MM, num_pairs)
        if record.num_units > MAX_EXHAUSTIVE_UNITS:  # a search for every surrogate would take minutes
            return float(phi_of_cuts(joint_MM, [record.cut], QUICK)[0][0]) / smaller
        found = minimum_cut(joint_MM, record.num_units)
        return float(found.phi) / (len(found.cut[0]) * record.rank)

    generator = torch.Generator().manual_seed(seed)
    kept = [states_BTn[:, num_dropped:] for states_BTn in states]
    values_S = surrogate_values(kept, record.num_units, phi_per_channel, num_surrogates, generator)
    return replace(
        record,
        surrogate_p_value=surrogate_p_value(record.phi / smaller, values_S),
        surrogate_mean=float(values_S.mean()) * smaller,
        surrogate_quantile_95=float(values_S.quantile(0.95)) * smaller,
    )
