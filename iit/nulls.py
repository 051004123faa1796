"""What Phi would be if there were nothing to find, and how far a value of it can be trusted.

Three answers: the chi-square null of independent pairs (free), time-shift surrogates (tokens are autocorrelated, so
claims use these), and a block bootstrap (an interval).

Shape suffixes: B sequences, T positions, n channels of the state, M = 2n, N pairs, S resamples, L blocks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iit.gaussian import shrink, standardise, state_pairs
from iit.measures import QUICK, phi_of_cuts
from iit.partitions import Cut


def null_mean(channels: tuple[int, int], num_pairs: int) -> float:
    """Mean of the Phi estimate, nats, where the cut removes nothing and pairs are near independent: d1 d2 / N."""
    return channels[0] * channels[1] / num_pairs


def chi_square_p_value(phi: float, channels: tuple[int, int], num_pairs: int) -> float:
    """Probability of a Phi estimate this large under that null: 2 N Phi ~ chi2(2 d1 d2).

    The null is that of one cut fixed beforehand; the minimum over cuts lies lower, so the p-value errs to the large
    side.
    """
    half_freedom = torch.tensor(float(channels[0] * channels[1]), dtype=torch.float64)
    half_statistic = torch.tensor(max(0.0, num_pairs * phi), dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, half_statistic))


def shift_units(states_BTn: Tensor, num_units: int, generator: torch.Generator) -> Tensor:
    """One time-shift surrogate: every unit is turned in a circle by its own random offset, in each sequence anew.

    Each unit keeps its own dynamics; what passes between units is destroyed. Offsets stay at least half of T /
    num_units positions apart, so that no two units meet near their true distance.
    Raises ValueError where the sequence has fewer than 4 positions a unit.
    """
    num_sequences, num_positions, num_channels = states_BTn.shape
    spacing = num_positions / num_units
    if spacing < 4:
        raise ValueError(
            f"sequence length {num_positions}: {num_units} units need at least {4 * num_units} positions to shift"
        )
    jitter_BK = torch.rand(num_sequences, num_units, generator=generator) / 2
    order_BK = torch.rand(num_sequences, num_units, generator=generator).argsort(dim=1)
    offsets_BK = ((order_BK + jitter_BK) * spacing).long().to(states_BTn.device)
    positions_T = torch.arange(num_positions, device=states_BTn.device)
    index_BTK = (positions_T[None, :, None] - offsets_BK[:, None, :]) % num_positions
    index_BTn = index_BTK.repeat_interleave(num_channels // num_units, dim=2)
    return states_BTn.gather(1, index_BTn)


def surrogate_values(
    states: Sequence[Tensor],
    num_units: int,
    statistic: Callable[[Sequence[Tensor]], float],
    num_surrogates: int,
    generator: torch.Generator,
) -> Tensor:
    """The statistic of num_surrogates time-shift surrogates of the (B, T, n) states: (S,), float64."""
    values = [
        statistic([shift_units(states_BTn, num_units, generator) for states_BTn in states])
        for _ in range(num_surrogates)
    ]
    return torch.tensor(values, dtype=torch.float64)


def surrogate_p_value(observed: float, surrogates_S: Tensor) -> float:
    """(1 + number of surrogates that reach the observed value) / (1 + number of surrogates): never zero."""
    return (1 + int((surrogates_S >= observed).sum())) / (1 + len(surrogates_S))


def block_bootstrap(
    states: Sequence[Tensor],
    cut: Cut,
    generator: torch.Generator,
    *,
    lag: int = 1,
    num_dropped: int = 8,
    block_length: int = 32,
    num_resamples: int = 200,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of Phi (nats) at a cut fixed beforehand, by resampling blocks of consecutive pairs.

    The basic (reversed-percentile) interval, which takes the estimator's upward bias off, floored at 0.
    states: (B, T, n) each, units in equal groups of channels. Raises ValueError below 20 whole blocks.
    """
    moments_LMM, means_LM = _moments_of_blocks(states, lag, num_dropped, block_length)
    num_blocks = len(moments_LMM)
    if num_blocks < 20:
        raise ValueError(
            f"block_length={block_length}: only {num_blocks} blocks of pairs, at least 20 are needed; use more text"
        )
    draws_SL = torch.randint(num_blocks, (num_resamples, num_blocks), generator=generator)
    weights_SL = torch.zeros(num_resamples, num_blocks, dtype=torch.float64)
    weights_SL.scatter_add_(1, draws_SL, torch.ones_like(weights_SL))
    # Row 0 is the sample itself: the same arithmetic for the estimate and its resamples.
    weights_SL = torch.cat([torch.ones(1, num_blocks, dtype=torch.float64), weights_SL]) / num_blocks
    means_SM = weights_SL @ means_LM
    raw_SMM = torch.einsum("sl,lmk->smk", weights_SL, moments_LMM) - means_SM[:, :, None] * means_SM[:, None, :]
    num_pairs = num_blocks * block_length
    joint_SMM = torch.stack([shrink(covariance_MM, num_pairs) for covariance_MM in standardise(raw_SMM)])
    phi_S, _ = phi_of_cuts(joint_SMM, [cut] * len(joint_SMM), QUICK)
    estimate, resampled_S = float(phi_S[0]), phi_S[1:]
    tail = (1 - confidence) / 2
    low, high = (float(resampled_S.quantile(probability)) for probability in (tail, 1 - tail))
    return max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)


def _moments_of_blocks(
    states: Sequence[Tensor], lag: int, num_dropped: int, block_length: int
) -> tuple[Tensor, Tensor]:
    """Second moments (L, M, M) and means (L, M) of (x, y) over whole blocks of consecutive pairs of one sequence."""
    blocks = []
    for states_BTn in states:
        for states_Tn in states_BTn:
            pairs_NM = torch.cat(state_pairs(states_Tn[None], lag, num_dropped), dim=2)[0].double().cpu()
            whole = len(pairs_NM) // block_length
            blocks.append(pairs_NM[: whole * block_length].view(whole, block_length, -1))
    pairs_LNM = torch.cat(blocks)
    # Centred on the whole first, or the difference of large moments would lose digits.
    pairs_LNM = pairs_LNM - pairs_LNM.mean(dim=(0, 1))
    return pairs_LNM.mT @ pairs_LNM / block_length, pairs_LNM.mean(dim=1)
