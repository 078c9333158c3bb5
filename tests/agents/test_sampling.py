"""What is sampled, against full forward passes, enumerated laws and the shapes of padding."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bellmax import losses
from bellmax.agents import decoders, language, networks, sampling

CONFIG = networks.TransformerConfig(
    vocab_size=11, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, embed_dim=12, mlp_dim=16
)
BATCH, WIDTH, NEW = 4, 5, 7
MODEL = functools.partial(networks.apply, CONFIG)
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (BATCH, WIDTH)), jnp.int32)
MASKS = {
    "none": None,
    "left": np.arange(WIDTH) >= np.array([0, 2, 4, 1])[:, None],
    "right": np.arange(WIDTH) < np.array([5, 3, 1, 4])[:, None],
    "holes": np.array([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]),
}


@functools.cache
def make_params(seed=0):
    params = networks.init(CONFIG, jax.random.key(seed))
    # Larger than at a fresh start: logits that differ from token to token.
    return jax.tree.map(lambda leaf: 3.0 * leaf, params)


@functools.partial(jax.jit, static_argnames="apply")
def full_pass(params, tokens, apply=MODEL):
    """Log-probability of each token given those before it, by one pass over the whole row."""
    return language.completion_log_probs(language.LanguageModel(apply=apply), params, tokens)


def completion_part(values, mask):
    return [row[counted != 0] for row, counted in zip(values, mask, strict=True)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_log_probs_are_those_of_a_full_pass(mask, cached):
    apply = MODEL if cached else lambda params, tokens: networks.apply(CONFIG, params, tokens)
    prompts = PROMPTS if mask is None else jnp.where(mask, PROMPTS, -7 if cached else 3)
    completion = sampling.generate(
        apply,
        make_params(),
        prompts,
        jax.random.key(1),
        max_new_tokens=NEW,
        prompt_mask=mask,
        stop_tokens=(3, 8),
    )
    tokens, counted = sampling.join(prompts, completion, prompt_mask=mask)
    expected = completion_part(full_pass(make_params(), tokens), counted)
    sampled = completion_part(completion.log_probs, completion.mask)
    for ours, full in zip(sampled, expected, strict=True):
        assert len(ours) >= 1
        np.testing.assert_allclose(ours, full, atol=1e-5)
    np.testing.assert_allclose(completion.log_probs, completion.sampling_log_probs, atol=1e-6)


def test_cache_padding_and_stacked_layers_change_nothing():
    mask = MASKS["left"]
    sample = functools.partial(
        sampling.generate, prompts=PROMPTS, key=jax.random.key(2), max_new_tokens=NEW
    )
    expected = sample(MODEL, make_params(), prompt_mask=mask)
    scanned = dataclasses.replace(CONFIG, scan_layers=True, remat=True)
    others = {
        "uncached": (lambda p, t: networks.apply(CONFIG, p, t), make_params(), mask),
        "stacked": (scanned, networks.stack_layers(make_params()), mask),
        "decode_step": (functools.partial(networks.decode_step, CONFIG), make_params(), mask),
        "model": (language.LanguageModel(apply=MODEL), make_params(), mask),
    }
    for name, (model, params, own_mask) in others.items():
        completion = sample(model, params, prompt_mask=own_mask)
        np.testing.assert_array_equal(completion.tokens, expected.tokens, err_msg=name)
        np.testing.assert_allclose(completion.log_probs, expected.log_probs, atol=1e-5)
    shifted = jnp.stack([jnp.roll(row, -s) for row, s in zip(PROMPTS, [0, 2, 4, 1], strict=True)])
    right = np.arange(WIDTH) < mask.sum(1)[:, None]
    moved = sample(MODEL, make_params(), prompts=shifted, prompt_mask=right)
    np.testing.assert_array_equal(moved.tokens, expected.tokens)


def test_greedy_follows_the_most_likely_token():
    completion = sampling.generate(
        MODEL, make_params(), PROMPTS, jax.random.key(0), max_new_tokens=NEW, temperature=0.0
    )
    # What follows a position does not reach it: rows of one length serve all steps.
    tokens, apply = np.pad(PROMPTS, ((0, 0), (0, NEW))), jax.jit(MODEL)
    for place in range(WIDTH, WIDTH + NEW):
        tokens[:, place] = np.argmax(apply(make_params(), tokens)[:, place - 1], axis=-1)
    np.testing.assert_array_equal(completion.tokens, tokens[:, WIDTH:])
    np.testing.assert_array_equal(completion.sampling_log_probs, 0.0)


def test_sampling_log_probs_are_those_of_the_truncated_law():
    completion = sampling.generate(
        MODEL,
        make_params(),
        PROMPTS,
        jax.random.key(3),
        max_new_tokens=NEW,
        temperature=0.7,
        top_k=3,
    )
    tokens = np.concatenate([PROMPTS, completion.tokens], axis=1)
    logits = np.asarray(networks.apply(CONFIG, make_params(), jnp.asarray(tokens)), np.float64)
    logits = logits[:, WIDTH - 1 : -1] / 0.7
    third = np.sort(logits, axis=-1)[..., -3:-2]
    weights = np.where(logits >= third, np.exp(logits), 0)
    law = weights / weights.sum(-1, keepdims=True)
    expected = np.take_along_axis(law, np.asarray(completion.tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(completion.sampling_log_probs, np.log(expected), atol=2e-5)


# The two-token policy of the spec's T-B6, with the prompt as token 2: p(0) = .7, p(0|0) = .6,
# p(0|1) = .2, and a uniform reference; mixed one token at a time with weight 1/2.
TABLE = jnp.log(jnp.array([[0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]))
TOKEN_LEVEL = {(0, 0): 0.33270422, (0, 1): 0.27165186, (1, 0): 0.13188131, (1, 1): 0.26376262}


def test_geometric_mixture_is_sampled_token_by_token():
    def table(params, tokens):
        return params[tokens]

    decoder = decoders.combine(
        (table, table), functools.partial(losses.geometric_mixture_logits, mixture=0.5)
    )
    completion = sampling.generate(
        decoder,
        (TABLE, jnp.zeros_like(TABLE)),
        jnp.full((4096, 1), 2, jnp.int32),
        jax.random.key(4),
        max_new_tokens=2,
    )
    probs = np.exp(np.asarray(completion.log_probs).sum(-1))
    for pair, expected in TOKEN_LEVEL.items():
        rows = (np.asarray(completion.tokens) == pair).all(-1)
        np.testing.assert_allclose(probs[rows], expected, rtol=1e-5)
        # Three standard errors of a frequency.
        assert abs(rows.mean() - expected) < 3 * np.sqrt(expected * (1 - expected) / 4096)


@pytest.mark.parametrize(("mixture", "place"), [(0.0, 0), (1.0, 1)])
def test_mixture_at_its_ends_is_one_of_its_models(mixture, place):
    params = (make_params(0), make_params(1))
    decoder = decoders.combine(
        (MODEL, MODEL), functools.partial(losses.geometric_mixture_logits, mixture=mixture)
    )
    key = jax.random.key(5)
    mixed = sampling.generate(decoder, params, PROMPTS, key, max_new_tokens=NEW)
    alone = sampling.generate(MODEL, params[place], PROMPTS, key, max_new_tokens=NEW)
    np.testing.assert_array_equal(mixed.tokens, alone.tokens)
    np.testing.assert_allclose(mixed.log_probs, alone.log_probs, atol=1e-5)


def test_stops_at_the_first_stop_token_and_runs_no_further():
    calls = []

    def countdown(params, tokens):
        jax.debug.callback(lambda: calls.append(1))
        # After token n comes n - 1 for certain.
        return jnp.where(jnp.arange(9) == tokens[..., None] - 1, 0.0, params)

    completion = sampling.generate(
        countdown,
        -jnp.inf,
        jnp.array([[4], [6]]),
        jax.random.key(0),
        max_new_tokens=50,
        stop_tokens=(2,),
    )
    jax.effects_barrier()
    assert len(calls) == 4
    np.testing.assert_array_equal(completion.tokens[:, :5], [[3, 2, 0, 0, 0], [5, 4, 3, 2, 0]])
    np.testing.assert_array_equal(completion.mask.sum(1), [2, 4])
    np.testing.assert_array_equal(completion.log_probs, 0.0)


def test_one_program_for_a_bucket():
    compiled: Any = sampling._generate
    before = compiled._cache_size()
    for seed, (temperature, top_p) in enumerate(itertools.product((0.5, 1.0), (0.5, 0.9))):
        prompts = jnp.roll(PROMPTS, seed, axis=1)
        # Made anew each time, as a caller would who does not think of compilation.
        model = functools.partial(networks.apply, dataclasses.replace(CONFIG))
        sampling.generate(
            model,
            make_params(),
            prompts,
            jax.random.key(seed),
            max_new_tokens=3,
            temperature=temperature,
            top_k=4,
            top_p=top_p,
        )
    assert compiled._cache_size() == before + 1


def test_rows_sample_by_their_index_on_every_layout():
    key = jax.random.key(6)
    whole = sampling.generate(MODEL, make_params(), PROMPTS, key, max_new_tokens=NEW)
    for rows in ([2, 3], [0]):
        index = jnp.array(rows)
        part = sampling.generate(
            MODEL, make_params(), PROMPTS[index], key, max_new_tokens=NEW, index=index
        )
        np.testing.assert_array_equal(part.tokens, whole.tokens[index])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, same = PartitionSpec("data"), PartitionSpec()

    def local(params, prompts, index):
        return sampling.generate(
            MODEL, params, prompts, key, max_new_tokens=NEW, index=index, stop_tokens=(99,)
        )

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(same, split, split), out_specs=split)
    spread = jax.jit(mapped)(make_params(), jnp.asarray(PROMPTS), jnp.arange(BATCH))
    np.testing.assert_array_equal(spread.tokens, whole.tokens)


def test_maps_over_keys():
    keys = jax.random.split(jax.random.key(7), 3)

    def sample(key):
        return sampling.generate(MODEL, make_params(), PROMPTS, key, max_new_tokens=2)

    mapped = jax.vmap(sample)(keys)
    np.testing.assert_array_equal(mapped.tokens[1], sample(keys[1]).tokens)


def test_nothing_carries_a_gradient():
    def total(params):
        completion = sampling.generate(MODEL, params, PROMPTS, jax.random.key(0), max_new_tokens=2)
        return completion.log_probs.sum()

    gradient = jax.grad(total)(make_params())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_join_puts_prompt_and_completion_together_on_the_left():
    completion = sampling.Completion(
        tokens=jnp.array([[7, 8, 0], [9, 0, 0]]),
        log_probs=jnp.zeros((2, 3)),
        sampling_log_probs=jnp.zeros((2, 3)),
        mask=jnp.array([[1.0, 1, 0], [1, 0, 0]]),
    )
    tokens, mask = sampling.join(
        jnp.array([[5, 1, 2], [3, 4, 5]]), completion, prompt_mask=jnp.array([[0, 1, 1], [1, 1, 0]])
    )
    np.testing.assert_array_equal(tokens, [[1, 2, 7, 8, 0, 0], [3, 4, 9, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": jnp.ones((2, 3))}, TypeError, "prompts must hold integers"),
        ({"prompts": jnp.ones(3, int)}, ValueError, r"prompts must be \[B, P\]"),
        ({"prompt_mask": jnp.ones((4, 1))}, ValueError, r"prompt_mask must have prompts' shape"),
        ({"index": jnp.arange(3)}, ValueError, "index must have shape"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be an integer, got 2.0"),
        ({"stop_tokens": 3}, TypeError, "stop_tokens must be a sequence of ids, got 3"),
        ({"stop_tokens": (-1,)}, ValueError, "stop_tokens must not be negative"),
        ({"top_p": 0.0}, ValueError, "top_p must be in"),
        ({"decode_fn": 3}, TypeError, "decode_fn must be a decoder"),
        (
            {"decode_fn": decoders.combine((MODEL,), jnp.abs)},
            ValueError,
            "params must be a tuple of 1",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"decode_fn": MODEL, "params": {}, "prompts": PROMPTS, "key": jax.random.key(0)}
    arguments |= {"max_new_tokens": 2} | change
    with pytest.raises(error, match=message):
        sampling.generate(**arguments)


def test_options_that_keep_every_token_draw_what_no_option_draws():
    sample = functools.partial(
        sampling.generate, MODEL, make_params(), PROMPTS, jax.random.key(4), max_new_tokens=3
    )
    plain = sample()
    for same in (sample(top_k=11), sample(top_k=100), sample(top_p=1.0)):
        jax.tree.map(np.testing.assert_array_equal, same, plain)


def test_decodes_in_double_precision_and_from_half_precision_logits():
    small = dataclasses.replace(CONFIG, num_layers=1)
    model = functools.partial(networks.apply, small)
    params, prompts = networks.init(small, jax.random.key(0)), np.array(PROMPTS[:2])
    sample = functools.partial(
        sampling.generate, key=jax.random.key(1), max_new_tokens=2, temperature=0
    )
    plain = sample(model, params, jnp.asarray(prompts))
    with jax.enable_x64(True):
        wide = sample(model, params, jnp.asarray(prompts, jnp.int64))
    np.testing.assert_allclose(wide.log_probs, plain.log_probs, atol=1e-5)
    halved = decoders.combine((model,), lambda logits: logits.astype(jnp.bfloat16))
    found = sample(halved, (params,), jnp.asarray(prompts))
    assert found.log_probs.dtype == jnp.float32
    assert np.isfinite(found.log_probs).all()


def test_combining_nothing_is_refused():
    with pytest.raises(ValueError, match="models must hold at least one model"):
        decoders.combine((), jnp.maximum)
