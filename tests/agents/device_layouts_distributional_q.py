"""A step of distributional Q-learning for device_layouts.py.

The sequences carry unequal weights, and one device sees no counted row at all, so that a mean of
means would fail; rows that do not count hold NaN. The network has noisy layers: every device draws
the same noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import agents, losses
from bellmax.agents import distributional_q, followers, return_laws
from bellmax.agents.networks import value

STATES, ACTIONS, ATOMS, SIZE, LENGTH = 5, 3, 7, 32, 3
NETWORK = value.ValueNetworkConfig((STATES,), ACTIONS, ATOMS, hidden_sizes=(), noisy=True)


def make_agent(axis_name, accumulate_steps=1):
    return distributional_q.make(
        functools.partial(value.apply, NETWORK),
        optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1)),
        law=return_laws.categorical(jnp.linspace(-3.0, 3.0, ATOMS), kind="cramer"),
        init_params=functools.partial(value.init, NETWORK),
        trace_fn=functools.partial(losses.retrace_traces, trace_decay=0.9),
        target_rule=followers.every(2),
        epsilon=lambda step: 0.1,
        mixing=0.6,
        discount=0.9,
        double=True,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:8] = 0
    observations = np.eye(STATES)[rng.integers(0, STATES, (SIZE, LENGTH + 1))]
    observations[weight == 0] = np.nan
    return agents.SequenceBatch(
        observations=jnp.asarray(observations, jnp.float32),
        actions=jnp.asarray(rng.integers(0, ACTIONS, (SIZE, LENGTH))),
        rewards=jnp.asarray(rng.normal(size=(SIZE, LENGTH)), jnp.float32),
        terminated=jnp.asarray(rng.random((SIZE, LENGTH)) < 0.2),
        truncated=jnp.zeros((SIZE, LENGTH), bool),
        behaviour_probs=jnp.asarray(rng.dirichlet(np.ones(ACTIONS), (SIZE, LENGTH)), jnp.float32),
        index=jnp.arange(SIZE),
        weight=jnp.asarray(weight),
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    start = one.init(jax.random.key(0))
    return one.update, spread.update, start, make_batch(), 2e-6
