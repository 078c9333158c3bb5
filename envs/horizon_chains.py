"""Markov chains whose successor measures are known in closed form: a ring, a circle, a line.

There is nothing to choose. The normalised successor measure of a state starts at the next state,

    m(. | s) = (1 - gamma) sum_{k >= 1} gamma^{k-1} P(S_k in . | S_0 = s),

the law of the chain after K steps where K is geometric, P(K = k) = (1 - gamma) gamma^{k-1}. In all
three chains the law after k steps is known, so that m is sampled exactly, without a rollout, and
has exact moments. The value of a reward linear in the state is its mean over 1 - gamma.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.envs import horizon_laws
from bellmax.envs.horizon_laws import (
    Number,
    linear_gaussian_cdf,
    linear_gaussian_log_density,
    linear_gaussian_moments,
    noisy_circle_density,
    noisy_circle_moment,
    ring_weights,
)

__all__ = [
    "HorizonChain",
    "geometric_steps",
    "linear_gaussian",
    "linear_gaussian_cdf",
    "linear_gaussian_log_density",
    "linear_gaussian_moments",
    "noisy_circle",
    "noisy_circle_density",
    "noisy_circle_moment",
    "ring",
    "ring_weights",
]

_LAST_STEP = 2.0**30


class HorizonChain(NamedTuple):
    """A chain with exact samples of its successor measure; all of it is pure, jittable, vmappable.

    Attributes:
      dimension: D, the coordinates of a state.
      sample_states: `(key, count) -> [count, D]`, states to learn from, every state the chain
        visits within their reach.
      sample_next: `(key, states [..., D]) -> [..., D]`, one step of the chain.
      sample_horizon: `(key, states [..., D], num_samples, discount) -> [..., num_samples, D]`,
        independent exact samples of m(. | s).
      mean: `(states [..., D], discount) -> [..., D]`, the exact mean of m(. | s).
    """

    dimension: int
    sample_states: Callable[[PRNGKeyArray, int], Float[Array, "..."]]
    sample_next: Callable[[PRNGKeyArray, Float[Array, "..."]], Float[Array, "..."]]
    sample_horizon: Callable[[PRNGKeyArray, Float[Array, "..."], int, Number], Float[Array, "..."]]
    mean: Callable[[Float[Array, "..."], Number], Float[Array, "..."]]


def geometric_steps(
    key: PRNGKeyArray, shape: tuple[int, ...], discount: Number
) -> Int[Array, "..."]:
    """Draws how many steps ahead the successor measure looks: P(K = k) = (1 - gamma) gamma^{k-1}.

    K = 1 + floor(log(1 - U) / log(gamma)) with U uniform on [0, 1): the logarithm is finite, U = 0
    gives 1, and gamma = 0 gives 1 always. The law is exact up to the grain of U, 2^-23 in float32:
    no K is beyond 1 + 23 log(2) / -log(gamma), 1587 at gamma = 0.99.

    Args:
      key: randomness; consumed.
      shape: of the draws.
      discount: gamma, in [0, 1). May be traced, and must broadcast to `shape`.

    Returns:
      K, at least 1, int32. `shape`.

    Raises:
      ValueError: `discount` is out of range.
    """
    horizon_laws.check_discount(discount)
    gamma = jnp.asarray(discount, float)
    uniform = jax.random.uniform(key, shape, float)
    waited = jnp.floor(jnp.log1p(-uniform) / jnp.log(gamma))
    return 1 + jnp.minimum(waited, _LAST_STEP).astype(jnp.int32)


def ring(num_states: int = 8) -> HorizonChain:
    """Returns a deterministic cycle of N states, state k at (cos, sin)(2 pi k / N).

    States handed in are taken for the nearest of the N.

    Args:
      num_states: N, at least 1.

    Returns:
      The chain, of two coordinates; states to learn from are uniform.

    Raises:
      ValueError: `num_states` is out of range.
    """
    if num_states < 1:
        raise ValueError(f"num_states must be at least 1, got {num_states}.")
    arc = 2 * math.pi / num_states

    def number(states):
        return jnp.round(_angle_of(states) / arc).astype(jnp.int32)

    def place(numbers):
        return _on_circle(arc * jnp.mod(numbers, num_states).astype(float))

    def sample_states(key, count):
        horizon_laws.check_count("count", count)
        return place(jax.random.randint(key, (count,), 0, num_states))

    def sample_next(key, states):
        del key
        return place(number(states) + 1)

    def sample_horizon(key, states, num_samples, discount):
        horizon_laws.check_count("num_samples", num_samples)
        start = number(states)[..., None]
        return place(start + geometric_steps(key, (*start.shape[:-1], num_samples), discount))

    def mean(states, discount):
        ahead = number(states)[..., None] + 1 + jnp.arange(num_states)
        return jnp.einsum("...kd,k->...d", place(ahead), ring_weights(num_states, discount))

    return HorizonChain(2, sample_states, sample_next, sample_horizon, mean)


def noisy_circle(step: float = math.pi / 10, noise: float = 0.1) -> HorizonChain:
    """Returns a walk around the circle: phi' = phi + step + noise * eps, seen as (cos, sin)(phi).

    Args:
      step: angle of a step, in radians; a twentieth of the circle unless told.
      noise: standard deviation of the angle in a step, in radians, at least 0.

    Returns:
      The chain, of two coordinates; states to learn from are uniform on the circle.

    Raises:
      ValueError: `noise` is negative.
    """
    horizon_laws.check_noise(noise)

    def sample_states(key, count):
        horizon_laws.check_count("count", count)
        return _on_circle(jax.random.uniform(key, (count,), float, 0.0, 2 * math.pi))

    def sample_next(key, states):
        angle = _angle_of(states)
        return _on_circle(angle + step + noise * jax.random.normal(key, angle.shape, angle.dtype))

    def sample_horizon(key, states, num_samples, discount):
        horizon_laws.check_count("num_samples", num_samples)
        steps_key, noise_key = jax.random.split(key)
        angle = _angle_of(states)[..., None]
        shape = (*angle.shape[:-1], num_samples)
        steps = geometric_steps(steps_key, shape, discount).astype(float)
        spread = noise * jnp.sqrt(steps)
        return _on_circle(angle + step * steps + spread * jax.random.normal(noise_key, shape))

    def mean(states, discount):
        return noisy_circle_moment(_angle_of(states), 1, discount, step=step, noise=noise)

    return HorizonChain(2, sample_states, sample_next, sample_horizon, mean)


def linear_gaussian(
    coefficient: float = 0.8, noise: float = 0.5, *, dimension: int = 1, spread: float = 1.5
) -> HorizonChain:
    """Returns S' = coefficient * S + noise * eps, each coordinate for itself.

    The coordinates walk independently, but m sees all of them after one K: under m they depend on
    each other. The closed forms are `linear_gaussian_moments`, `linear_gaussian_cdf` and
    `linear_gaussian_log_density`.

    Args:
      coefficient: a, in (-1, 1).
      noise: sigma, at least 0.
      dimension: D, at least 1.
      spread: standard deviation of the states to learn from, which are normal around 0; > 0.

    Returns:
      The chain, of D coordinates.

    Raises:
      ValueError: a number is out of range.
    """
    horizon_laws.check_coefficient(coefficient)
    horizon_laws.check_noise(noise)
    horizon_laws.check_count("dimension", dimension)
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}.")

    def sample_states(key, count):
        horizon_laws.check_count("count", count)
        return spread * jax.random.normal(key, (count, dimension))

    def sample_next(key, states):
        chex.assert_axis_dimension(states, -1, dimension)
        return coefficient * states + noise * jax.random.normal(key, states.shape, states.dtype)

    def sample_horizon(key, states, num_samples, discount):
        horizon_laws.check_count("num_samples", num_samples)
        chex.assert_axis_dimension(states, -1, dimension)
        steps_key, noise_key = jax.random.split(key)
        shape = (*states.shape[:-1], num_samples)
        steps = geometric_steps(steps_key, shape, discount)[..., None]
        decay, deviation = horizon_laws.after(steps, coefficient, noise)
        eps = jax.random.normal(noise_key, (*shape, dimension))
        return decay * states[..., None, :] + deviation * eps

    def mean(states, discount):
        return linear_gaussian_moments(states, discount, coefficient=coefficient, noise=noise)[0]

    return HorizonChain(dimension, sample_states, sample_next, sample_horizon, mean)


def _angle_of(states):
    chex.assert_axis_dimension(states, -1, 2)
    return jnp.arctan2(states[..., 1], states[..., 0])


def _on_circle(angle):
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
