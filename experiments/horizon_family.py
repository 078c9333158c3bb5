"""A family of policies in the maze, learnt without rewards, and a model of what some lead to.

Forward-backward representations give a policy for every task. A temporal-difference flow that is
conditioned on the task learns the future states of some of them, those near the rewards that are to
be planned for, from the same transitions. States are standardised for all networks.

A discount of .9 a push looks 5 seconds ahead, within which the maze can be crossed; the paper's .99
a step of ExoRL looks 2 seconds ahead. Rewards are of the state that is reached alone: a model of
states does not know the actions.

On either side of a wall, which is thin beside the maze, all is different. Networks that see a place
as two numbers smooth over it, and futures leak through walls. So they see waves of the place beside
it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import (
    TransitionBatch,
    followers,
    forward_backward,
    horizon_objectives,
    task_sphere,
    td_flow,
)
from bellmax.agents.networks import flow, mlp
from bellmax.experiments import horizon_pushes, progress
from bellmax.experiments.horizon_evaluation import Scale


class Settings(NamedTuple):
    """Sizes and rates of a run.

    Attributes:
      discount: gamma, of policies and model.
      num_transitions: collected by pushes at random, a multiple of 64.
      task_size: W.
      octaves: waves by which networks see places: 2 pi deviations of the data long, half of it, and
        so on.
      policy_sizes: hidden layers of F, B and the actor.
      model_sizes: hidden layers of the model.
      batch_size: of both.
      policy_updates: of the representations.
      model_updates: of the model.
      policy_rate: greatest learning rate of the representations.
      model_rate: greatest learning rate of the model.
      policy_decay: of the representations' target.
      model_decay: of the model's target.
      train_steps: midpoint steps of the bootstrap, from 0 to a time of 1/2 on average.
      plan_steps: midpoint steps of a sample.
    """

    discount: float = 0.9
    num_transitions: int = 192_000
    task_size: int = 32
    octaves: int = 5
    policy_sizes: tuple[int, ...] = (128, 128)
    model_sizes: tuple[int, ...] = (512, 512, 512)
    batch_size: int = 256
    policy_updates: int = 15_000
    model_updates: int = 12_000
    policy_rate: float = 1e-3
    model_rate: float = 1e-3
    policy_decay: float = 0.98
    model_decay: float = 0.98
    train_steps: int = 4
    plan_steps: int = 4


class Keys(NamedTuple):
    """Randomness of a run.

    Attributes:
      data: of what is collected.
      initial_policies: of their first parameters.
      policies: of their updates.
      initial_model: of its first parameters.
      model: of its updates.
      comparison: of what comes after.
    """

    data: PRNGKeyArray
    initial_policies: PRNGKeyArray
    policies: PRNGKeyArray
    initial_model: PRNGKeyArray
    model: PRNGKeyArray
    comparison: PRNGKeyArray


class Data(NamedTuple):
    """Transitions that all learn from.

    Attributes:
      steps: of standardised states. [N, 4], [N, 2], [N, 4].
      scale: the units of the states.
    """

    steps: TransitionBatch
    scale: Scale


class Family(NamedTuple):
    """The policies of a run, and the units of their states; a pytree.

    Attributes:
      policies: the representations.
      scale: the units of states.
      pool: states of the data, standardised. [N, 4].
    """

    policies: forward_backward.State
    scale: Scale
    pool: Float[Array, "N 4"]


class Networks(NamedTuple):
    """Functions of parameters, of standardised states.

    Attributes:
      forward: F.
      backward: B.
      actor: the policies.
      velocity: the model's.
      configs: shapes of actor, F, B and model.
    """

    forward: forward_backward.ForwardApply
    backward: forward_backward.BackwardApply
    actor: forward_backward.ActorApply
    velocity: td_flow.Apply
    configs: tuple[mlp.MLPConfig, mlp.MLPConfig, mlp.MLPConfig, flow.FlowNetworkConfig]


def make_networks(settings: Settings) -> Networks:
    """Returns the networks of settings: F has two heads, B sees places alone, as rewards do.

    Args:
      settings: of the run.

    Returns:
      Functions and shapes.
    """
    size, hidden, waves = settings.task_size, settings.policy_sizes, 4 * settings.octaves
    actor_config = mlp.MLPConfig(4 + waves + size, 2, hidden, layer_norm=True, output_tanh=True)
    forward_config = mlp.MLPConfig(6 + waves + size, size, hidden, layer_norm=True)
    backward_config = mlp.MLPConfig(2 + waves, size, hidden)
    velocity_config = flow.FlowNetworkConfig(
        point_size=4,
        condition_size=6 + waves + size,
        hidden_sizes=settings.model_sizes,
        u_shaped=False,
        time_features=16,
        max_frequency=100.0,
    )

    def seen(states, *rest):
        """The states with waves of their places, and what goes with them."""
        return jnp.concatenate([states, _waves(states[..., :2], settings.octaves), *rest], axis=-1)

    def forward(params, observations, actions, tasks):
        return mlp.apply_ensemble(forward_config, params, seen(observations, actions, tasks))

    def backward(params, observations):
        places = seen(observations[..., :2])
        return task_sphere.on_sphere(mlp.apply(backward_config, params, places))

    def actor(params, observations, tasks):
        return mlp.apply(actor_config, params, seen(observations, tasks))

    def velocity(params, point, time, condition):
        given = seen(condition[..., :4], condition[..., 4:])
        return flow.apply(velocity_config, params, point, time, given)

    return Networks(
        forward=forward,
        backward=backward,
        actor=actor,
        velocity=velocity,
        configs=(actor_config, forward_config, backward_config, velocity_config),
    )


def _waves(places: Float[Array, "*B 2"], octaves: int) -> Float[Array, "*B F"]:
    """Returns sines and cosines of both coordinates, as of a time, F = 4 octaves."""
    found = flow.time_embedding(
        places, num_features=2 * octaves, min_frequency=1.0, max_frequency=2.0 ** (octaves - 1)
    )
    return found.reshape(*places.shape[:-1], 4 * octaves)


def _rate(peak: float, updates: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(updates // 50, 1), updates, peak / 20)


def _loop(
    name: str, state: Any, step: Callable[[Array, Any], Any], updates: int, parts: int = 5
) -> Any:
    """Takes all updates in a few compiled stretches, and shows how far it is."""
    stretch = jax.jit(
        lambda state, first, last: jax.lax.fori_loop(first, last, step, state), donate_argnums=0
    )
    with progress.Progress(name, updates, unit="updates") as shown:
        shown.at(0, None)
        for part in range(parts):
            done = updates * (part + 1) // parts
            state = stretch(state, updates * part // parts, done)
            jax.block_until_ready(state)
            shown.at(done, "")
    return state


def make_keys(seed: int) -> Keys:
    """Returns the randomness of a run.

    Args:
      seed: of the run.
    """
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def make_data(settings: Settings, seed: int) -> Data:
    """Collects what a run learns from.

    Args:
      settings: of the run.
      seed: of the run.

    Returns:
      Transitions.
    """
    found = horizon_pushes.collect(settings.num_transitions, make_keys(seed).data)
    seen = found.observations
    scale = Scale(*jax.device_get((seen.mean(axis=0), seen.std(axis=0))))
    before, after = map(scale.to_model, (seen, found.next_observations))
    return Data(TransitionBatch(before, found.actions, after), scale)


def _draw(settings: Settings, data: Data, key: PRNGKeyArray) -> TransitionBatch:
    rows = jax.random.randint(key, (settings.batch_size,), 0, data.steps.observations.shape[0])
    return jax.tree.map(lambda leaf: leaf[rows], data.steps)


def train_policies(settings: Settings, data: Data, seed: int) -> Family:
    """Learns a policy for every task.

    Args:
      settings: of the run.
      data: of `make_data`.
      seed: of the run.

    Returns:
      The policies, with the units of their states.
    """
    keys = make_keys(seed)
    networks = make_networks(settings)

    def init_params(key):
        actor_key, forward_key, backward_key = jax.random.split(key, 3)
        actor, forward, backward, _ = networks.configs
        return forward_backward.Networks(
            mlp.init(actor, actor_key),
            mlp.init_ensemble(forward, forward_key, 2),
            mlp.init(backward, backward_key),
        )

    agent = forward_backward.make(
        networks.forward,
        networks.backward,
        networks.actor,
        optax.adam(_rate(settings.policy_rate, settings.policy_updates)),
        init_params=init_params,
        discount=settings.discount,
        target_decay=settings.policy_decay,
    )

    def step(number, state):
        batch_key, update_key = jax.random.split(jax.random.fold_in(keys.policies, number))
        return agent.update(state, _draw(settings, data, batch_key), update_key)[0]

    start = agent.init(keys.initial_policies)
    policies = _loop(f"seed {seed}, policies", start, step, settings.policy_updates)
    states = data.steps.next_observations
    return Family(policies, data.scale, states[:: max(1, states.shape[0] // 4096)])


def train_model(
    settings: Settings,
    data: Data,
    policies: forward_backward.State,
    tasks: Float[Array, "M W"],
    seed: int,
) -> Any:
    """Learns what the policies of some tasks lead to.

    Each transition of a batch is of a task drawn from `tasks` with equal probabilities. This is a
    simplification: the paper's model learns all tasks that the policies have been trained on, so
    that a new reward needs no training; it is far larger.

    Args:
      settings: of the run.
      data: of `make_data`.
      policies: of `train_policies`.
      tasks: of the policies that will be valued. [M, W].
      seed: of the run.

    Returns:
      Parameters of the model's target.
    """
    keys = make_keys(seed)
    networks = make_networks(settings)

    def policy_fn(states, own):
        return networks.actor(policies.actor_params, states, own)

    agent = td_flow.make(
        networks.velocity,
        optax.adamw(_rate(settings.model_rate, settings.model_updates), eps=1e-4),
        objective=horizon_objectives.td2_cfm(num_steps=settings.train_steps),
        discount=settings.discount,
        init_params=functools.partial(flow.init, networks.configs[3]),
        target_rule=followers.average(settings.model_decay),
        policy_fn=policy_fn,
    )

    def step(number, state):
        batch_key, task_key, update_key = jax.random.split(
            jax.random.fold_in(keys.model, number), 3
        )
        rows = jax.random.randint(task_key, (settings.batch_size,), 0, tasks.shape[0])
        batch = _draw(settings, data, batch_key)._replace(tasks=tasks[rows])
        return agent.update(state, batch, update_key)[0]

    start = agent.init(keys.initial_model)
    return _loop(f"seed {seed}, model", start, step, settings.model_updates).target_params
