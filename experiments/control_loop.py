"""Acting, storing and learning as one function of a state, for one seed; mapped over seeds.

One call is a fixed number of environment steps in every environment, and the updates due in them:
a scan, so that a whole window of training is one program without Python in between.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import agents
from bellmax.agents import Metrics, SequenceBatch
from bellmax.envs import Environment, TimeStep, wrappers
from bellmax.experiments.control_replay import Replay, Step


class State(NamedTuple):
    """All that changes in the training of one seed.

    Attributes:
      agent: the agent's state.
      environments: states of N environments, wrapped by `prepare`.
      timesteps: what was seen last. [N].
      replay: the replay's state.
      env_steps: steps taken in each environment.
    """

    agent: Any
    environments: wrappers.EpisodeState
    timesteps: TimeStep
    replay: Any
    env_steps: Int[Array, ""]


class Setup(NamedTuple):
    """What does not change.

    Attributes:
      environment: from `prepare`.
      agent: `init`, `act` and `update`.
      behaviour: `(agent_state, observations, key) -> probs[..., A]`, the law of the actions.
      greedy: `(agent_state, observations) -> actions`, without exploration.
      td_errors: `(agent_state, batch, key) -> [B]`; read where the replay has priorities.
      replay: of sequences.
      num_environments: N.
      steps_per_update: steps of every environment between updates.
      observation_dtype: what the replay keeps observations in.
      reward_clip: the replay's rewards are clipped to this distance from 0; 0 for no clipping.
    """

    environment: Environment
    agent: agents.Agent
    behaviour: Callable[[Any, Array, PRNGKeyArray], Float[Array, "N A"]]
    greedy: Callable[[Any, Array], Int[Array, " N"]]
    td_errors: Callable[[Any, SequenceBatch, PRNGKeyArray], Float[Array, " B"]]
    replay: Replay
    num_environments: int
    steps_per_update: int
    observation_dtype: Any
    reward_clip: float = 0.0


def prepare(environment: Environment) -> Environment:
    """Returns an environment that resets by itself and records its episodes.

    Args:
      environment: any environment.

    Returns:
      The wrapped environment.
    """
    return wrappers.record_episodes(wrappers.auto_reset(environment))


def _store(setup: Setup, timesteps: TimeStep, actions, moved: TimeStep, probs, begins) -> Step:
    reward, most = moved.reward.astype(jnp.float32), setup.reward_clip
    return Step(
        observation=timesteps.observation.astype(setup.observation_dtype),
        action=actions.astype(jnp.int32),
        reward=jnp.clip(reward, -most, most) if most else reward,
        terminated=moved.terminated,
        truncated=moved.truncated,
        probs=probs.astype(jnp.float32),
        begins=begins,
    )


def init(setup: Setup, key: PRNGKeyArray) -> State:
    """Returns the first state of one seed.

    Args:
      setup: what does not change.
      key: the seed's randomness; consumed.

    Returns:
      The state, with an empty replay.
    """
    agent_key, reset_key, act_key = jax.random.split(key, 3)
    count = setup.num_environments
    reset = jax.vmap(setup.environment.reset, in_axes=(0, None))
    environments, timesteps = reset(jax.random.split(reset_key, count), setup.environment.params)
    agent = setup.agent.init(agent_key)
    probs = setup.behaviour(agent, timesteps.observation, act_key)
    zeros = jnp.zeros(count, jnp.int32)
    example = _store(setup, timesteps, zeros, timesteps, probs, timesteps.terminated)
    replay = setup.replay.init(jax.tree.map(lambda leaf: leaf[0], example))
    state = State(agent, environments, timesteps, replay, jnp.zeros((), jnp.int32))
    return jax.tree.map(_strong, state)


def _strong(leaf: Array) -> Array:
    """Returns the array without JAX's mark of a Python number: steps do not return it.

    A state that had it would be of another type than the next, and its step compiled twice.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def act_and_store(setup: Setup, state: State, key: PRNGKeyArray) -> State:
    """Takes one step in every environment.

    Args:
      setup: what does not change.
      state: the state.
      key: randomness; consumed.

    Returns:
      The state after the step, which the replay holds.
    """
    law_key, act_key, step_key = jax.random.split(key, 3)
    seen = state.timesteps
    probs = setup.behaviour(state.agent, seen.observation, law_key)
    actions = jax.random.categorical(act_key, jnp.log(probs))
    begins = state.environments.inner.ended
    step = jax.vmap(setup.environment.step, in_axes=(0, 0, 0, None))
    keys = jax.random.split(step_key, setup.num_environments)
    environments, moved = step(keys, state.environments, actions, setup.environment.params)
    stored = _store(setup, seen, actions, moved, probs, begins)
    replay = setup.replay.add(state.replay, stored)
    return state._replace(
        environments=environments, timesteps=moved, replay=replay, env_steps=state.env_steps + 1
    )


def learn(setup: Setup, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
    """Takes one update if the replay holds enough, and leaves the agent as it is otherwise.

    Args:
      setup: what does not change.
      state: the state.
      key: randomness; consumed.

    Returns:
      The state, and the update's metrics with `updates/done` 1, or zeros.
    """
    sample_key, update_key = jax.random.split(key)

    # Priorities alone leave the branches, and not the replay: mapped over seeds, both branches run
    # and what they return is copied.
    def update(agent):
        sample, replay = setup.replay.sample(state.replay, sample_key), state.replay
        if setup.replay.is_prioritised:
            found = setup.td_errors(agent, sample.batch, update_key)
            replay = setup.replay.with_errors(replay, sample, found)
        agent, metrics = setup.agent.update(agent, sample.batch, update_key)
        return agent, setup.replay.priorities(replay), metrics | {"updates/done": jnp.ones(())}

    def wait(agent):
        shapes = jax.eval_shape(update, agent)[2]
        metrics = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        return agent, setup.replay.priorities(state.replay), metrics

    ready = setup.replay.can_sample(state.replay)
    agent, priorities, metrics = jax.lax.cond(ready, update, wait, state.agent)
    replay = setup.replay.with_priorities(state.replay, priorities)
    return state._replace(agent=agent, replay=replay), metrics


def train_window(
    setup: Setup, state: State, key: PRNGKeyArray, *, num_updates: int
) -> tuple[State, Metrics]:
    """Acts and learns for a window of updates.

    Args:
      setup: what does not change.
      state: the state; may be donated.
      key: randomness; consumed.
      num_updates: updates, each after `steps_per_update` steps of every environment.

    Returns:
      The state, and the metrics of the updates that were done, averaged; `episodes/return` and
      `episodes/length` are of the last episode that each environment has ended.
    """

    def one(state, key):
        act_key, learn_key = jax.random.split(key)
        keys = jax.random.split(act_key, setup.steps_per_update)

        def act(state, key):
            return act_and_store(setup, state, key), None

        state, _ = jax.lax.scan(act, state, keys)
        return learn(setup, state, learn_key)

    state, rows = jax.lax.scan(one, state, jax.random.split(key, num_updates))
    done = rows["updates/done"].sum()
    # Of an update that was skipped nothing is averaged; of a window that was, NaN tells.
    finite = {name: jnp.isfinite(row) & (rows["updates/done"] > 0) for name, row in rows.items()}
    metrics = {
        name: jnp.where(done > 0, jnp.mean(row, where=finite[name]), jnp.zeros(()))
        for name, row in rows.items()
    }
    # The count of skipped updates is no average, and the last one stands.
    metrics["updates/skipped"] = rows["updates/skipped"][-1]
    metrics["updates/done"] = done
    recorded = state.environments
    counted = recorded.episodes > 0
    for name, values in (("return", recorded.last_total), ("length", recorded.last_length)):
        total = jnp.sum(jnp.where(counted, values, 0))
        metrics[f"episodes/{name}"] = total / jnp.maximum(counted.sum(), 1)
    metrics["episodes/count"] = recorded.episodes.sum()
    return state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}


def evaluate(
    setup: Setup,
    agent_state: Any,
    key: PRNGKeyArray,
    *,
    num_episodes: int,
    max_steps: int,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Runs one greedy episode in each of some fresh environments.

    Args:
      setup: what does not change.
      agent_state: the agent's state.
      key: randomness; consumed.
      num_episodes: environments.
      max_steps: steps after which an episode counts as it is.
      axis_name: the `vmap` axis of seeds, all of which play until the last has ended: the loop then
        ends for all at once, as environments that live outside of the program need.

    Returns:
      Mean undiscounted return, and the share of episodes that ended.
    """
    reset_key, step_key = jax.random.split(key)
    environment = setup.environment
    reset = jax.vmap(environment.reset, in_axes=(0, None))
    step = jax.vmap(environment.step, in_axes=(0, 0, 0, None))
    states, timesteps = reset(jax.random.split(reset_key, num_episodes), environment.params)

    def unfinished(carry):
        number, states, _ = carry
        running = jnp.any(states.episodes == 0).astype(jnp.int32)
        if axis_name is not None:
            running = jax.lax.pmax(running, axis_name)
        return (number < max_steps) & (running > 0)

    def move(carry):
        number, states, timesteps = carry
        actions = setup.greedy(agent_state, timesteps.observation)
        keys = jax.random.split(jax.random.fold_in(step_key, number), num_episodes)
        moved, timesteps = step(keys, states, actions, environment.params)
        # An environment whose episode has ended stands still.
        ended = states.episodes > 0
        states, timesteps = jax.tree.map(
            lambda old, new: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), old, new),
            (states, carry[2]),
            (moved, timesteps),
        )
        return number + 1, states, timesteps

    start = (jnp.zeros((), jnp.int32), states, timesteps)
    _, states, _ = jax.lax.while_loop(unfinished, move, start)
    ended = states.episodes > 0
    returns = jnp.where(ended, states.last_total, states.total)
    return returns.mean(), ended.mean()


def seed_keys(key: PRNGKeyArray, numbers: Int[Array, " S"]) -> PRNGKeyArray:
    """Returns a key for every seed: a seed trains alike alone and among others.

    Args:
      key: the step's.
      numbers: of the seeds. [S].

    Returns:
      Keys. [S].
    """
    return jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
