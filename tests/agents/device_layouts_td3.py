"""Steps of TD3 for device_layouts.py: the second of the three moves policy and targets too.

Rows carry unequal weights, one device sees no counted row at all, so that a mean of means would
fail, and rows that do not count hold NaN. Smoothing noise depends on the row, not on the device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import TransitionBatch, td3
from bellmax.agents.networks import mlp

SIZE, STATE, ACTION, HEADS = 16, 3, 2, 2
ACTOR = mlp.MLPConfig(STATE, ACTION, (5,), output_tanh=True)
CRITIC = mlp.MLPConfig(STATE + ACTION, 1, (5,), layer_norm=True)


def critic(params, observations, actions):
    """Values of two critics. [..., E]."""
    both = jnp.concatenate([observations, actions], axis=-1)
    return mlp.apply_ensemble(CRITIC, params, both)[..., 0]


def make_agent(axis_name, accumulate_steps=1):
    return td3.make(
        functools.partial(mlp.apply, ACTOR),
        critic,
        optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.01)),
        init_params=lambda key: td3.Networks(
            mlp.init(ACTOR, key), mlp.init_ensemble(CRITIC, key, HEADS)
        ),
        discount=0.9,
        target_decay=0.5,
        policy_delay=2,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    observations = rng.normal(size=(SIZE, STATE))
    observations[weight == 0] = np.nan
    return TransitionBatch(
        observations=jnp.asarray(observations, jnp.float32),
        actions=jnp.asarray(rng.uniform(-1, 1, (SIZE, ACTION)), jnp.float32),
        next_observations=jnp.asarray(rng.normal(size=(SIZE, STATE)), jnp.float32),
        rewards=jnp.asarray(rng.normal(size=SIZE), jnp.float32),
        terminated=jnp.asarray(rng.random(SIZE) < 0.2),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 2e-6
