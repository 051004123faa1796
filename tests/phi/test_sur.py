"""Phi_G is the likelihood ratio of seemingly unrelated regressions: an independent implementation must agree."""

import math

import numpy as np
import pytest

from iit import phi_g
from tests.phi.systems import simulate

SUR = pytest.importorskip("linearmodels.system", reason="linearmodels is not installed: no SUR oracle").SUR


@pytest.mark.filterwarnings("ignore")  # linearmodels warns about pandas' future
@pytest.mark.parametrize(("cut", "seed"), [(([0], [1]), 0), (([0, 2], [1]), 1), (([0, 1], [2, 3]), 2)])
def test_phi_g_equals_half_the_log_likelihood_ratio_of_sur(cut: tuple[list[int], list[int]], seed: int) -> None:
    size = len(cut[0]) + len(cut[1])
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(size, size))
    a *= 0.7 / np.abs(np.linalg.eigvals(a)).max()
    mix = rng.normal(size=(size, size))
    series = simulate(a, mix @ mix.T / size + 0.3 * np.eye(size), 2000, seed)
    x, y = series[:-1] - series[:-1].mean(0), series[1:] - series[1:].mean(0)
    equations = {str(channel): {"dependent": y[:, channel], "exog": x[:, part]} for part in cut for channel in part}
    fit = SUR(equations).fit(method="gls", iterate=True, iter_limit=2000, tol=1e-12, cov_type="unadjusted")
    disconnected = np.asarray(fit.resids)
    full = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    ratio = np.linalg.slogdet(disconnected.T @ disconnected)[1] - np.linalg.slogdet(full.T @ full)[1]
    pairs = np.hstack([x, y])
    assert phi_g(pairs.T @ pairs / len(pairs), cut) == pytest.approx(ratio / 2, abs=1e-6)
    assert math.isfinite(ratio)
    assert ratio > 0.02
