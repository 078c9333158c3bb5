"""A family of policies in the maze and a model of what each leads to, learnt without rewards.

Forward-backward representations give a policy for every task; a temporal-difference flow that is
conditioned on the task learns the future states of all of them from the same transitions. States
are standardised for all networks.

A push is held for half a second, 25 steps of ExoRL's, so that a discount of .95 sees through the
maze and a push makes a difference that small networks can learn. Rewards are of the state that is
reached alone: a model of states does not know the actions.
"""

import functools
import sys
import time
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
from bellmax.envs import maze

# Five steps of a tenth of a second to a push.
PHYSICS = maze.EXORL._replace(time_step=0.1)
_HELD = 5
# Environments side by side, and pushes after which all begin anew.
_NUM_ENVIRONMENTS, _EPISODE = 64, 100


class Settings(NamedTuple):
    """Sizes and rates of a run.

    Attributes:
      discount: gamma, of policies and model.
      num_transitions: collected by pushes at random, a multiple of 64.
      task_size: W.
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

    discount: float = 0.95
    num_transitions: int = 192_000
    task_size: int = 32
    policy_sizes: tuple[int, ...] = (128, 128)
    model_sizes: tuple[int, ...] = (128, 128, 128)
    batch_size: int = 256
    policy_updates: int = 15_000
    model_updates: int = 10_000
    policy_rate: float = 1e-3
    model_rate: float = 1e-3
    policy_decay: float = 0.98
    model_decay: float = 0.98
    train_steps: int = 5
    plan_steps: int = 4


class Family(NamedTuple):
    """What a run has learnt; a pytree.

    Attributes:
      policies: the representations.
      model: parameters of the model's target.
      mean: of the data's states. [4].
      scale: their standard deviation. [4].
      pool: states of the data, standardised. [N, 4].
    """

    policies: forward_backward.State
    model: Any
    mean: Float[Array, " 4"]
    scale: Float[Array, " 4"]
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
    """Returns the networks of settings: F has two heads, B sees places alone, as the rewards do.

    Args:
      settings: of the run.

    Returns:
      Functions and shapes.
    """
    size, hidden = settings.task_size, settings.policy_sizes
    actor_config = mlp.MLPConfig(4 + size, 2, hidden, layer_norm=True, output_tanh=True)
    forward_config = mlp.MLPConfig(6 + size, size, hidden, layer_norm=True)
    backward_config = mlp.MLPConfig(2, size, hidden)
    velocity_config = flow.FlowNetworkConfig(
        point_size=4,
        condition_size=6 + size,
        hidden_sizes=settings.model_sizes,
        u_shaped=False,
        time_features=16,
        max_frequency=100.0,
    )

    def forward(params, observations, actions, tasks):
        inputs = jnp.concatenate([observations, actions, tasks], axis=-1)
        return mlp.apply_ensemble(forward_config, params, inputs)

    def backward(params, observations):
        return task_sphere.on_sphere(mlp.apply(backward_config, params, observations[..., :2]))

    def actor(params, observations, tasks):
        return mlp.apply(actor_config, params, jnp.concatenate([observations, tasks], axis=-1))

    return Networks(
        forward=forward,
        backward=backward,
        actor=actor,
        velocity=functools.partial(flow.apply, velocity_config),
        configs=(actor_config, forward_config, backward_config, velocity_config),
    )


def advance(
    states: Float[Array, "*B 4"], policy: Callable[[Array], Array], *, reacts: bool = False
) -> Float[Array, "*B 4"]:
    """Returns the states half a second later.

    Args:
      states: in metres and metres per second. [..., 4].
      policy: `states[..., 4] -> actions[..., 2]`.
      reacts: whether the policy is asked every tenth of a second; else its first push is held.

    Returns:
      States. [..., 4].
    """
    held = policy(states)

    def moved(_, states):
        return maze.next_state(states, policy(states) if reacts else held, PHYSICS)

    # A loop, which compiles in a fifth of the time.
    return jax.lax.fori_loop(0, _HELD, moved, states)


def collect(settings: Settings, key: PRNGKeyArray) -> maze.Transitions:
    """Pushes 64 masses around at random, from everywhere in the maze.

    Args:
      settings: of the run.
      key: randomness; consumed.

    Returns:
      Transitions, in metres and metres per second.
    """

    def begun(key):
        first, second = jax.random.split(key)
        states = maze.sample_states(first, _NUM_ENVIRONMENTS, PHYSICS, speed=0.05)
        return states, jax.random.normal(second, (_NUM_ENVIRONMENTS, 2))

    def step(carry, number):
        start_key, push_key = jax.random.split(jax.random.fold_in(key, number))
        states, wander = jax.lax.cond(
            number % _EPISODE == 0, lambda _: begun(start_key), lambda held: held, carry
        )
        # A random walk of pushes whose deviation stays 1.
        fresh = jax.random.normal(push_key, wander.shape)
        actions = jnp.clip(wander, -1.0, 1.0)
        moved = advance(states, lambda _: actions)
        wander = 0.5 * wander + 0.75**0.5 * fresh
        return (moved, wander), maze.Transitions(states, actions, moved)

    numbers = jnp.arange(settings.num_transitions // _NUM_ENVIRONMENTS)
    start = (jnp.zeros((_NUM_ENVIRONMENTS, 4)), jnp.zeros((_NUM_ENVIRONMENTS, 2)))
    found = jax.jit(lambda: jax.lax.scan(step, start, numbers)[1])()
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), found)


def _rate(peak: float, updates: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(updates // 50, 1), updates, peak / 20)


def _loop(
    name: str, state: Any, step: Callable[[Array, Any], Any], updates: int, parts: int = 5
) -> Any:
    """Takes all updates in a few compiled stretches, and says so on stderr."""
    stretch = jax.jit(
        lambda state, first, last: jax.lax.fori_loop(first, last, step, state), donate_argnums=0
    )
    start = time.monotonic()
    for part in range(parts):
        state = stretch(state, updates * part // parts, updates * (part + 1) // parts)
        jax.block_until_ready(state)
        done, seconds = updates * (part + 1) // parts, time.monotonic() - start
        print(f"{name}: {done} of {updates} updates, {seconds:.0f} s", file=sys.stderr, flush=True)
    return state


def train(settings: Settings, seed: int) -> Family:
    """Learns policies, then the model of what they lead to.

    Args:
      settings: of the run.
      seed: of data, parameters and training.

    Returns:
      What was learnt.
    """
    keys = jax.random.split(jax.random.key(seed), 5)
    networks, found = make_networks(settings), collect(settings, keys[0])
    mean, scale = found.observations.mean(axis=0), found.observations.std(axis=0)
    before, after = (
        (states - mean) / scale for states in (found.observations, found.next_observations)
    )

    def draw(key):
        rows = jax.random.randint(key, (settings.batch_size,), 0, before.shape[0])
        return TransitionBatch(before[rows], found.actions[rows], after[rows])

    policies = _train_policies(settings, networks, draw, keys[1], keys[2], seed)
    model = _train_model(settings, networks, policies, draw, keys[3], keys[4], seed)
    return Family(policies, model, mean, scale, after[:: max(1, after.shape[0] // 4096)])


def _train_policies(settings, networks, draw, init_key, key, seed) -> forward_backward.State:
    shapes = networks.configs
    agent = forward_backward.make(
        networks.forward,
        networks.backward,
        networks.actor,
        optax.adam(_rate(settings.policy_rate, settings.policy_updates)),
        init_params=lambda key: forward_backward.Networks(
            mlp.init(shapes[0], key),
            mlp.init_ensemble(shapes[1], key, 2),
            mlp.init(shapes[2], key),
        ),
        discount=settings.discount,
        target_decay=settings.policy_decay,
    )

    def step(number, state):
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, number))
        return agent.update(state, draw(batch_key), update_key)[0]

    start = agent.init(init_key)
    return _loop(f"seed {seed}, policies", start, step, settings.policy_updates)


def _train_model(settings, networks, policies, draw, init_key, key, seed) -> Any:
    agent = td_flow.make(
        networks.velocity,
        optax.adamw(_rate(settings.model_rate, settings.model_updates), eps=1e-4),
        objective=horizon_objectives.td2_cfm(num_steps=settings.train_steps),
        discount=settings.discount,
        init_params=functools.partial(flow.init, networks.configs[3]),
        target_rule=followers.average(settings.model_decay),
        policy_fn=lambda states, tasks: networks.actor(policies.actor_params, states, tasks),
    )

    def step(number, state):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        batch = draw(keys[0])
        # As training draws them: half to reach a state, half anywhere.
        tasks = task_sphere.training_tasks(
            keys[1],
            jnp.arange(settings.batch_size),
            networks.backward(policies.params.backward, batch.observations),
            jnp.ones(settings.batch_size),
            state_fraction=0.5,
        )
        return agent.update(state, batch._replace(tasks=tasks), keys[2])[0]

    start = agent.init(init_key)
    return _loop(f"seed {seed}, model", start, step, settings.model_updates).target_params
