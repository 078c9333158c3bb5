"""Transitions of a policy in any environment, by the loop that its users run: act, step, keep."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.envs import ArraySpec, Environment, wrappers
from bellmax.experiments.data.transitions import TransitionTable

# (observations[E, D], key) -> actions[E, A].
Policy = Callable[[Array, PRNGKeyArray], Float[Array, "E A"]]


def collect(
    environment: Environment,
    policy: Policy,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    num_environments: int,
    noise: float = 0.0,
    correlation: float = 0.0,
) -> TransitionTable:
    """Returns what a policy goes through, with noise on its actions.

    Transitions between episodes, which nobody made, are left out. The noise of a step is
    `correlation` times that of the step before plus fresh normal noise, of standard deviation
    `noise` throughout; it does not begin anew with an episode.

    Args:
      environment: with actions that are arrays; observations are flattened.
      policy: scripted or trained, such as the `act` of an agent.
      key: randomness; consumed.
      num_steps: steps of each environment, at least 1.
      num_environments: environments side by side, at least 1.
      noise: standard deviation of normal noise that is added to actions before they are clipped to
        the environment's range, at least 0.
      correlation: of the noise from step to step, in [0, 1).

    Returns:
      The transitions, in order of time; at most `num_steps` times `num_environments`.

    Raises:
      ValueError: a number is out of range, or the actions are no arrays.
    """
    for name, count in (("num_steps", num_steps), ("num_environments", num_environments)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}.")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be in [0, 1), got {correlation}.")
    spec = environment.action_spec
    if not isinstance(spec, ArraySpec):
        raise ValueError(f"environment must take arrays as actions, got {spec}.")
    running = wrappers.auto_reset(environment)
    size = int(np.prod(spec.shape))
    fresh = noise * (1 - correlation**2) ** 0.5

    def flat(observations):
        return observations.reshape(num_environments, -1).astype(jnp.float32)

    def move(carry, key):
        states, timesteps, wander = carry
        act_key, noise_key, step_key = jax.random.split(key, 3)
        seen = flat(timesteps.observation)
        actions = policy(seen, act_key)
        wander = correlation * wander + fresh * jax.random.normal(noise_key, wander.shape)
        actions = jnp.clip(actions + wander, spec.low, spec.high)
        begins = states.ended
        states, moved = jax.vmap(running.step, in_axes=(0, 0, 0, None))(
            jax.random.split(step_key, num_environments),
            states,
            actions.reshape(num_environments, *spec.shape),
            running.params,
        )
        row = (seen, actions.reshape(-1, size), flat(moved.observation), moved.reward)
        return (states, moved, wander), (row, moved.terminated, begins)

    def whole(key):
        reset_key, run_key, wander_key = jax.random.split(key, 3)
        states, timesteps = jax.vmap(running.reset, in_axes=(0, None))(
            jax.random.split(reset_key, num_environments), running.params
        )
        wander = noise * jax.random.normal(wander_key, (num_environments, size))
        keys = jax.random.split(run_key, num_steps)
        return jax.lax.scan(move, (states, timesteps, wander), keys)[1]

    row, terminated, begins = jax.device_get(jax.jit(whole)(key))
    kept = ~begins.reshape(-1)
    observations, actions, following, rewards = (
        leaf.reshape(-1, *leaf.shape[2:])[kept] for leaf in row
    )
    return TransitionTable(observations, actions, following, rewards, terminated.reshape(-1)[kept])
