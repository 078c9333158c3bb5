"""The chunked path equals the plain one, and never holds an array of tokens times vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

FEATURES, VOCABULARY = 6, 11


def draw(shape, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((*shape, FEATURES)), dtype)
    unembedding = jnp.asarray(rng.standard_normal((FEATURES, VOCABULARY)), dtype)
    bias = jnp.asarray(rng.standard_normal(VOCABULARY), dtype)
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, shape), jnp.int32)
    weights = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return hidden, unembedding, bias, tokens, weights


def plain(hidden, unembedding, bias, tokens, softcap):
    logits = jnp.dot(hidden, unembedding, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return losses.token_log_probs(logits, tokens)


def chunked(hidden, unembedding, bias, tokens, softcap, chunk_size=4):
    return losses.chunked_token_log_probs(
        hidden, unembedding, tokens, chunk_size=chunk_size, softcap=softcap, bias=bias
    )


@pytest.mark.parametrize(
    ("shape", "chunk_size"), [((7,), 1), ((7,), 4), ((2, 5), 4), ((2, 1, 3), 1000)]
)
@pytest.mark.parametrize(("with_bias", "softcap"), [(False, None), (True, None), (True, 2.5)])
def test_equals_the_plain_path(shape, chunk_size, with_bias, softcap):
    hidden, unembedding, bias, tokens, weights = draw(shape)
    moving = (0, 1, 2) if with_bias else (0, 1)
    bias = bias if with_bias else None

    def total(function, **hyper):
        return jax.jit(
            jax.value_and_grad(
                lambda *a: jnp.sum(weights * function(*a, tokens, softcap, **hyper)), moving
            )
        )(hidden, unembedding, bias)

    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5),
        total(chunked, chunk_size=chunk_size),
        total(plain),
    )


def test_bfloat16_is_accumulated_in_float32():
    hidden, unembedding, bias, tokens, weights = draw((9,), jnp.bfloat16)
    found = chunked(hidden, unembedding, bias, tokens, None)
    exact = plain(
        hidden.astype(jnp.float32),
        unembedding.astype(jnp.float32),
        bias.astype(jnp.float32),
        tokens,
        None,
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)

    def slopes(function, *inputs):
        def total(hidden, unembedding, bias):
            return jnp.sum(weights * function(hidden, unembedding, bias, tokens, None))

        return jax.jit(jax.grad(total, (0, 1, 2)))(*inputs)

    low_inputs = (hidden, unembedding, bias)
    high_inputs = (x.astype(jnp.float32) for x in low_inputs)
    for low, high in zip(slopes(chunked, *low_inputs), slopes(plain, *high_inputs), strict=True):
        assert low.dtype == jnp.bfloat16
        # Rounded once, at the end: half a unit in the last place is 2^-9.
        np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-8, atol=1e-5)


def test_vmap_over_heads_and_over_rows():
    hidden, unembedding, _, tokens, _ = draw((3, 5))
    heads = jnp.stack([unembedding, -unembedding, 2 * unembedding])

    def run(h, w, y):
        return losses.chunked_token_log_probs(h, w, y, chunk_size=2)

    expected = jnp.stack([plain(hidden[i], heads[i], None, tokens[i], None) for i in range(3)])
    found = jax.jit(jax.vmap(run))(hidden, heads, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.vmap(jax.grad(lambda h, w, y: run(h, w, y).sum(), 1))
    slope = jax.jit(gradient)(hidden, heads, tokens)
    one = jax.grad(lambda w: plain(hidden[1], w, None, tokens[1], None).sum())(heads[1])
    np.testing.assert_allclose(slope[1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_hidden_states_may_hold_anything(softcap, poison):
    hidden, unembedding, bias, tokens, _ = draw((6,))
    mask = jnp.array([1, 1, 0, 1, 0, 1])

    def run(hidden, unembedding, bias):
        log_probs = chunked(hidden, unembedding, bias, tokens, softcap)
        return losses.sequence_log_probs(log_probs, mask)

    slopes = jax.jit(jax.value_and_grad(run, (0, 1, 2)))
    expected = slopes(hidden, unembedding, bias)
    found = slopes(jnp.where(mask[:, None] != 0, hidden, poison), unembedding, bias)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_nan_and_moves_nothing(token):
    hidden, unembedding, _, tokens, _ = draw((5,))
    wrong = tokens.at[2].set(token)
    found = losses.chunked_token_log_probs(hidden, unembedding, wrong, chunk_size=2)
    expected = losses.token_log_probs(hidden @ unembedding, wrong)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(found[2])
    slope = jax.grad(
        lambda w: losses.chunked_token_log_probs(hidden, w, wrong, chunk_size=2).sum()
    )(unembedding)
    kept = jnp.array([0, 1, 3, 4])
    other = jax.grad(lambda w: losses.token_log_probs(hidden[kept] @ w, tokens[kept]).sum())
    np.testing.assert_allclose(slope, other(unembedding), rtol=1e-4, atol=1e-5)


def array_sizes(jaxpr):
    """Yields the size of every intermediate of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(getattr(variable.aval, "shape", ())))
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from array_sizes(inner)


def largest(function, *inputs):
    return max(array_sizes(jax.make_jaxpr(function)(*inputs).jaxpr))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_array_of_tokens_times_vocabulary(softcap):
    # 12 x 8 tokens, 80 words: logits would be 7680 numbers; chunks of 16 are 1280.
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((12, 8, 4)), jnp.float32)
    unembedding, bias = jnp.ones((4, 80)), jnp.zeros(80)
    tokens = jnp.asarray(rng.integers(0, 80, (12, 8)))

    def total(function, **hyper):
        return lambda *a: function(*a, tokens, softcap, **hyper).sum()

    inputs = (hidden, unembedding, bias)
    for transform in (lambda f: f, lambda f: jax.value_and_grad(f, (0, 1, 2))):
        assert largest(transform(total(chunked, chunk_size=16)), *inputs) <= 16 * 80
        # The walk would have seen it.
        assert largest(transform(total(plain)), *inputs) >= 96 * 80


def test_peak_memory_is_a_fraction_of_the_plain_path():
    hidden, unembedding = jnp.ones((1024, 32)), jnp.ones((32, 2048))
    tokens = jnp.zeros(1024, jnp.int32)

    def peak(function):
        gradient = jax.jit(jax.value_and_grad(lambda h, w: function(h, w).sum(), (0, 1)))
        memory = gradient.lower(hidden, unembedding).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    chunks = peak(lambda h, w: losses.chunked_token_log_probs(h, w, tokens, chunk_size=64))
    assert chunks <= peak(lambda h, w: losses.token_log_probs(h @ w, tokens)) / 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens": jnp.zeros((4, 1), jnp.int32)}, "tokens"),
        ({"tokens": jnp.zeros(4)}, "tokens"),
        ({"unembedding": jnp.zeros((5, VOCABULARY))}, "unembedding"),
        ({"unembedding": jnp.zeros((FEATURES, VOCABULARY), jnp.int32)}, "unembedding"),
        ({"bias": jnp.zeros(3)}, "bias"),
        ({"hidden": jnp.zeros((4, FEATURES), jnp.int32)}, "hidden"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"softcap": 0.0}, "softcap"),
    ],
)
def test_errors_name_the_argument(change, named):
    arguments = {
        "hidden": jnp.zeros((4, FEATURES)),
        "unembedding": jnp.zeros((FEATURES, VOCABULARY)),
        "tokens": jnp.zeros(4, jnp.int32),
        **change,
    }
    with pytest.raises(Exception, match=named):
        losses.chunked_token_log_probs(**arguments)
