"""Where transitions come from, and what is known of the future: chains in closed form, the maze."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import TransitionBatch
from bellmax.envs import horizon_chains, maze
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import transitions
from bellmax.experiments.horizon_config import DataConfig

# Environments that collect side by side, and the share of a horizon that rollouts may leave out.
_NUM_ENVIRONMENTS = 64
_LEFT_OUT = 1e-4


POLICIES = ("scripted", "td3")
# Of policies that are trained, and of what they are worth, whatever those of the models.
POLICY_DISCOUNT = 0.99
# States [..., D] -> actions [..., A].
Policy = Callable[[Array], Array]


class Truth(NamedTuple):
    """What the models are compared with, in the source's own units.

    Attributes:
      samples: of the successor measure of each evaluated state. [E, M, D].
      values: of the source's reward, exact. [E].
    """

    samples: Float[np.ndarray, "E M D"]
    values: Float[np.ndarray, " E"]


class Source(NamedTuple):
    """Fixed transitions and their law.

    Attributes:
      transitions: what is learnt from, on the host, `next_actions` of the evaluated policy.
      states: that are evaluated. [E, D].
      actions: of the evaluated policy there. [E, A].
      reward_fn: of the state that a step leads to. [..., D] -> [...].
      truth: `(discount, num_samples, key) -> Truth`.
      walls: boxes to draw behind samples, or None. [W, 4].
      with_policy: `policy -> Source`, the same with another policy; None where nothing is done.
      value_of: `policy -> its mean value of the reward`, discounted by `POLICY_DISCOUNT`, over the
        states; None likewise.
    """

    transitions: TransitionBatch
    states: Float[Array, "E D"]
    actions: Float[Array, "E A"]
    reward_fn: Callable[[Array], Array]
    truth: Callable[[float, int, PRNGKeyArray], Truth]
    walls: Float[np.ndarray, "W 4"] | None = None
    with_policy: Callable[[Policy], "Source"] | None = None
    value_of: Callable[[Policy], Float[Array, ""]] | None = None


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


def _read_maze(config: DataConfig) -> maze.Transitions:
    """Reads what somebody else has collected."""
    table = transitions.load_files(pathlib.Path(config.path), pathlib.Path(config.cache_dir))
    sizes = table.observations.shape[-1], table.actions.shape[-1]
    if sizes != (4, 2):
        raise ValueError(
            f"path must hold observations of 4 features and actions of 2, as the maze has; "
            f"{config.path} has {sizes[0]} and {sizes[1]}."
        )
    return maze.Transitions(*(jnp.asarray(leaf) for leaf in table[:3]))


def _maze(config: DataConfig, count: int, key: PRNGKeyArray) -> Source:
    if config.task not in maze.TASKS:
        raise ValueError(
            f"task must be one of {', '.join(maze.TASKS)}, got {config.task!r}."
            f"{config_lib.did_you_mean(config.task, maze.TASKS)}"
        )
    if config.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {config.policy!r}.")
    collect_key, evaluation_key = jax.random.split(key)
    found = _read_maze(config) if config.path else _collect(config, collect_key)
    rows = jax.device_get(TransitionBatch(*found))
    evaluated = maze.sample_states(evaluation_key, count, maze.EXORL)
    reward_fn = functools.partial(maze.reward, config.task)

    def value_of(policy: Policy) -> Float[Array, ""]:
        future = maze.rollout(evaluated, policy, future_length(POLICY_DISCOUNT))
        return jnp.mean(POLICY_DISCOUNT ** jnp.arange(future.shape[0]) @ reward_fn(future))

    def with_policy(policy: Policy) -> Source:
        return Source(
            transitions=rows._replace(
                next_actions=np.asarray(jax.jit(policy)(found.next_observations))
            ),
            states=evaluated,
            actions=policy(evaluated),
            reward_fn=reward_fn,
            truth=functools.partial(_rollouts, evaluated, policy, reward_fn),
            walls=np.asarray(maze.walls(maze.EXORL)),
            with_policy=with_policy,
            value_of=value_of,
        )

    if config.policy == "scripted":
        return with_policy(maze.controller(config.task))
    return with_policy(lambda states: jnp.zeros((*states.shape[:-1], 2)))


def _rollouts(
    states: Array,
    policy: Policy,
    reward_fn: Callable[[Array], Array],
    discount: float,
    num_samples: int,
    key: PRNGKeyArray,
) -> Truth:
    """Rolls a policy out from each state; nothing in the maze is random."""
    count, length = len(states), future_length(discount)
    future = jax.jit(functools.partial(maze.rollout, policy=policy, num_steps=length))(states)
    # The law of the rollout's places, its rest given to the last.
    weights = discount ** np.arange(length) * (1 - discount)
    weights[-1] = discount ** (length - 1)
    places = jax.random.choice(
        key, length, (count, num_samples), p=jnp.asarray(weights / weights.sum())
    )
    samples = jnp.moveaxis(future, 0, 1)[jnp.arange(count)[:, None], places]
    values = np.asarray(weights @ np.asarray(reward_fn(future), np.float64)) / (1 - discount)
    return Truth(np.asarray(samples), values)


def future_length(discount: float) -> int:
    """Returns the steps of a rollout after which next to nothing of a horizon is left.

    Args:
      discount: gamma in [0, 1).

    Returns:
      The least T with gamma^T at most 1e-4.
    """
    return 1 if discount == 0 else max(1, math.ceil(math.log(_LEFT_OUT) / math.log(discount)))


SOURCES: dict[str, Callable[[DataConfig, int, PRNGKeyArray], Source]] = {
    "ring": functools.partial(_chain, horizon_chains.ring()),
    "noisy_circle": functools.partial(_chain, horizon_chains.noisy_circle()),
    "linear_gaussian": functools.partial(_chain, horizon_chains.linear_gaussian()),
    "maze": _maze,
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
