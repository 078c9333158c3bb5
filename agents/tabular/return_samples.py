r"""What can be drawn: returns of a Markov chain, and random cumulative functions of DCFP.

The stochastic categorical CDF equation asks for random cumulative functions Phi(x) with

.. math:: \Phi(x) \overset{D}{=} W^x \Phi(X') + h^x, \qquad X' \sim P(\cdot \mid x)

whose mean is the categorical fixed point. Each Phi(x) holds one Phi(X'), so that the equation
unrolls along a path: Phi(x) is what projecting at every step makes of the return of that path, and
independent paths give independent solutions. Its spread is a part of the error of DCFP.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents.tabular import _categorical, categorical_dp
from bellmax.losses._checks import Knob


def sample_returns(
    key: PRNGKeyArray,
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    *,
    num_samples: int,
    num_steps: int,
) -> Float[Array, "S N"]:
    r"""Draws discounted returns from every state of a Markov chain with rewards.

    .. math:: G = \sum_{t < T} \gamma^t r(X_t) + \gamma^T v(X_T)

    with v the value function: what is cut off is replaced by its mean, so that the mean of G is
    exact and G is within gamma^T times the largest deviation of a return of the full one.

    Args:
      key: randomness; consumed.
      transition: probabilities of the next state; rows sum to 1. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1). May be traced.
      num_samples: N, at least 1, of each state; all are independent.
      num_steps: T, at least 0.

    Returns:
      Returns. [S, N].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.
    """
    _check_counts(num_samples, num_steps)
    backup, _ = _categorical.chain(transition, reward, discount, jnp.array([0.0, 1.0]))
    table = backup.transition
    rewards = jnp.asarray(reward).astype(table.dtype)
    factor = jnp.asarray(discount, table.dtype)
    return _sample_returns(key, table, rewards, factor, num_samples, num_steps)


def sample_categorical_cdfs(
    key: PRNGKeyArray,
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    num_samples: int,
    num_steps: int,
) -> Float[Array, "N S K"]:
    """Draws solutions of the stochastic categorical CDF equation.

    Args:
      key: randomness; consumed.
      transition: probabilities of the next state; rows sum to 1. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1). May be traced.
      support: z, strictly increasing. [K].
      num_samples: N, at least 1, of each state; all are independent, also between states.
      num_steps: T, length of the paths, at least 0. At their end the law is uniform, what is left
        of it has a weight of gamma^T in W1.

    Returns:
      Cumulative functions, increasing from at least 0 to 1. [N, S, K].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024. https://arxiv.org/abs/2402.07598
    """
    _check_counts(num_samples, num_steps)
    backup, _ = _categorical.chain(transition, reward, discount, support)
    return _sample_cdfs(key, backup, num_samples, num_steps)


def categorical_cdf_covariance(
    transition: Float[Array, "S S"],
    reward: Float[Array, " S"],
    discount: Knob,
    support: Float[Array, " K"],
    *,
    num_sweeps: int = 10_000,
) -> Float[Array, "S J J"]:
    r"""Returns the covariance of the solutions of the stochastic categorical CDF equation.

    .. math:: S(x) = W^x \Big( \sum_y P(y \mid x) \big[ S(y) + d_{xy} d_{xy}^T \big] \Big) (W^x)^T,
              \qquad d_{xy} = F(y) - \sum_{y'} P(y' \mid x) F(y')

    with F the categorical fixed point; by sweeps until rounding ends progress, each of
    S (S + K) K^2 operations. The support's gaps times the diagonal sum to the mean squared Cramer
    distance of Phi and F.

    Args:
      transition: probabilities of the next state; rows sum to 1. [S, S].
      reward: of each state. [S].
      discount: gamma, in [0, 1). May be traced.
      support: z, strictly increasing. [K].
      num_sweeps: at most so many.

    Returns:
      Covariances of the K - 1 values before the last, which is 1. [S, K - 1, K - 1].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024. https://arxiv.org/abs/2402.07598
    """
    backup, _ = _categorical.chain(transition, reward, discount, support)
    probs = categorical_dp.categorical_fixed_point(transition, reward, discount, support)
    return _covariance(backup, _categorical.to_differences(probs), num_sweeps)


def _check_counts(num_samples: int, num_steps: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}.")


def _draw_next(
    key: PRNGKeyArray, places: Int[Array, " N"], cumulative: Float[Array, "S S"]
) -> Int[Array, " N"]:
    """Draws next states by bisection of the cumulative law: log S gathers a state."""
    size = cumulative.shape[-1]
    level = jax.random.uniform(key, places.shape, cumulative.dtype) * cumulative[places, -1]
    low, high = jnp.zeros_like(places), jnp.full_like(places, size - 1)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        above = level < cumulative[places, middle]
        return jnp.where(above, low, middle + 1), jnp.where(above, middle, high)

    low, _ = jax.lax.fori_loop(0, size.bit_length(), halve, (low, high))
    return jnp.minimum(low, size - 1)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _sample_returns(key, transition, reward, discount, num_samples, num_steps):
    size = reward.size
    identity = jnp.eye(size, dtype=reward.dtype)
    values = jnp.linalg.solve(identity - discount * transition, reward)
    cumulative = jnp.cumsum(transition, axis=-1)

    def step(carry, step_key):
        places, total, weight = carry
        total = total + weight * reward[places]
        return (_draw_next(step_key, places, cumulative), total, weight * discount), None

    places = jnp.repeat(jnp.arange(size, dtype=jnp.int32), num_samples)
    begin = (places, jnp.zeros(places.shape, reward.dtype), jnp.ones((), reward.dtype))
    (places, total, weight), _ = jax.lax.scan(step, begin, jax.random.split(key, num_steps))
    return (total + weight * values[places]).reshape(size, num_samples)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sample_cdfs(key, backup, num_samples, num_steps):
    size, num_atoms = backup.atoms.shape
    cumulative = jnp.cumsum(backup.transition, axis=-1)

    def forward(places, step_key):
        return _draw_next(step_key, places, cumulative), places

    places = jnp.tile(jnp.arange(size, dtype=jnp.int32), num_samples)
    _, path = jax.lax.scan(forward, places, jax.random.split(key, num_steps))

    def backward(probs, places):
        moved = losses.categorical_projection(backup.atoms[places], probs, backup.support)
        return moved, None

    start = jnp.full((size * num_samples, num_atoms), 1 / num_atoms, backup.atoms.dtype)
    probs, _ = jax.lax.scan(backward, start, path, reverse=True)
    return jnp.cumsum(probs, axis=-1).reshape(num_samples, size, num_atoms)


@functools.partial(jax.jit, static_argnums=2)
def _covariance(backup, cdfs, num_sweeps):
    laws = backup.transition
    matrices = _categorical.cdf_matrices(backup)
    mean = jnp.matmul(laws, cdfs, precision="highest")
    # sum_y P d d' = sum_y P F F' - mean mean', without a matrix for every pair of states.
    seconds = jnp.einsum("xy,yi,yj->xij", laws, cdfs, cdfs, precision="highest")
    spread = seconds - mean[:, :, None] * mean[:, None, :]

    def move(covariance):
        return jnp.einsum("xik,xkl,xjl->xij", matrices, covariance, matrices, precision="highest")

    source = move(spread)

    stops_at = 16 * jnp.finfo(source.dtype).eps * jnp.max(jnp.abs(source))

    def unfinished(carry):
        _, change, count = carry
        return (change > stops_at) & (count < num_sweeps)

    def sweep(carry):
        covariance, _, count = carry
        mixed = jnp.einsum("xy,yij->xij", laws, covariance, precision="highest")
        following = source + move(mixed)
        return following, jnp.max(jnp.abs(following - covariance)), count + 1

    infinite = jnp.full((), jnp.inf, source.dtype)
    begin = (source, infinite, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, sweep, begin)[0]
