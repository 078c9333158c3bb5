"""Steps of forward-backward representations for device_layouts.py.

Every row meets the next states of all devices, and tasks are drawn from states of all devices. Rows
carry unequal weights, one device sees no counted row at all, and rows that do not count hold NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import TransitionBatch, forward_backward, task_sphere
from bellmax.agents.networks import mlp

SIZE, STATE, ACTION, WIDTH, HEADS = 16, 3, 2, 4, 2
ACTOR = mlp.MLPConfig(STATE + WIDTH, ACTION, (5,), output_tanh=True)
FORWARD = mlp.MLPConfig(STATE + ACTION + WIDTH, WIDTH, (5,), layer_norm=True)
BACKWARD = mlp.MLPConfig(STATE, WIDTH, (5,))


def actor(params, observations, tasks):
    """Actions of the policies. [..., A]."""
    return mlp.apply(ACTOR, params, jnp.concatenate([observations, tasks], axis=-1))


def forward(params, observations, actions, tasks):
    """Two heads of F. [..., E, W]."""
    inputs = jnp.concatenate([observations, actions, tasks], axis=-1)
    return mlp.apply_ensemble(FORWARD, params, inputs)


def backward(params, observations):
    """B on the sphere. [..., W]."""
    return task_sphere.on_sphere(mlp.apply(BACKWARD, params, observations))


def make_agent(axis_name, accumulate_steps=1):
    return forward_backward.make(
        forward,
        backward,
        actor,
        optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.01)),
        init_params=lambda key: forward_backward.Networks(
            mlp.init(ACTOR, key),
            mlp.init_ensemble(FORWARD, key, HEADS),
            mlp.init(BACKWARD, jax.random.fold_in(key, 1)),
        ),
        discount=0.9,
        target_decay=0.5,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    observations = rng.normal(size=(2, SIZE, STATE))
    observations[:, weight == 0] = np.nan
    return TransitionBatch(
        observations=jnp.asarray(observations[0], jnp.float32),
        actions=jnp.asarray(rng.uniform(-1, 1, (SIZE, ACTION)), jnp.float32),
        next_observations=jnp.asarray(observations[1], jnp.float32),
        terminated=jnp.asarray(rng.random(SIZE) < 0.2),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 2e-6
