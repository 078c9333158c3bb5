"""Trajectories of actions off policy: checks and weights that values and laws of returns share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks


def check_steps(
    table: tuple[str, Any],
    policy: Any,
    next_actions: Any,
    rewards: Any,
    discounts: Any,
    taken: tuple[str, Any],
    *,
    last_axes: int = 0,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Checks a trajectory's arrays against each other, and stops them.

    Args:
      table: name and array of what is known of each action at x_1 .. x_T. [..., T, A, ...].
      policy: [..., T, A].
      next_actions: integers. [..., T - 1].
      rewards: [..., T].
      discounts: [..., T].
      taken: name and array of what is known of the actions taken. [..., T - 1].
      last_axes: how many axes of the table follow that of actions.

    Returns:
      The six arrays, gradient-stopped, in the dtype that losses compute in.

    Raises:
      ValueError: the shapes do not fit, or there is no step.
      TypeError: an array has the wrong kind of numbers.
    """
    name, entries = table[0], _checks.as_float(*table)
    law = _checks.as_float("policy", policy)
    reward, discount = _checks.floats(rewards=rewards, discounts=discounts)
    action, known = _checks.as_integer("next_actions", next_actions), _checks.as_float(*taken)
    _checks.same_shape(**{"next_actions": action, taken[0]: known})
    if reward.ndim < 1 or reward.shape[-1] < 1:
        raise ValueError(f"rewards must have at least one step, got shape {reward.shape}.")
    if law.ndim < 1 or law.shape[:-1] != reward.shape:
        raise ValueError(
            f"policy must have shape {reward.shape} and an axis of actions, got {law.shape}."
        )
    if entries.ndim != law.ndim + last_axes or entries.shape[: law.ndim] != law.shape:
        axes = " and an axis of atoms" if last_axes else ""
        raise ValueError(f"{name} must have shape {law.shape}{axes}, got {entries.shape}.")
    if action.shape != (*reward.shape[:-1], reward.shape[-1] - 1):
        raise ValueError(
            f"next_actions and {taken[0]} must have one step less than rewards, got shapes "
            f"{action.shape} and {reward.shape}."
        )
    return _checks.stop(entries, law, action, reward, discount, known)


def coefficients(
    policy: Float[Array, "*B T A"],
    next_actions: Int[Array, "*B S"],
    traces: Float[Array, "*B T"],
) -> Float[Array, "*B T A"]:
    r"""Returns the signed weights of the actions at the next states.

    .. math:: \pi(a \mid x_{t+1}) - c_{t+1} 1[a = a_{t+1}]

    Args:
      policy: pi at x_1 .. x_T. [..., T, A].
      next_actions: a_1 .. a_{T-1}. [..., T - 1].
      traces: c_1 .. c_T, the last of them 0. [..., T].

    Returns:
      Weights. [..., T, A].
    """
    # At x_T no action is known and none is needed.
    taken = pad_last(next_actions)[..., None]
    actions = jax.lax.broadcasted_iota(taken.dtype, policy.shape, policy.ndim - 1)
    return policy - jnp.where(actions == taken, traces[..., None], 0)


def pad_last(steps: Array) -> Array:
    """Returns an array of steps with one more at the end, 0.

    Args:
      steps: any numbers. [..., T - 1].

    Returns:
      The same and a 0. [..., T].
    """
    return jnp.concatenate([steps, jnp.zeros_like(steps, shape=(*steps.shape[:-1], 1))], axis=-1)
