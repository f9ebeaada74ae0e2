"""States brought to mean 0 and the same spread in every direction (ZCA whitening, Bell & Sejnowski 1997).

    whitened = (state - mean) W,    W = D^-1 C^-1/2,    C = (1 - a) S + a I

D holds the spread of each number of a state and S the correlations between them. How far S is drawn towards the
identity says Ledoit & Wolf's estimate of a (2004, J. Multivar. Anal. 88), by how many states there are: directions of
which a few states tell little are not blown up. Nor is rounding: a is at least LEAST_SHRINKAGE, since states are kept
in half precision.
"""

import numpy as np
from jaxtyping import Float, Float64

LEAST_SHRINKAGE = 1e-3


def zca(states: Float[np.ndarray, "state dim"]) -> tuple[Float64[np.ndarray, "dim"], Float64[np.ndarray, "dim dim"]]:
    """The mean of `states`, and the W by which they are multiplied once it is taken off.

    A number that never changes becomes 0.
    """
    from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage

    states = states.astype(np.float64)
    mean, spread = states.mean(0), states.std(0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-9 * np.abs(mean))
    standard = (states - mean) * scale
    share = max(LEAST_SHRINKAGE, ledoit_wolf_shrinkage(standard, assume_centered=True))
    correlations = empirical_covariance(standard, assume_centered=True)
    values, vectors = np.linalg.eigh((1 - share) * correlations + share * np.eye(len(correlations)))
    return mean, scale[:, None] * ((vectors / np.sqrt(values)) @ vectors.T)
