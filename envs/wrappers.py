"""Environments made of environments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bellmax.envs.environment import ArraySpec, DiscreteSpec, Environment


class AutoResetState(NamedTuple):
    """State of `auto_reset`.

    Attributes:
      inner: the environment's state.
      ended: whether the episode has ended: the next step begins another. [].
    """

    inner: Any
    ended: Bool[Array, ""]


def auto_reset(environment: Environment) -> Environment:
    """Begins a new episode in the step after one has ended.

    The last observation of an episode is handed over as any other, with `terminated` or
    `truncated`. The step after it ignores its action, and shows the first observation of the next
    episode with reward 0: a transition that is none, which learners leave out.

    Args:
      environment: any environment.

    Returns:
      An environment whose state says whether the episode has ended; one that resets itself as it
      is.
    """
    if environment.resets_itself:
        return environment

    def reset(key, params):
        state, timestep = environment.reset(key, params)
        return AutoResetState(state, jnp.zeros((), bool)), timestep

    def step(key, state, action, params):
        reset_key, step_key = jax.random.split(key)
        fresh = environment.reset(reset_key, params)
        moved = environment.step(step_key, state.inner, action, params)
        inner, timestep = jax.tree.map(
            lambda new, old: jnp.where(state.ended, new, old), fresh, moved
        )
        return AutoResetState(inner, timestep.terminated | timestep.truncated), timestep

    return environment._replace(reset=reset, step=step, resets_itself=True)


class EpisodeState(NamedTuple):
    """State of `record_episodes`.

    Attributes:
      inner: the environment's state.
      total: return of the episode so far, undiscounted. [].
      length: its steps so far. [].
      last_total: return of the last episode that ended; 0 before. [].
      last_length: its steps. [].
      episodes: how many have ended. [].
    """

    inner: Any
    total: Float[Array, ""]
    length: Int[Array, ""]
    last_total: Float[Array, ""]
    last_length: Int[Array, ""]
    episodes: Int[Array, ""]


def record_episodes(environment: Environment) -> Environment:
    """Keeps undiscounted returns and lengths of episodes in the state; goes outside `auto_reset`.

    Args:
      environment: an environment with `auto_reset`.

    Returns:
      An environment whose state is an `EpisodeState`.
    """

    def reset(key, params):
        state, timestep = environment.reset(key, params)
        number, count = jnp.zeros(()), jnp.zeros((), jnp.int32)
        return EpisodeState(state, number, count, number, count, count), timestep

    def step(key, state, action, params):
        begins = state.inner.ended
        inner, timestep = environment.step(key, state.inner, action, params)
        total = jnp.where(begins, 0.0, state.total + timestep.reward)
        length = jnp.where(begins, 0, state.length + 1)
        ended = timestep.terminated | timestep.truncated
        return EpisodeState(
            inner=inner,
            total=total,
            length=length,
            last_total=jnp.where(ended, total, state.last_total),
            last_length=jnp.where(ended, length, state.last_length),
            episodes=state.episodes + ended,
        ), timestep

    return environment._replace(reset=reset, step=step)


def sticky_actions(environment: Environment, probability: float = 0.25) -> Environment:
    """Repeats the last action with some probability, as the Arcade Learning Environment does.

    Args:
      environment: an environment of discrete actions.
      probability: of ignoring the action, in [0, 1).

    Returns:
      The environment, with the last action beside its state.

    Raises:
      ValueError: `probability` is out of range, or the environment resets itself: sticky actions
        go inside.

    References:
      Machado et al., Revisiting the Arcade Learning Environment, 2017.
      https://arxiv.org/abs/1709.06009
    """
    if not 0 <= probability < 1:
        raise ValueError(f"probability must be in [0, 1), got {probability}.")
    if environment.resets_itself:
        raise ValueError("environment must not reset itself yet: sticky actions go inside.")

    def reset(key, params):
        state, timestep = environment.reset(key, params)
        return (state, jnp.zeros((), jnp.int32)), timestep

    def step(key, state, action, params):
        sticky_key, step_key = jax.random.split(key)
        inner, last = state
        sticks = jax.random.bernoulli(sticky_key, probability)
        action = jnp.where(sticks, last, action).astype(jnp.int32)
        inner, timestep = environment.step(step_key, inner, action, params)
        return (inner, action), timestep

    return environment._replace(reset=reset, step=step)


def one_hot_observations(environment: Environment) -> Environment:
    """Shows numbered states as vectors with a single 1, which networks read.

    Args:
      environment: an environment whose observations are numbers.

    Returns:
      The environment; observations are float32 of one entry a state.

    Raises:
      ValueError: the observations are no numbers.
    """
    spec = environment.observation_spec
    if not isinstance(spec, DiscreteSpec):
        raise ValueError(f"environment must show numbers (a DiscreteSpec), got {spec}.")

    def shown(state, timestep):
        observation = jax.nn.one_hot(timestep.observation, spec.num_values)
        return state, timestep._replace(observation=observation)

    def reset(key, params):
        return shown(*environment.reset(key, params))

    def step(key, state, action, params):
        return shown(*environment.step(key, state, action, params))

    return environment._replace(
        reset=reset, step=step, observation_spec=ArraySpec((spec.num_values,), low=0.0, high=1.0)
    )
