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
      behaviour: `(agent_state, observations, key) -> probs[..., A]`, the law of the actions; None
        where `act` chooses them.
      greedy: `(agent_state, observations) -> actions`, without exploration.
      td_errors: `(agent_state, batch, key) -> [B]`; None where the replay has no priorities.
      replay: of sequences.
      num_environments: N.
      steps_per_update: steps of every environment between updates.
      observation_dtype: what the replay keeps observations in.
      reward_clip: the replay's rewards are clipped to this distance from 0; 0 for no clipping.
      reward_scale: they are multiplied by it after that.
      act: `(agent_state, observations, key) -> actions[N, ...]`, whose law the replay does not
        keep; None for those of `behaviour`.
    """

    environment: Environment
    agent: agents.Agent
    behaviour: Callable[[Any, Array, PRNGKeyArray], Float[Array, "N A"]] | None
    greedy: Callable[[Any, Array], Array]
    td_errors: Callable[[Any, SequenceBatch, PRNGKeyArray], Float[Array, " B"]] | None
    replay: Replay
    num_environments: int
    steps_per_update: int
    observation_dtype: Any
    reward_clip: float = 0.0
    reward_scale: float = 1.0
    act: Callable[[Any, Array, PRNGKeyArray], Array] | None = None


def prepare(environment: Environment) -> Environment:
    """Returns an environment that resets by itself and records its episodes.

    Args:
      environment: any environment.

    Returns:
      The wrapped environment.
    """
    return wrappers.record_episodes(wrappers.auto_reset(environment))


def learnt_rewards(rewards: Float[Array, " N"], *, clip: float, scale: float) -> Float[Array, " N"]:
    """Returns what is learnt from rewards.

    Args:
      rewards: as the environment gives them. [N].
      clip: their greatest distance from 0; 0 for none.
      scale: what they are multiplied by after that.

    Returns:
      Float32. [N].
    """
    rewards = rewards.astype(jnp.float32)
    return scale * (jnp.clip(rewards, -clip, clip) if clip else rewards)


def _store(setup: Setup, timesteps: TimeStep, actions, moved: TimeStep, probs, begins) -> Step:
    kind = jnp.int32 if jnp.issubdtype(actions.dtype, jnp.integer) else jnp.float32
    return Step(
        observation=timesteps.observation.astype(setup.observation_dtype),
        action=actions.astype(kind),
        reward=learnt_rewards(moved.reward, clip=setup.reward_clip, scale=setup.reward_scale),
        terminated=moved.terminated,
        truncated=moved.truncated,
        probs=probs.astype(jnp.float32),
        begins=begins,
    )


def _choose(setup: Setup, agent: Any, seen: Array, law_key, act_key) -> tuple[Array, Array]:
    """Returns actions, and their law, or a 0 where it is not kept. [N, ...], [N, A]."""
    if setup.act is not None:
        return setup.act(agent, seen, act_key), jnp.zeros((setup.num_environments, 1))
    assert setup.behaviour is not None
    probs = setup.behaviour(agent, seen, law_key)
    return jax.random.categorical(act_key, jnp.log(probs)), probs


def first_steps(
    environment: Environment, key: PRNGKeyArray, count: int
) -> tuple[wrappers.EpisodeState, TimeStep]:
    """Begins an episode in some environments.

    Args:
      environment: from `prepare`.
      key: randomness; consumed.
      count: N.

    Returns:
      States and what is seen. [N, ...].
    """
    reset = jax.vmap(environment.reset, in_axes=(0, None))
    return reset(jax.random.split(key, count), environment.params)


def move(
    environment: Environment, key: PRNGKeyArray, states: Any, actions: Array
) -> tuple[wrappers.EpisodeState, TimeStep]:
    """Takes one step in every environment.

    Args:
      environment: from `prepare`.
      key: randomness; consumed.
      states: of N environments.
      actions: [N, ...].

    Returns:
      States and what is seen. [N, ...].
    """
    step = jax.vmap(environment.step, in_axes=(0, 0, 0, None))
    keys = jax.random.split(key, actions.shape[0])
    return step(keys, states, actions, environment.params)


def init(setup: Setup, key: PRNGKeyArray) -> State:
    """Returns the first state of one seed.

    Args:
      setup: what does not change.
      key: the seed's randomness; consumed.

    Returns:
      The state, with an empty replay.
    """
    agent_key, reset_key, act_key = jax.random.split(key, 3)
    environments, timesteps = first_steps(setup.environment, reset_key, setup.num_environments)
    agent = setup.agent.init(agent_key)
    actions, probs = _choose(setup, agent, timesteps.observation, act_key, act_key)
    example = _store(setup, timesteps, actions, timesteps, probs, timesteps.terminated)
    replay = setup.replay.init(jax.tree.map(lambda leaf: leaf[0], example))
    state = State(agent, environments, timesteps, replay, jnp.zeros((), jnp.int32))
    return jax.tree.map(strong, state)


def strong(leaf: Array) -> Array:
    """Returns the array without JAX's mark of a Python number: steps do not return it.

    A state that had it would be of another type than the next, and its step compiled twice.

    Args:
      leaf: any array.
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
    actions, probs = _choose(setup, state.agent, seen.observation, law_key, act_key)
    begins = state.environments.inner.ended
    environments, moved = move(setup.environment, step_key, state.environments, actions)
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
            assert setup.td_errors is not None
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
    metrics |= episode_metrics(state.environments)
    return state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}


def episode_metrics(recorded: wrappers.EpisodeState) -> Metrics:
    """Returns what the last episode of each environment was like.

    Args:
      recorded: states of N environments.

    Returns:
      `episodes/return` and `episodes/length`, averages over environments that have ended one, and
      `episodes/count`, how many have ended in all.
    """
    counted, metrics = recorded.episodes > 0, {}
    for name, values in (("return", recorded.last_total), ("length", recorded.last_length)):
        total = jnp.sum(jnp.where(counted, values, 0))
        metrics[f"episodes/{name}"] = total / jnp.maximum(counted.sum(), 1)
    return metrics | {"episodes/count": recorded.episodes.sum()}


def evaluate(
    environment: Environment,
    greedy: Callable[[Any, Array], Array],
    agent_state: Any,
    key: PRNGKeyArray,
    *,
    num_episodes: int,
    max_steps: int,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Runs one greedy episode in each of some fresh environments.

    Args:
      environment: from `prepare`.
      greedy: `(agent_state, observations) -> actions`.
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
    states, timesteps = first_steps(environment, reset_key, num_episodes)

    def unfinished(carry):
        number, states, _ = carry
        running = jnp.any(states.episodes == 0).astype(jnp.int32)
        if axis_name is not None:
            running = jax.lax.pmax(running, axis_name)
        return (number < max_steps) & (running > 0)

    def play(carry):
        number, states, timesteps = carry
        actions = greedy(agent_state, timesteps.observation)
        moved, timesteps = move(environment, jax.random.fold_in(step_key, number), states, actions)
        # An environment whose episode has ended stands still.
        ended = states.episodes > 0
        states, timesteps = jax.tree.map(
            lambda old, new: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), old, new),
            (states, carry[2]),
            (moved, timesteps),
        )
        return number + 1, states, timesteps

    start = (jnp.zeros((), jnp.int32), states, timesteps)
    _, states, _ = jax.lax.while_loop(unfinished, play, start)
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
