"""Statistics of runs over seeds and tasks, by rliable's definitions.

References:
  Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021.
  https://arxiv.org/abs/2108.13264
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Estimate(NamedTuple):
    """A statistic and the interval around it.

    Attributes:
      value: of the data.
      low: lower end.
      high: upper end.
    """

    value: float
    low: float
    high: float


def interquartile_mean(scores: Float[np.ndarray, "..."]) -> float:
    """Returns the mean of the middle half of all scores: a quarter is cut at each end.

    Args:
      scores: of runs, of all seeds and tasks together. Any shape.

    Returns:
      The mean; a quarter is rounded down to whole scores.

    Raises:
      ValueError: there are no scores.
    """
    values = np.sort(np.asarray(scores, np.float64), axis=None)
    if not values.size:
        raise ValueError("scores must not be empty.")
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def bootstrap(
    scores: Float[np.ndarray, "S K"],
    statistic: Callable[[Float[np.ndarray, "S K"]], float] = interquartile_mean,
    *,
    level: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Returns a statistic with its stratified bootstrap interval: seeds are drawn task by task.

    Args:
      scores: seeds by tasks. [S, K].
      statistic: of such an array.
      level: of the percentile interval, in (0, 1).
      num_samples: resamples.
      seed: of the resampling.

    Returns:
      The statistic and its interval.

    Raises:
      ValueError: the scores are no matrix, or the level is out of range.
    """
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be [seeds, tasks], got shape {scores.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    rng = np.random.default_rng(seed)
    seeds, tasks = scores.shape
    drawn = rng.integers(0, seeds, (num_samples, seeds, tasks))
    found = [statistic(np.take_along_axis(scores, rows, axis=0)) for rows in drawn]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(scores), float(low), float(high))


def bootstrap_difference(
    scores: Float[np.ndarray, "S K"],
    other: Float[np.ndarray, "R K"],
    statistic: Callable[[Float[np.ndarray, "..."]], float] = interquartile_mean,
    *,
    level: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Returns the difference of a statistic of two methods, each resampled by itself.

    Args:
      scores: of one method, seeds by tasks. [S, K].
      other: of the other, on the same tasks. [R, K].
      statistic: of such an array.
      level: of the percentile interval, in (0, 1).
      num_samples: resamples.
      seed: of the resampling.

    Returns:
      `statistic(scores) - statistic(other)` and its interval.

    Raises:
      ValueError: the scores are no matrices of the same tasks, or the level is out of range.
    """
    if scores.ndim != 2 or other.ndim != 2 or scores.shape[1] != other.shape[1]:
        raise ValueError(
            f"scores and other must be [seeds, tasks], got {scores.shape} and {other.shape}."
        )
    if not scores.size or not other.size:
        raise ValueError(
            f"scores and other must not be empty, got {scores.shape} and {other.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    rng = np.random.default_rng(seed)

    def resampled(values):
        rows = rng.integers(0, values.shape[0], values.shape)
        return statistic(np.take_along_axis(values, rows, axis=0))

    found = [resampled(scores) - resampled(other) for _ in range(num_samples)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(scores) - statistic(other), float(low), float(high))


def mean_interval(
    values: Float[np.ndarray, "S *K"], *, level: float = 0.95
) -> tuple[Float[np.ndarray, "*K"], Float[np.ndarray, "*K"]]:
    """Returns the ends of Student's interval of a mean over seeds.

    Args:
      values: one value a seed, or several. [S, ...].
      level: of the interval, in (0, 1).

    Returns:
      Lower and upper ends, infinite for one seed. [...].

    Raises:
      ValueError: there are no seeds, or the level is out of range.
    """
    count = values.shape[0] if values.ndim else 0
    if not count:
        raise ValueError(f"values must be [seeds, ...] with a seed, got shape {values.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    mean = values.mean(axis=0)
    if count < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    quantile = stats.t.ppf((1 + level) / 2, count - 1)
    half = quantile * values.std(axis=0, ddof=1) / np.sqrt(count)
    return mean - half, mean + half
