"""Small Markov decision processes without geometry: two states, a chain, and random tables."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.envs import tabular
from bellmax.envs.tabular import TabularMDP

# (key, shape) -> rewards: `jax.random.normal` and `jax.random.uniform` are such.
RewardLaw = Callable[[PRNGKeyArray, tuple[int, ...]], Array]


def two_state(discount: float | Float[Array, ""] = 0.9) -> TabularMDP:
    """Returns two states and nothing to choose: state 0 pays 1 and state 1 pays 0.

    Args:
      discount: gamma, in [0, 1).

    Returns:
      The MDP, of one action; state 0 is kept with probability 0.6, state 1 with 0.8.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024, figure of the stochastic CDF equation (the probabilities are ours).
      https://arxiv.org/abs/2402.07598
    """
    transition = jnp.array([[[0.6, 0.4]], [[0.2, 0.8]]])
    return tabular.make(transition, jnp.array([[1.0], [0.0]]), discount)


def chain(
    num_states: int = 10,
    *,
    discount: float | Float[Array, ""] = 0.9,
    success: float | Float[Array, ""] = 0.9,
) -> TabularMDP:
    """Returns a corridor: action 0 goes left, 1 goes right, and the last state pays 1.

    A move goes the other way with probability 1 - `success`; at an end it may stay in place. An
    episode starts at the first state and never ends.

    Args:
      num_states: S, at least 2.
      discount: gamma, in [0, 1).
      success: probability that a move goes where it should, in [0, 1]. May be traced.

    Returns:
      The MDP, of two actions.

    Raises:
      ValueError: a number is out of range.
    """
    if num_states < 2:
        raise ValueError(f"num_states must be at least 2, got {num_states}.")
    if isinstance(success, int | float) and not 0 <= success <= 1:
        raise ValueError(f"success must be in [0, 1], got {success}.")
    places = jnp.arange(num_states)
    left = jax.nn.one_hot(jnp.maximum(places - 1, 0), num_states, dtype=float)
    right = jax.nn.one_hot(jnp.minimum(places + 1, num_states - 1), num_states, dtype=float)
    moves = jnp.stack(
        [success * left + (1 - success) * right, success * right + (1 - success) * left], axis=1
    )
    reward = jnp.zeros((num_states, 2)).at[-1].set(1.0)
    return tabular.make(moves, reward, discount)


def garnet(
    key: PRNGKeyArray,
    *,
    num_states: int,
    num_actions: int = 1,
    branching: int | None = None,
    concentration: float | Float[Array, ""] = 1.0,
    reward_law: RewardLaw = jax.random.normal,
    discount: float | Float[Array, ""] = 0.9,
) -> TabularMDP:
    """Draws a random MDP: each pair of state and action has a few successors, drawn at random.

    Args:
      key: randomness; consumed.
      num_states: S, at least 1.
      num_actions: A, at least 1.
      branching: number of successors of a pair, 1 to S; None for S.
      concentration: > 0, of the symmetric Dirichlet law of their probabilities: 1 is uniform on the
        simplex (what cutting the unit interval at uniform places gives), a small one makes moves
        nearly certain, a large one nearly uniform. May be traced.
      reward_law: draws the rewards of all pairs.
      discount: gamma, in [0, 1).

    Returns:
      The MDP; an episode starts at state 0 and never ends.

    Raises:
      ValueError: a number is out of range.

    References:
      Archibald, McKinnon and Thomas, On the generation of Markov decision processes, 1995.
    """
    branching = num_states if branching is None else branching
    if num_states < 1 or num_actions < 1:
        raise ValueError(
            f"num_states and num_actions must be at least 1, got {num_states} and {num_actions}."
        )
    if not 1 <= branching <= num_states:
        raise ValueError(f"branching must be in [1, {num_states}], got {branching}.")
    if isinstance(concentration, int | float) and not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration}.")
    transition, reward_key = _draw(key, concentration, num_states, num_actions, branching)
    reward = reward_law(reward_key, (num_states, num_actions))
    return tabular.make(transition, reward, discount)


def low_random(
    key: PRNGKeyArray, *, num_states: int = 10, discount: float | Float[Array, ""] = 0.9
) -> TabularMDP:
    """Draws a chain whose moves are nearly certain: a Garnet of concentration 0.01, pay uniform.

    Args:
      key: randomness; consumed.
      num_states: S, at least 1.
      discount: gamma, in [0, 1).

    Returns:
      The MDP, of one action, with rewards in [0, 1].

    Raises:
      ValueError: a number is out of range.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024, environment "Low random" (the generator and its numbers are ours).
      https://arxiv.org/abs/2402.07598
    """
    return _random_chain(key, num_states, 0.01, discount)


def high_random(
    key: PRNGKeyArray, *, num_states: int = 10, discount: float | Float[Array, ""] = 0.9
) -> TabularMDP:
    """Draws a chain whose moves are nearly uniform: a Garnet of concentration 10, pay uniform.

    Args:
      key: randomness; consumed.
      num_states: S, at least 1.
      discount: gamma, in [0, 1).

    Returns:
      The MDP, of one action, with rewards in [0, 1].

    Raises:
      ValueError: a number is out of range.

    References:
      Rowland et al., Near-Minimax-Optimal Distributional Reinforcement Learning with a Generative
      Model, 2024, environment "High random" (the generator and its numbers are ours).
      https://arxiv.org/abs/2402.07598
    """
    return _random_chain(key, num_states, 10.0, discount)


def _random_chain(key, num_states, concentration, discount):
    return garnet(
        key,
        num_states=num_states,
        concentration=concentration,
        reward_law=jax.random.uniform,
        discount=discount,
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _draw(key, concentration, num_states, num_actions, branching):
    place_key, law_key, reward_key = jax.random.split(key, 3)
    pairs = num_states * num_actions
    # Ranks of uniform numbers are a random order; ties have no chance.
    orders = jnp.argsort(jax.random.uniform(place_key, (pairs, num_states)), axis=-1)
    # Laws in logarithms: gamma variates of a small shape underflow.
    shape = jnp.full((pairs, branching), concentration, float)
    laws = jax.nn.softmax(jax.random.loggamma(law_key, shape), axis=-1)
    rows = jnp.arange(pairs)[:, None]
    transition = jnp.zeros((pairs, num_states)).at[rows, orders[:, :branching]].set(laws)
    return transition.reshape(num_states, num_actions, num_states), reward_key
