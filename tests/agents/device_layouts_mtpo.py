"""Run by test_device_layouts.py with 8 forced host devices: each layout must equal one device.

The rows carry unequal weights and unequal numbers of turns, and one device sees no counted row at
all, so that a mean of means, of losses or of advantages, would fail.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bellmax.agents import conversations, mtpo, optimizers
from bellmax.agents.language import LanguageModel

VOCAB, SIZE, TURNS = 5, 16, 2
# A bigram policy with one-hot hidden states.
MODEL = LanguageModel(
    apply=lambda params, tokens: params["logits"][tokens],
    hidden_states=lambda params, tokens: jax.nn.one_hot(tokens, VOCAB),
    unembedding=lambda params: params["logits"],
)


def make_agent(axis_name):
    return mtpo.make(
        MODEL,
        optax.chain(optax.clip_by_global_norm(0.1), optimizers.adan(0.1)),
        init_params=lambda key: {"logits": jax.random.normal(key, (VOCAB, VOCAB))},
        alpha=0.1,
        normalise_advantages=True,
        legal_tokens=[True, True, True, False, False],
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (SIZE, 7))
    turn_mask = np.stack([np.ones(SIZE), rng.integers(0, 2, SIZE)], axis=1)
    weight = rng.integers(0, 3, SIZE).astype(np.float32)
    weight[4:6] = 0
    turns = np.broadcast_to([0, 0, 0, 0, 1, 1, 0], tokens.shape)
    mask = (
        np.broadcast_to([0, 1, 1, 0, 1, 1, 0], tokens.shape)
        * turn_mask[np.arange(SIZE)[:, None], turns]
    )
    rows = (
        tokens,
        mask.astype(np.float32),
        turns,
        np.broadcast_to([0, 3], (SIZE, TURNS)),
        turn_mask.astype(np.float32),
        rng.uniform(size=SIZE).astype(np.float32),
        np.arange(SIZE),
        weight,
    )
    return conversations.ConversationBatch(*map(jnp.asarray, rows))


def check(name, result, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), result, expected
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
    start = one.init(key, reference_params={"logits": jnp.zeros((VOCAB, VOCAB))})
    expected = jax.device_get(steps(jax.jit(one.update), start, batch, key))

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded, state = jax.device_put(batch, rows), jax.device_put(start, everywhere)
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
