"""Where transitions come from, and what is known of the future: chains in closed form, the maze.

Those of the DeepMind Control Suite are in `horizon_control`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from bellmax.agents import TransitionBatch
from bellmax.envs import horizon_chains, maze
from bellmax.experiments import config as config_lib
from bellmax.experiments import horizon_control, horizon_truth
from bellmax.experiments.horizon_config import DataConfig
from bellmax.experiments.horizon_truth import Source, Truth

# Environments that collect side by side.
_NUM_ENVIRONMENTS = 64

POLICIES = ("scripted", "td3")


def _chain(
    chain: horizon_chains.HorizonChain, config: DataConfig, count: int, key: PRNGKeyArray
) -> Source:
    for key_name in ("task", "path"):
        given = getattr(config, key_name)
        if given:
            raise ValueError(f"{key_name} must be empty for {config.source}, got {given!r}.")
    state_key, next_key, evaluation_key = jax.random.split(key, 3)
    states = chain.sample_states(state_key, config.num_transitions)
    evaluated = chain.sample_states(evaluation_key, count)

    def truth(discount, num_samples, key):
        samples = chain.sample_horizon(key, evaluated, num_samples, discount)
        values = chain.mean(evaluated, discount)[..., 0] / (1 - discount)
        return Truth(np.asarray(samples), np.asarray(values))

    nothing = jnp.zeros((config.num_transitions, 0))
    following = chain.sample_next(next_key, states)
    return Source(
        transitions=jax.device_get(TransitionBatch(states, nothing, following, nothing)),
        states=evaluated,
        actions=jnp.zeros((count, 0)),
        reward_fn=lambda states: states[..., 0],
        truth=truth,
    )


def _collect(config: DataConfig, key: PRNGKeyArray) -> maze.Transitions:
    """Pushes the mass around at random."""
    steps = -(-config.num_transitions // _NUM_ENVIRONMENTS)
    found = jax.jit(
        lambda key: maze.collect(
            key,
            lambda states, key: jnp.zeros((*states.shape[:-1], 2)),
            num_steps=steps,
            num_envs=_NUM_ENVIRONMENTS,
            noise=config.noise,
            correlation=config.correlation,
        )
    )(key)
    return jax.tree.map(lambda leaf: leaf[: config.num_transitions], found)


def _maze(config: DataConfig, count: int, key: PRNGKeyArray) -> Source:
    if config.task not in maze.TASKS:
        raise ValueError(
            f"task must be one of {', '.join(maze.TASKS)}, got {config.task!r}."
            f"{config_lib.did_you_mean(config.task, maze.TASKS)}"
        )
    if config.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {config.policy!r}.")
    collect_key, evaluation_key = jax.random.split(key)
    rows = (
        horizon_truth.read_rows(config, state_size=4, action_size=2)
        if config.path
        else jax.device_get(TransitionBatch(*_collect(config, collect_key)))
    )
    # Compiled: a policy that is trained on these rewards is the same to the last bit.
    reward_fn = jax.jit(functools.partial(maze.reward, config.task))

    def rollout(states, policy, num_steps):
        future = maze.rollout(states, policy, num_steps)
        return future, reward_fn(future)

    scripted = config.policy == "scripted"
    return horizon_truth.of_policy(
        maze.controller(config.task) if scripted else horizon_truth.still(2),
        rows=rows,
        states=maze.sample_states(evaluation_key, count, maze.EXORL),
        reward_fn=reward_fn,
        rollout=rollout,
        walls=np.asarray(maze.walls(maze.EXORL)),
    )


SOURCES: dict[str, Callable[[DataConfig, int, PRNGKeyArray], Source]] = {
    "ring": functools.partial(_chain, horizon_chains.ring()),
    "noisy_circle": functools.partial(_chain, horizon_chains.noisy_circle()),
    "linear_gaussian": functools.partial(_chain, horizon_chains.linear_gaussian()),
    "maze": _maze,
    "dm_control": horizon_control.control,
}


def make_source(config: DataConfig, *, num_states: int, key: PRNGKeyArray) -> Source:
    """Returns the source that a config names.

    Args:
      config: the data group.
      num_states: states that are evaluated.
      key: randomness of transitions and states; consumed.

    Returns:
      The source.

    Raises:
      UserError: there is no such source or task, or a number is out of range.
    """
    if config.source not in SOURCES:
        raise config_lib.unknown("config.data.source", config.source, SOURCES)
    with config_lib.user_errors("config.data"):
        return SOURCES[config.source](config, num_states, key)
