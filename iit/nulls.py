"""What Phi would be if there were nothing to find: the chi-square null of independent pairs."""

import torch


def null_mean(channels: tuple[int, int], num_pairs: int) -> float:
    """Mean of the Phi estimate, nats, where the cut removes nothing and pairs are near independent: d1 d2 / N."""
    return channels[0] * channels[1] / num_pairs


def chi_square_p_value(phi: float, channels: tuple[int, int], num_pairs: int) -> float:
    """Probability of a Phi estimate this large under the null: 2 N Phi ~ chi2(2 d1 d2)."""
    half_freedom = torch.tensor(float(channels[0] * channels[1]), dtype=torch.float64)
    half_statistic = torch.tensor(max(0.0, num_pairs * phi), dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, half_statistic))
