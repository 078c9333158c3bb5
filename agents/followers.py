"""Rules by which a second copy of the parameters follows the first: targets, averages, iterates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from bellmax.agents.agent import Params

# (followers, params after the step, step) -> followers.
FollowRule = Callable[[Params, Params, Int[Array, ""]], Params]


def every(num_steps: int) -> FollowRule:
    """Keeps the parameters of the last multiple of some steps: a target, or the previous iterate.

    Args:
      num_steps: steps between renewals, at least 1.

    Returns:
      `(followers, params, step) -> followers`.

    Raises:
      ValueError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")

    def rule(followers, params, step):
        renew = step % num_steps == 0
        return jax.tree.map(lambda old, new: jnp.where(renew, new, old), followers, params)

    return rule


def average(decay: float) -> FollowRule:
    r"""Keeps an exponential average of the parameters: a soft target, or Nash-EMA-PG's opponent.

    .. math:: \bar\theta_t = (1 - \beta) \theta_t + \beta \bar\theta_{t - 1}

    Args:
      decay: beta in [0, 1]; 0 follows at once and 1 never.

    Returns:
      `(followers, params, step) -> followers`.

    Raises:
      ValueError: `decay` is out of range.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}.")

    def rule(followers, params, step):
        del step
        return optax.incremental_update(params, followers, 1 - decay)

    return rule
