"""A second copy of the parameters, and rules by which it follows: targets, averages, iterates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import updates
from bellmax.agents.agent import Params

# (followers, params after the step, step) -> followers.
FollowRule = Callable[[Params, Params, Int[Array, ""]], Params]


class TargetState(NamedTuple):
    """All that changes in an agent of one network and its target.

    Attributes:
      params: the network's parameters.
      target_params: the target's, which is bootstrapped from.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    target_params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def init_with_target(
    key: PRNGKeyArray,
    example_batch: object = None,
    *,
    params: Params | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
) -> TargetState:
    """Starts from given parameters, or from fresh ones; the target is a copy.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the network's parameters, copied; None for fresh ones.
      reference_params: the target's, copied; None for a copy of the network's.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation.

    Returns:
      The first state.
    """
    del example_batch
    start: Params = init_params(key) if params is None else updates.copy_tree(params)
    target = updates.copy_tree(start if reference_params is None else reference_params)
    return TargetState(start, target, optimizer.init(start), jnp.zeros((), jnp.int32))


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
