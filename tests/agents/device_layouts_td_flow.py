"""A step of a temporal-difference flow for device_layouts.py.

The transitions carry unequal weights, and one device sees no counted row at all, so that a mean of
means would fail; rows that do not count hold NaN. Every row draws its own noise, by its number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import agents
from bellmax.agents import followers, horizon_objectives, td_flow
from bellmax.agents.networks import flow

SIZE = 32
NETWORK = flow.FlowNetworkConfig(
    2, condition_size=3, hidden_sizes=(6,), u_shaped=False, time_features=4
)


def make_agent(axis_name, accumulate_steps=1):
    return td_flow.make(
        functools.partial(flow.apply, NETWORK),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1, eps=1e-3)),
        objective=horizon_objectives.td2_cfm(num_steps=2),
        discount=0.9,
        init_params=functools.partial(flow.init, NETWORK),
        target_rule=followers.average(0.5),
        policy_fn=lambda observations, tasks: observations[:, :1],
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:8] = 0
    observations, actions, following = (rng.normal(size=(SIZE, size)) for size in (2, 1, 2))
    observations[weight == 0] = np.nan
    return agents.TransitionBatch(
        *(jnp.asarray(x, jnp.float32) for x in (observations, actions, following)),
        terminated=jnp.asarray(rng.random(SIZE) < 0.2),
        index=jnp.asarray(rng.permutation(100)[:SIZE]),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), make_batch(), 5e-6
