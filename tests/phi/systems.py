"""Linear-Gaussian systems for tests: x_{t+1} = A x_t + noise."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def stationary_joint(a: ArrayLike, noise: ArrayLike) -> Matrix:
    """Covariance of (x_t, x_{t+1}) of the stable VAR(1) with transition a and noise covariance: (2n, 2n)."""
    a_nn, noise_nn = np.asarray(a, float), np.asarray(noise, float)
    size = len(a_nn)
    lyapunov = np.eye(size * size) - np.kron(a_nn, a_nn)
    s_nn = np.linalg.solve(lyapunov, noise_nn.ravel()).reshape(size, size)
    s_nn = (s_nn + s_nn.T) / 2
    return np.block([[s_nn, s_nn @ a_nn.T], [a_nn @ s_nn, s_nn]])


def random_system(size: int, seed: int, radius: float = 0.7) -> Matrix:
    """Joint covariance of a random stable VAR(1) with correlated noise; radius is that of its transition's spectrum."""
    rng = np.random.default_rng(seed)
    a_nn = rng.normal(size=(size, size))
    a_nn *= radius / np.abs(np.linalg.eigvals(a_nn)).max()
    mix_nn = rng.normal(size=(size, size))
    return stationary_joint(a_nn, mix_nn @ mix_nn.T / size + 0.2 * np.eye(size))


def simulate(a: ArrayLike, noise: ArrayLike, num_steps: int, seed: int, num_burned: int = 100) -> Matrix:
    """One run of the VAR(1): (num_steps, n)."""
    a_nn = np.asarray(a, float)
    rng = np.random.default_rng(seed)
    noise_Tn = rng.normal(size=(num_steps + num_burned, len(a_nn))) @ np.linalg.cholesky(np.asarray(noise, float)).T
    x_Tn = np.zeros_like(noise_Tn)
    for t in range(1, len(x_Tn)):
        x_Tn[t] = a_nn @ x_Tn[t - 1] + noise_Tn[t]
    return x_Tn[num_burned:]
