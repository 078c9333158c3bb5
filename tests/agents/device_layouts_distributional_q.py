"""Run by test_device_layouts.py with 8 forced host devices: each layout must equal one device.

The sequences carry unequal weights, and one device sees no counted row at all, so that a mean of
means would fail; rows that do not count hold NaN. The network has noisy layers: every device draws
the same noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bellmax import agents, losses
from bellmax.agents import distributional_q, followers, return_laws
from bellmax.agents.networks import value

STATES, ACTIONS, ATOMS, SIZE, LENGTH = 5, 3, 7, 16, 3
NETWORK = value.ValueNetworkConfig((STATES,), ACTIONS, ATOMS, hidden_sizes=(), noisy=True)


def make_agent(axis_name):
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
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
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


def check(name, result, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), result, expected
    )
    print(name)


def steps(update, state, batch, key):
    metrics = {}
    for _ in range(3):
        state, metrics = update(state, batch, key)
    return jax.block_until_ready((state, metrics))


def main():
    assert jax.device_count() == 8
    one, spread = make_agent(None), make_agent("devices")
    batch, key = make_batch(), jax.random.key(0)
    start = one.init(key)
    expected = jax.device_get(steps(jax.jit(one.update), start, batch, key))
    assert np.isfinite(expected[1]["loss"])

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded = jax.device_put(batch, rows)
    state = jax.device_put(start, everywhere)
    check("gspmd", jax.device_get(steps(jax.jit(one.update), state, sharded, key)), expected)

    mapped = jax.shard_map(
        spread.update,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("devices"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    check("shard_map", jax.device_get(steps(jax.jit(mapped), start, batch, key)), expected)

    split = jax.tree.map(lambda x: x.reshape(8, SIZE // 8, *x.shape[1:]), batch)
    copies = jax.tree.map(lambda x: jnp.stack([x] * 8), start)
    pmapped = jax.pmap(spread.update, axis_name="devices", in_axes=(0, 0, None))
    every = jax.device_get(steps(pmapped, copies, split, key))
    check("pmap", jax.tree.map(lambda x: x[3], every), expected)


if __name__ == "__main__":
    main()
