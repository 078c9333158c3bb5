r"""Laws of the return as K equally heavy atoms: quantile dynamic programming (QDP).

.. math:: \theta(x)_i \leftarrow F^{-1}_{(T \theta)(x)}\Big(\frac{2 i - 1}{2 K}\Big)

where (T theta)(x) puts mass P(y | x) / K on r(x) + gamma theta(y)_j, and F^{-1} is the smallest
atom whose cumulative weight reaches its argument. The map contracts the largest W-infinity distance
by gamma, so that iterating it converges; the fixed point is biased, in the mean as well.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.agents.tabular import _categorical
from bellmax.losses import _checks
from bellmax.losses._checks import Knob

# Numbers that one piece of a sweep may hold.
_PIECE = 2**22


def quantile_dp_step(
    quantiles: Float[Array, "S K"],
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
) -> Float[Array, "S K"]:
    """Returns quantiles after one sweep of quantile dynamic programming: the module's formula.

    Ties of the cumulative weight with a level, which rounding would decide, go to the lower atom.

    Args:
      quantiles: theta, in any order within a state. [S, K].
      transition: probabilities of the next state. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1]. May be traced.

    Returns:
      Quantiles, increasing within a state. [S, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
    """
    laws = _checks.as_float("quantiles", quantiles)
    table, rewards, factor = _check(transition, reward, discount)
    if laws.ndim != 2 or laws.shape[0] != rewards.size or laws.shape[1] < 1:
        raise ValueError(f"quantiles must have shape [{rewards.size}, K], got {laws.shape}.")
    dtype = jnp.result_type(laws, table)
    return _step(laws.astype(dtype), table.astype(dtype), rewards.astype(dtype), factor)


def quantile_fixed_point(
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    num_quantiles: int,
    *,
    tolerance: float | None = None,
    max_sweeps: int = 100_000,
) -> Float[Array, "S K"]:
    """Returns the fixed point of quantile dynamic programming, by sweeps from the value function.

    Args:
      transition: probabilities of the next state; rows sum to 1. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1). May be traced.
      num_quantiles: K.
      tolerance: largest error of a quantile, in the unit of the reward; None for 100 rounding
        errors of the largest return. Sweeps end before where they change nothing.
      max_sweeps: at most so many.

    Returns:
      Quantiles, increasing within a state. [S, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    if num_quantiles < 1:
        raise ValueError(f"num_quantiles must be at least 1, got {num_quantiles}.")
    table, rewards, factor = _check(transition, reward, discount)
    return _iterate(table, rewards, factor, num_quantiles, tolerance, max_sweeps)


def _check(transition, reward, discount):
    # A support that is not used: the checks are those of the categorical solvers.
    backup, _ = _categorical.chain(transition, reward, discount, jnp.array([0.0, 1.0]))
    rewards = jnp.asarray(reward).astype(backup.transition.dtype)
    return backup.transition, rewards, jnp.asarray(discount, backup.transition.dtype)


@jax.jit
def _step(quantiles, transition, reward, discount):
    num_states, num_atoms = quantiles.shape
    # Rewards and discount keep the order of atoms, so that one sort serves all states.
    flat = quantiles.ravel()
    order = jnp.argsort(flat)
    sorted_atoms, owners = flat[order], order // num_atoms
    levels = (2 * jnp.arange(num_atoms, dtype=flat.dtype) + 1) / (2 * num_atoms)
    levels = levels - 64 * jnp.finfo(flat.dtype).eps

    def one(row):
        law, paid = row
        reached = jnp.cumsum(law[owners]) / num_atoms
        place = jnp.searchsorted(reached, levels, side="left")
        return paid + discount * sorted_atoms[jnp.minimum(place, flat.size - 1)]

    piece = max(1, min(num_states, _PIECE // flat.size))
    return jax.lax.map(one, (transition, reward), batch_size=piece)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _iterate(transition, reward, discount, num_quantiles, tolerance, max_sweeps):
    eps = jnp.finfo(reward.dtype).eps
    identity = jnp.eye(reward.size, dtype=reward.dtype)
    values = jnp.linalg.solve(identity - discount * transition, reward)
    error = tolerance
    if error is None:
        error = 100 * eps * jnp.max(jnp.abs(reward)) / jnp.maximum(1 - discount, eps)
    stops_at = error * (1 - discount)

    def unfinished(carry):
        _, change, count = carry
        return (change > stops_at) & (count < max_sweeps)

    def sweep(carry):
        quantiles, _, count = carry
        following = _step(quantiles, transition, reward, discount)
        return following, jnp.max(jnp.abs(following - quantiles)), count + 1

    start = jnp.broadcast_to(values[:, None], (reward.size, num_quantiles))
    begin = (start, jnp.full((), jnp.inf, reward.dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, sweep, begin)[0]
