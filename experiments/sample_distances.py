"""How far samples of one law are from samples of another."""

import numpy as np
import scipy.optimize
import scipy.spatial.distance
from jaxtyping import Float


def _check(first, second) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"samples must be [N, D] and [M, D], got {first.shape} and {second.shape}."
        )


def earth_movers_distance(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"]
) -> float:
    r"""Returns the earth mover's distance between two sets of as many samples, exactly.

    .. math:: W_1 = \min_\sigma \frac1N \sum_i \lVert x_i - y_{\sigma(i)} \rVert

    Between samples of equal weight and number some best plan is an assignment, which SciPy finds in
    time N^3: a tenth of a second for 1,000. For samples of one law it is not 0, but what N samples
    leave open.

    Args:
      first: samples. [N, D].
      second: as many of the other law. [N, D].

    Returns:
      The distance, in the units of the samples.

    Raises:
      ValueError: the shapes differ.
    """
    _check(first, second)
    if len(first) != len(second):
        raise ValueError(
            f"first and second must be as many, got {len(first)} and {len(second)} samples."
        )
    costs = scipy.spatial.distance.cdist(first, second)
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())


def energy_distance(first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "M D"]) -> float:
    r"""Returns the squared energy distance between two laws, estimated without bias.

    .. math:: D^2 = 2 E \lVert X - Y \rVert - E \lVert X - X' \rVert - E \lVert Y - Y' \rVert

    It is 0 for equal laws only; its estimate may be a little below.

    Args:
      first: samples of X, at least 2. [N, D].
      second: samples of Y, at least 2. [M, D].

    Returns:
      The estimate, in the units of the samples.

    Raises:
      ValueError: the shapes do not fit, or there are too few samples.

    References:
      Szekely and Rizzo, Energy statistics, 2013. https://doi.org/10.1016/j.jspi.2013.03.018
    """
    _check(first, second)
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"there must be at least 2 samples of each, got {len(first)} and {len(second)}."
        )
    between = scipy.spatial.distance.cdist(first, second).mean()
    # Of all pairs of two different samples.
    within = sum(scipy.spatial.distance.pdist(samples).mean() for samples in (first, second))
    return float(2 * between - within)
