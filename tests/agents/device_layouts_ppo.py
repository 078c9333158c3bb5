"""Steps of PPO for device_layouts.py, on whole rollouts whose advantages `update` estimates.

Advantages are standardised over all devices: rows carry unequal weights, episodes begin in some of
them, and one device sees no counted row at all. Rows that do not count hold NaN.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax.agents import RolloutBatch, action_laws, ppo
from bellmax.agents.networks import mlp

SIZE, TIME, STATE, ACTION = 16, 3, 3, 2
NETWORK = mlp.MLPConfig(STATE, 2 * ACTION + 1, (5,))


def apply(params, observations):
    outputs = mlp.apply(NETWORK, params, observations)
    law = action_laws.Gaussian(outputs[..., :ACTION], 0.3 * outputs[..., ACTION : 2 * ACTION])
    return law, outputs[..., -1]


def make_agent(axis_name, accumulate_steps=1):
    return ppo.make(
        apply,
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
        law=action_laws.gaussian(ACTION),
        init_params=functools.partial(mlp.init, NETWORK),
        value_clip=0.5,
        entropy_coefficient=0.01,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    observations = rng.normal(size=(SIZE, TIME + 1, STATE))
    observations[weight == 0] = np.nan
    ended = rng.random((SIZE, TIME)) < 0.4
    begins = np.pad(ended[:, :-1], ((0, 0), (1, 0)))
    terminated = ended & ~begins & (rng.random((SIZE, TIME)) < 0.5)
    return RolloutBatch(
        observations=jnp.asarray(observations, jnp.float32),
        actions=jnp.asarray(rng.normal(size=(SIZE, TIME, ACTION)), jnp.float32),
        rewards=jnp.asarray(rng.normal(size=(SIZE, TIME)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(ended & ~begins & ~terminated),
        begins=jnp.asarray(begins),
        behaviour_log_probs=jnp.asarray(rng.normal(-3, 1, (SIZE, TIME)), jnp.float32),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 5e-6
