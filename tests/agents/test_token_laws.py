"""The laws of a token, counted over a grid of uniform numbers: every frequency is then exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import token_laws

GRID = 4000
LOGITS = np.array([0.3, -1.2, 2.0, 2.0, -np.inf, 0.9], np.float32)
LAWS = {
    "plain": {},
    "warm": {"temperature": 2.5},
    "cold": {"temperature": 0.05},
    "top_k": {"top_k": 3},
    "top_k_of_equals": {"top_k": 1},
    "top_k_of_all": {"top_k": 99},
    "top_p": {"top_p": 0.8},
    "top_p_tiny": {"top_p": 1e-6},
    "both": {"top_k": 4, "top_p": 0.6, "temperature": 1.7},
}


def numpy_law(logits, temperature=1.0, top_k=None, top_p=None):
    """The definition: sort, cut, normalise."""
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    weights /= weights.sum()
    if top_p is not None:
        inside = np.cumsum(weights) - weights < top_p
        weights = np.where(inside, weights, 0) / weights[inside].sum()
    law = np.zeros(len(logits))
    law[order] = weights
    return law


@functools.partial(jax.jit, static_argnames=("top_k",))
def draws(logits, temperature=1.0, top_k=None, top_p=None):
    uniform = (jnp.arange(GRID) + 0.5) / GRID
    rows = jnp.broadcast_to(logits, (GRID, logits.shape[0]))
    return token_laws.draw(uniform, rows, temperature=temperature, top_k=top_k, top_p=top_p)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_frequencies_and_log_probs_are_those_of_the_law(law):
    drawn = draws(LOGITS, **law)
    expected = numpy_law(LOGITS.astype(np.float64), **law)
    counts = np.bincount(drawn.tokens, minlength=len(LOGITS)) / GRID
    # A grid cell at either end of each token's interval may fall to its neighbour.
    np.testing.assert_allclose(counts, expected, atol=2 / GRID)
    assert (counts[expected == 0] == 0).all()
    with np.errstate(divide="ignore"):
        log_law, log_softmax = np.log(expected), np.log(numpy_law(LOGITS.astype(np.float64)))
    np.testing.assert_allclose(drawn.sampling_log_probs, log_law[drawn.tokens], atol=2e-5)
    np.testing.assert_allclose(drawn.log_probs, log_softmax[drawn.tokens], atol=1e-6)


def test_the_ends_of_the_unit_interval_take_tokens_that_can_be_taken():
    # The first and the last token are impossible, and 1 - 2^-24 times a sum rounds to the sum.
    logits = jnp.array([[-jnp.inf, 1.0, 0.0, -jnp.inf]] * 2)
    uniform = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
    drawn = token_laws.draw(uniform, logits)
    np.testing.assert_array_equal(drawn.tokens, [1, 2])


def test_a_large_vocabulary_never_gives_an_impossible_token():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((64, 5000)).astype(np.float32)
    impossible = rng.random((64, 5000)) < 0.7
    drawn = token_laws.draw(
        jnp.asarray(rng.random(64), jnp.float32), jnp.where(impossible, -jnp.inf, logits)
    )
    assert not impossible[np.arange(64), np.asarray(drawn.tokens)].any()
    assert np.isfinite(drawn.log_probs).all()


def test_greedy_takes_the_lowest_of_equals():
    drawn = token_laws.greedy(jnp.asarray(LOGITS)[None])
    assert drawn.tokens.tolist() == [2]
    assert drawn.sampling_log_probs.tolist() == [0.0]
    np.testing.assert_allclose(drawn.log_probs, np.log(numpy_law(LOGITS)[2]), rtol=1e-5)


@pytest.mark.parametrize("draw", [token_laws.greedy, lambda x: token_laws.draw(jnp.zeros(1), x)])
def test_nan_is_not_hidden(draw):
    drawn = draw(jnp.array([[0.0, jnp.nan, 1.0]]))
    assert np.isnan(drawn.log_probs).all()
    assert np.isnan(drawn.sampling_log_probs).all()


@pytest.mark.parametrize(
    ("law", "error", "message"),
    [
        ((-0.1, None, None), ValueError, "temperature must be at least 0 and finite, got -0.1"),
        ((1.0, 0, None), ValueError, "top_k must be at least 1 or None, got 0"),
        ((1.0, 2.0, None), TypeError, "top_k must be an integer or None, got 2.0"),
        ((1.0, None, 0.0), ValueError, r"top_p must be in \(0, 1\] or None, got 0.0"),
        ((1.0, None, 1.1), ValueError, "top_p must be in"),
    ],
)
def test_impossible_laws_are_refused(law, error, message):
    with pytest.raises(error, match=message):
        token_laws.check(*law)
