"""Run by test_actor_learner.py: 8 devices, of one process or several, equal a loop on one."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from bellmax.agents import SupervisedBatch, networks, sampling, supervised
from bellmax.agents.language import LanguageModel
from bellmax.experiments import actor_learner, collectives, mesh, resharding

NETWORK = networks.TransformerConfig(
    vocab_size=12,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    embed_dim=8,
    mlp_dim=16,
    tied_embeddings=False,
)
ROWS, PROMPT, NEW, STEPS = 8, 3, 4, 5
MODEL = LanguageModel(apply=functools.partial(networks.apply, NETWORK))
AGENT = supervised.make(
    MODEL, optax.adam(3e-2), init_params=jax.jit(functools.partial(networks.init, NETWORK))
)


def act(params, step, key, *, devices=None):
    """Prompts of the step, completed: what is learnt depends on who completed them."""
    index = jnp.arange(ROWS) + step * ROWS
    prompts = 1 + (index[:, None] * 7 + jnp.arange(PROMPT)) % 11
    if devices is not None:
        prompts, index = resharding.spread_rows(devices, (prompts, index))
    completion = sampling.generate(
        functools.partial(networks.apply, NETWORK),
        params,
        prompts,
        key,
        max_new_tokens=NEW,
        index=index,
    )
    tokens, mask = sampling.join(prompts, completion)
    return SupervisedBatch(tokens, mask, index=index, weight=jnp.ones(ROWS))


MADE, LEARN = jax.jit(act), jax.jit(AGENT.update)


def by_hand(state, key, *, behind=True):
    """One step behind: a batch is made before the update that comes before the one it is for."""
    act_key, update_key = jax.random.split(key)
    made, learn, losses = MADE, LEARN, []
    batch = made(state.params, 0, jax.random.fold_in(act_key, 0))
    for step in range(STEPS):
        following = made(state.params, step + 1, jax.random.fold_in(act_key, step + 1))
        state, metrics = learn(state, batch, jax.random.fold_in(update_key, step))
        if not behind:
            following = made(state.params, step + 1, jax.random.fold_in(act_key, step + 1))
        losses.append(float(metrics["loss"]))
        batch = following
    return state, losses


def check_exchange(roles, loop, state):
    """One permutation each way, of one part of the parameters and one of the batch."""
    shapes = jax.eval_shape(lambda: state.params)
    batch = jax.eval_shape(act, shapes, jnp.int32(0), jax.random.key(0))
    shardings = mesh.state_sharding(roles.learner, shapes)

    def placed(leaf, spec):
        sharding = jax.NamedSharding(roles.mesh, PartitionSpec("role", *spec))
        return jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf, sharding: placed(leaf, sharding.spec), shapes, shardings)
    rows = jax.tree.map(lambda leaf: placed(leaf, (mesh.BATCH_AXES,)), batch)
    found = collectives.collectives(loop.exchange.lower(params, rows).compile())
    assert {one.kind for one in found} == {"collective-permute"}
    expected = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((params, rows))
    )
    assert sum(one.moved_bytes * (one.executions or np.nan) for one in found) == expected


def check_params(found, expected):
    """What is here of each array: a process may hold a part of it alone."""
    for leaf, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_allclose(shard.data, whole[shard.index], rtol=1e-4, atol=1e-5)


def main(port="", rank="0", count="1"):
    if port:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(rank))
    assert jax.device_count() == 8
    roles = actor_learner.make_roles(fsdp=2, tensor=2)
    state = AGENT.init(jax.random.key(0))
    loop = actor_learner.Loop(
        roles,
        state,
        act=functools.partial(act, devices=roles.actor),
        update=AGENT.update,
        params_of=lambda state: state.params,
    )
    key = jax.random.key(1)
    result = loop.run(state, num_steps=STEPS, key=key)
    programs: list[Any] = [loop.act, loop.learn, loop.exchange]
    # Nothing is compiled twice, and of several processes each runs its own role alone.
    acts = 2 * int(rank) >= int(count)
    expected = [acts, not acts, 1] if port else [1, 1, 1]
    assert [program._cache_size() for program in programs] == expected
    check_exchange(roles, loop, state)
    if result.state is None:
        assert not result.metrics
        print("acted")
        return
    expected, losses = by_hand(state, key)
    found = [float(metrics["loss"]) for metrics in result.metrics]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    # Which a loop that is not behind does not come to.
    _, others = by_hand(state, key, behind=False)
    assert np.abs(np.array(others) - losses)[2:].min() > 1e-3
    check_params(result.state.params, jax.device_get(expected.params))
    print("learnt")


if __name__ == "__main__":
    main(*sys.argv[1:])
