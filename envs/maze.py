"""The point-mass maze: four rooms, a mass that is pushed around, and tasks of the literature.

ExoRL's domain `point_mass_maze`, on which Temporal Difference Flows were measured, without MuJoCo:
`maze_physics` says how the physics differs, `maze_tasks` where the rewards come from, and
`maze_controllers` how the scripted policies go. All of it is reached from here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.envs.environment import ArraySpec, Environment
from bellmax.envs.maze_controllers import Controller, controller
from bellmax.envs.maze_physics import EXORL, MazeParams, is_free, next_state, sample_states, walls
from bellmax.envs.maze_tasks import GOALS, TASKS, reach_reward, reward
from bellmax.envs.types import TimeStep

__all__ = [
    "EXORL",
    "GOALS",
    "TASKS",
    "Controller",
    "MazeParams",
    "MazeState",
    "Transitions",
    "collect",
    "controller",
    "is_free",
    "make",
    "next_state",
    "reach_reward",
    "reward",
    "rollout",
    "sample_states",
    "walls",
]

# The least and the greatest coordinate of a start: the upper left room, in metres.
_START = (0.15, 0.29)


class MazeState(NamedTuple):
    """State of the environment.

    Attributes:
      body: x, y, vx, vy, in metres and metres per second. [4].
      steps: taken since the reset. [].
    """

    body: Float[Array, " 4"]
    steps: Int[Array, ""]


class Transitions(NamedTuple):
    """Steps of a policy, each by itself.

    Attributes:
      observations: where the step began. [N, 4].
      actions: what was done, in [-1, 1]. [N, 2].
      next_observations: where it led, never the start of another episode. [N, 4].
    """

    observations: Float[Array, "N 4"]
    actions: Float[Array, "N 2"]
    next_observations: Float[Array, "N 4"]


def make(
    task: str | None = None, *, max_steps: int = 1000, params: MazeParams = EXORL
) -> Environment:
    """Returns the maze, with a task or without reward.

    An episode begins at rest at a place drawn uniformly from [-0.29, -0.15] x [0.15, 0.29], in the
    upper left room. It never terminates, and is truncated after `max_steps`.

    Args:
      task: a name in `TASKS`; None for rewards of 0.
      max_steps: at least 1; 1000 steps are the 20 seconds of ExoRL.
      params: the physics.

    Returns:
      The environment; observations are x, y, vx, vy in metres and metres per second, actions a
      force along x and y in [-1, 1].

    Raises:
      ValueError: there is no such task, or a number is out of range.

    References:
      Yarats et al., Don't Change the Algorithm, Change the Data: Exploratory Data for Offline
      Reinforcement Learning, 2022. https://arxiv.org/abs/2201.13425
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)} or None, got {task!r}.")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}.")

    def shown(state, paid):
        truncated = state.steps >= max_steps
        return state, TimeStep(state.body, paid, jnp.zeros((), bool), truncated)

    def reset(key, params):
        del params
        place = jax.random.uniform(key, (2,), float, *_START) * jnp.array([-1.0, 1.0])
        body = jnp.concatenate([place, jnp.zeros(2)])
        return shown(MazeState(body, jnp.zeros((), jnp.int32)), jnp.zeros(()))

    def step(key, state, action, params):
        del key
        body = next_state(state.body, action, params)
        paid = jnp.zeros(()) if task is None else TASKS[task](body, action)
        return shown(MazeState(body, state.steps + 1), paid)

    return Environment(
        reset=reset,
        step=step,
        params=params,
        observation_spec=ArraySpec((4,)),
        action_spec=ArraySpec((2,), low=-1.0, high=1.0),
    )


def rollout(
    states: Float[Array, "*B 4"],
    policy: Controller,
    num_steps: int,
    params: MazeParams = EXORL,
) -> Float[Array, "T *B 4"]:
    """Returns the states that a deterministic policy goes through, the first one left out.

    The state after K steps, K geometric, is a sample of the policy's successor measure.

    Args:
      states: to begin with. [*B, 4].
      policy: `observations [*B, 4] -> actions [*B, 2]`.
      num_steps: T, at least 1.
      params: the physics.

    Returns:
      The states after 1 to T steps. [T, *B, 4].

    Raises:
      ValueError: `num_steps` is out of range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")

    def body(state, _):
        state = next_state(state, policy(state), params)
        return state, state

    return jax.lax.scan(body, states, None, length=num_steps)[1]


def collect(
    key: PRNGKeyArray,
    policy: Callable[[Float[Array, "E 4"], PRNGKeyArray], Float[Array, "E 2"]],
    *,
    num_steps: int,
    num_envs: int,
    noise: float = 0.2,
    correlation: float = 0.0,
    episode_steps: int = 1000,
    speed: float = 0.05,
    params: MazeParams = EXORL,
) -> Transitions:
    """Rolls a policy with noise on its actions from states all over the maze.

    The noise of a step is `correlation` times that of the step before plus fresh normal noise, of
    standard deviation `noise` throughout: white noise, or with a correlation near 1 a random walk
    that wanders through the rooms. A policy of zeros with noise 1 and correlation 0.98 visits all
    of them. All episodes of E environments begin together, at states of `sample_states`.

    Args:
      key: randomness; consumed.
      policy: `(observations [E, 4], key) -> actions [E, 2]`.
      num_steps: steps of each environment, at least 1.
      num_envs: E, at least 1.
      noise: standard deviation of what is added to an action before it is clipped to [-1, 1], at
        least 0.
      correlation: of the noise from step to step, in [0, 1).
      episode_steps: steps after which all begin anew, at least 1.
      speed: each component of a first velocity is uniform on [-speed, speed].
      params: the physics.

    Returns:
      The transitions, N = `num_steps` * `num_envs`, step by step; actions as they were clipped.

    Raises:
      ValueError: a number is out of range.
    """
    for name, count in {
        "num_steps": num_steps,
        "num_envs": num_envs,
        "episode_steps": episode_steps,
    }.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}.")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be in [0, 1), got {correlation}.")
    fresh = noise * (1 - correlation**2) ** 0.5

    def begun(key):
        state_key, noise_key = jax.random.split(key)
        wander = noise * jax.random.normal(noise_key, (num_envs, 2))
        return sample_states(state_key, num_envs, params, speed=speed), wander

    def body(carry, number):
        state_key, policy_key, noise_key = jax.random.split(jax.random.fold_in(key, number), 3)
        states, wander = jax.lax.cond(
            number % episode_steps == 0, lambda _: begun(state_key), lambda held: held, carry
        )
        actions = jnp.clip(policy(states, policy_key) + wander, -1.0, 1.0)
        moved = next_state(states, actions, params)
        wander = correlation * wander + fresh * jax.random.normal(noise_key, wander.shape)
        return (moved, wander), Transitions(states, actions, moved)

    start = (jnp.zeros((num_envs, 4)), jnp.zeros((num_envs, 2)))
    _, steps = jax.lax.scan(body, start, jnp.arange(num_steps))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), steps)
