"""Decoding with a cache must give the logits of the full pass, however the tokens are cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import networks

CONFIG = networks.TransformerConfig(
    vocab_size=11,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    embed_dim=16,
    mlp_dim=20,
    logit_softcap=20.0,
)
LENGTH = 9
apply = jax.jit(networks.apply, static_argnums=0)
decode_step = jax.jit(networks.decode_step, static_argnums=0)


def make_params(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.4, s.dtype), shapes)


def make_tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.vocab_size, (3, LENGTH)))


def decode(config, params, tokens, positions, blocks, slots=LENGTH + 4):
    cache = networks.init_cache(config, tokens.shape[0], slots)
    logits, start = [], 0
    for size in blocks:
        block = slice(start, start + size)
        out, cache = decode_step(config, params, tokens[:, block], cache, positions[:, block])
        logits.append(out)
        start += size
    assert start == tokens.shape[1]
    return jnp.concatenate(logits, axis=1), cache


BLOCKS = {"tokens": (1,) * LENGTH, "blocks": (4, 1, 3, 1), "whole": (LENGTH,)}


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_equals_the_full_pass(blocks, scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params, tokens = make_params(config), make_tokens()
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    logits, cache = decode(config, params, tokens, positions, blocks)
    expected = apply(config, params, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert int(cache.length) == LENGTH
    shapes = [leaf.shape for leaf in jax.tree.leaves((cache.keys, cache.values))]
    one_layer = (3, 2, LENGTH + 4, 6)
    assert shapes == ([(2, *one_layer)] * 2 if scan_layers else [one_layer] * 4)


def test_selected_logits_are_those_of_one_token_a_row():
    params, tokens = make_params(CONFIG), make_tokens()
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    select = jnp.array([2, LENGTH - 1, 5])
    cache = networks.init_cache(CONFIG, 3, LENGTH)
    logits, _ = networks.decode_step(CONFIG, params, tokens, cache, positions, select=select)
    expected = apply(CONFIG, params, tokens)[jnp.arange(3), select]
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_the_full_pass_with_padding(blocks, side):
    # On the left as prompts for sampling are; on the right as a prompt cut short by its neighbours.
    params, tokens = make_params(CONFIG), make_tokens()
    padding = jnp.array([0, 3, 5])[:, None]
    place = jnp.arange(LENGTH)
    mask = place >= padding if side == "left" else place < LENGTH - padding
    positions = jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, -1)
    # Ids of padding may be anything.
    logits, _ = decode(CONFIG, params, jnp.where(mask, tokens, -1), positions, blocks)
    expected = apply(CONFIG, params, tokens, mask=mask)
    assert jnp.isfinite(logits).all()
    np.testing.assert_allclose(logits[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_tokens_after_a_right_padded_prompt_see_no_padding():
    params, tokens = make_params(CONFIG), make_tokens()[:1]
    prompt = jnp.concatenate([tokens[:, :4], jnp.full((1, 3), 10)], axis=1)
    continued = jnp.concatenate([prompt, tokens[:, 4:]], axis=1)
    positions = jnp.array([[0, 1, 2, 3, -1, -1, -1, 4, 5, 6, 7, 8]])
    logits, _ = decode(CONFIG, params, continued, positions, (7, 1, 1, 1, 1, 1))
    expected = apply(CONFIG, params, tokens)
    np.testing.assert_allclose(logits[:, 7:], expected[:, 4:], rtol=1e-5, atol=1e-5)


def test_works_inside_a_scan_with_a_fixed_shape():
    params, tokens = make_params(CONFIG), make_tokens()

    def step(cache, inputs):
        token, position = inputs
        positions = jnp.full((3, 1), position)
        logits, cache = networks.decode_step(CONFIG, params, token[:, None], cache, positions)
        return cache, logits[:, 0]

    cache = networks.init_cache(CONFIG, 3, LENGTH)
    _, logits = jax.lax.scan(step, cache, (tokens.T, jnp.arange(LENGTH)))
    expected = apply(CONFIG, params, tokens)
    np.testing.assert_allclose(logits.swapaxes(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_cache_of_bfloat16_is_near_the_full_pass():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params, tokens = make_params(config), make_tokens()
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    logits, cache = decode(config, params, tokens, positions, BLOCKS["tokens"])
    expected = apply(config, params, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.keys)} == {jnp.dtype(jnp.bfloat16)}
    assert jnp.abs(logits - expected).max() < 0.03 * jnp.abs(expected).max()


def test_bad_shapes_name_the_argument():
    params, tokens = make_params(CONFIG), make_tokens()
    cache = networks.init_cache(CONFIG, 3, LENGTH - 1)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    with pytest.raises(ValueError, match="tokens must fit the cache's 8 slots, got 9"):
        networks.decode_step(CONFIG, params, tokens, cache, positions)
    with pytest.raises(ValueError, match="positions"):
        networks.decode_step(CONFIG, params, tokens[:, :2], cache, positions)
