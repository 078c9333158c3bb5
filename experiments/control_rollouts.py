"""Playing and learning on-policy as one function of a state, for one seed; mapped over seeds.

One round is a rollout of some steps in every environment, its advantages, and some epochs of
updates on it, in shuffled minibatches or as a whole. Episodes go on from one rollout to the next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax import agents
from bellmax.agents import Metrics, RolloutBatch
from bellmax.agents.rollouts import Decision, minibatch
from bellmax.envs import Environment, TimeStep, wrappers
from bellmax.experiments import control_loop


class State(NamedTuple):
    """All that changes in the training of one seed.

    Attributes:
      agent: the agent's state.
      environments: states of N environments, wrapped by `control_loop.prepare`.
      timesteps: what was seen last. [N].
      env_steps: steps taken in each environment.
    """

    agent: Any
    environments: wrappers.EpisodeState
    timesteps: TimeStep
    env_steps: Int[Array, ""]


class Setup(NamedTuple):
    """What does not change.

    Attributes:
      environment: from `control_loop.prepare`.
      agent: `init`, `act` and `update`.
      decide: `(agent_state, observations, key) -> Decision`, of choices that the agent learns from.
      to_actions: `(choices) -> actions` that the environment takes.
      greedy: `(agent_state, observations) -> actions`, without exploration.
      with_advantages: `(agent_state, rollout) -> rollout`, valued by the agent.
      num_environments: N.
      rollout_length: T, steps of every environment in a rollout.
      epochs: passes over a rollout.
      minibatches: parts of a pass, an update each; it divides N T. 1 for whole rollouts.
      reward_clip: see `control_loop.learnt_rewards`.
      reward_scale: likewise.
    """

    environment: Environment
    agent: agents.Agent
    decide: Callable[[Any, Array, PRNGKeyArray], Decision]
    to_actions: Callable[[Array], Array]
    greedy: Callable[[Any, Array], Array]
    with_advantages: Callable[[Any, RolloutBatch], RolloutBatch]
    num_environments: int
    rollout_length: int
    epochs: int
    minibatches: int
    reward_clip: float = 0.0
    reward_scale: float = 1.0


def init(setup: Setup, key: PRNGKeyArray) -> State:
    """Returns the first state of one seed.

    Args:
      setup: what does not change.
      key: the seed's randomness; consumed.

    Returns:
      The state.
    """
    agent_key, reset_key = jax.random.split(key)
    environments, timesteps = control_loop.first_steps(
        setup.environment, reset_key, setup.num_environments
    )
    agent = setup.agent.init(agent_key)
    state = State(agent, environments, timesteps, jnp.zeros((), jnp.int32))
    return jax.tree.map(control_loop.strong, state)


def play(setup: Setup, state: State, key: PRNGKeyArray) -> tuple[State, RolloutBatch]:
    """Plays one rollout with the agent as it is.

    Args:
      setup: what does not change.
      state: the state.
      key: randomness; consumed.

    Returns:
      The state after it, and the rollout. [N, T, ...].
    """

    def one(carry, key):
        environments, seen = carry
        act_key, step_key = jax.random.split(key)
        found = setup.decide(state.agent, seen.observation, act_key)
        begins = environments.inner.ended
        environments, moved = control_loop.move(
            setup.environment, step_key, environments, setup.to_actions(found.actions)
        )
        rewards = control_loop.learnt_rewards(
            moved.reward, clip=setup.reward_clip, scale=setup.reward_scale
        )
        # What each step keeps, in the order of the batch's fields.
        ends = (moved.terminated, moved.truncated)
        row = (seen.observation, found.actions, rewards, *ends, begins, found.log_probs)
        return (environments, moved), row

    keys = jax.random.split(key, setup.rollout_length)
    (environments, last), rows = jax.lax.scan(one, (state.environments, state.timesteps), keys)
    observations, *columns = (jnp.moveaxis(row, 0, 1) for row in rows)
    observations = jnp.concatenate([observations, last.observation[:, None]], axis=1)
    played = state._replace(
        environments=environments,
        timesteps=last,
        env_steps=state.env_steps + setup.rollout_length,
    )
    return played, RolloutBatch(observations.astype(jnp.float32), *columns)


def learn(
    setup: Setup, agent_state: Any, batch: RolloutBatch, key: PRNGKeyArray
) -> tuple[Any, Metrics]:
    """Updates on a rollout for the setup's epochs.

    Args:
      setup: what does not change.
      agent_state: the agent's state.
      batch: the rollout.
      key: randomness; consumed.

    Returns:
      The agent's state, and the metrics of every update. [epochs * minibatches].
    """
    batch = setup.with_advantages(agent_state, batch)
    count = setup.num_environments * setup.rollout_length

    def epoch(agent_state, key):
        if setup.minibatches == 1:
            return setup.agent.update(agent_state, batch, key)
        order_key, update_key = jax.random.split(key)
        order = jax.random.permutation(order_key, count).reshape(setup.minibatches, -1)

        def one(agent_state, inputs):
            number, places = inputs
            part = minibatch(batch, places)
            return setup.agent.update(agent_state, part, jax.random.fold_in(update_key, number))

        return jax.lax.scan(one, agent_state, (jnp.arange(setup.minibatches), order))

    agent_state, rows = jax.lax.scan(epoch, agent_state, jax.random.split(key, setup.epochs))
    return agent_state, {name: row.reshape(-1) for name, row in rows.items()}


def train_window(
    setup: Setup, state: State, key: PRNGKeyArray, *, num_rounds: int
) -> tuple[State, Metrics]:
    """Plays and learns for some rounds.

    Args:
      setup: what does not change.
      state: the state; may be donated.
      key: randomness; consumed.
      num_rounds: rollouts.

    Returns:
      The state, and the metrics of the updates, averaged; `episodes/return` and `episodes/length`
      are of the last episode that each environment has ended.
    """

    def one(state, key):
        play_key, learn_key = jax.random.split(key)
        state, batch = play(setup, state, play_key)
        agent, metrics = learn(setup, state.agent, batch, learn_key)
        return state._replace(agent=agent), metrics

    state, rows = jax.lax.scan(one, state, jax.random.split(key, num_rounds))
    # Of an update that was skipped nothing is averaged; of a window that was, NaN tells.
    metrics = {name: jnp.mean(row, where=jnp.isfinite(row)) for name, row in rows.items()}
    # The count of skipped updates is no average, and the last one stands.
    metrics["updates/skipped"] = rows["updates/skipped"][-1, -1]
    metrics["updates/done"] = jnp.asarray(rows["loss"].size)
    metrics |= control_loop.episode_metrics(state.environments)
    return state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
