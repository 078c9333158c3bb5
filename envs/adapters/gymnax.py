"""Gymnax's environments (CartPole, Acrobot, MinAtar and more) as ours, still one program with JAX.

Gymnax resets by itself and hides the last observation in a dictionary; here an episode's end is
handed over, and `wrappers.auto_reset` begins the next one.
"""

import importlib
from typing import Any

import jax.numpy as jnp

from bellmax.envs.adapters import spaces
from bellmax.envs.environment import ArraySpec, Environment
from bellmax.envs.types import TimeStep


def make(name: str, **params: Any) -> Environment:
    """Returns a Gymnax environment.

    Args:
      name: its registered name, such as "CartPole-v1" or "Breakout-MinAtar".
      **params: fields of its parameters to change, such as `max_steps_in_episode`.

    Returns:
      The environment; observations are float32.

    Raises:
      ImportError: Gymnax is not installed (extra `environments`).
      ValueError: there is no such environment, or parameter, or its actions are neither discrete
        nor an array within one range.

    References:
      Lange, gymnax: A JAX-based Reinforcement Learning Environment Library, 2022.
      https://github.com/RobertTLange/gymnax
    """
    try:
        gymnax: Any = importlib.import_module("gymnax")
    except ImportError as error:
        raise ImportError(
            f"{name} is one of Gymnax's: pip install 'bellmax[environments]'."
        ) from error
    try:
        theirs, defaults = gymnax.make(name)
        all_params = defaults.replace(**params)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"name and params must be Gymnax's, got {name!r}: {error}.") from error
    action_spec = spaces.action_spec(theirs.action_space(all_params))
    if action_spec is None:
        raise ValueError(
            f"name must be of discrete actions or of arrays within one range, got {name!r}."
        )
    shape = tuple(theirs.observation_space(all_params).shape)

    def observe(observation):
        return jnp.asarray(observation, jnp.float32).reshape(shape)

    def reset(key, params):
        observation, state = theirs.reset_env(key, params)
        no = jnp.zeros((), bool)
        return state, TimeStep(observe(observation), jnp.zeros(()), no, no)

    def step(key, state, action, params):
        observation, state, reward, terminated, _ = theirs.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(theirs.is_truncated(state, params), bool) & ~terminated
        reward = jnp.asarray(reward, jnp.float32)
        return state, TimeStep(observe(observation), reward, terminated, truncated)

    return Environment(
        reset=reset,
        step=step,
        params=all_params,
        observation_spec=ArraySpec(shape),
        action_spec=action_spec,
    )
