"""The cyclic bench: antisymmetry, the circle, and that no reward explains it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import cyclic_bench, gold_bench

GOLD = gold_bench.make(jax.random.key(0), max_letters=2)
BENCH = cyclic_bench.make(GOLD)
TOKENS, MASK = gold_bench.enumerate_completions(5, 2)
PROMPT = jnp.array([4, 0, 1, 2])
# One program each: by itself every operation would be compiled for its shapes.
preference_probs = jax.jit(functools.partial(cyclic_bench.preference_probs, BENCH))


def matrix_of(bench):
    tokens, mask = jnp.asarray(TOKENS), jnp.asarray(MASK)
    return jax.jit(functools.partial(cyclic_bench.preference_matrix, bench))(PROMPT, tokens, mask)


def numpy_style(prompt, tokens):
    """The definition, letter by letter."""
    letters = []
    for token in tokens:
        if token == 5:
            break
        letters.append((token + prompt[0]) % 3)
    counts = [letters.count(style) for style in range(3)]
    return counts.index(max(counts))


def test_styles_are_the_most_frequent_class():
    prompts = jnp.broadcast_to(PROMPT, (len(TOKENS), 4))
    styles = cyclic_bench.styles(BENCH, prompts, jnp.asarray(TOKENS), jnp.asarray(MASK))
    expected = [numpy_style(np.asarray(PROMPT), row) for row in TOKENS]
    np.testing.assert_array_equal(styles, expected)
    assert set(expected) == {0, 1, 2}


def test_masked_tokens_are_not_read():
    tokens = jnp.array([[1, 5, 2], [1, 5, 0]])
    mask = jnp.array([[1.0, 1, 0], [1, 1, 0]])
    prompts = jnp.broadcast_to(PROMPT, (2, 4))
    first, second = cyclic_bench.styles(BENCH, prompts, tokens, mask)
    assert int(first) == int(second)
    both = preference_probs(prompts, tokens, mask, tokens[::-1], mask)
    np.testing.assert_allclose(both, 0.5, atol=1e-6)


def test_matrix_is_antisymmetric_and_agrees_with_pairs():
    matrix = matrix_of(BENCH)
    np.testing.assert_allclose(matrix + matrix.T, 1.0, atol=1e-6)
    first, second = np.random.default_rng(0).integers(0, len(TOKENS), (2, 50))
    prompts = jnp.broadcast_to(PROMPT, (50, 4))
    sides = [jnp.asarray(x[rows]) for rows in (first, second) for x in (TOKENS, MASK)]
    pairs = preference_probs(prompts, *sides)
    np.testing.assert_allclose(pairs, matrix[first, second], atol=1e-6)


def test_styles_beat_each_other_in_a_circle_by_the_probabilities_given():
    plain = cyclic_bench.make(GOLD, cycle=(0.9, 0.7, 0.6), quality_weight=0.0)
    matrix = matrix_of(plain)
    rows = [next(i for i, t in enumerate(TOKENS) if numpy_style([4], t) == s) for s in range(3)]
    circle = np.asarray(matrix)[np.ix_(rows, rows)]
    expected = [[0.5, 0.9, 0.4], [0.1, 0.5, 0.7], [0.6, 0.3, 0.5]]
    np.testing.assert_allclose(circle, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bench": gold_bench.make(jax.random.key(0), num_letters=2)}, "at least 3 letters, got 2"),
        ({"cycle": (0.9, 1.0, 0.5)}, "cycle must hold three probabilities"),
        ({"quality_weight": -1.0}, "quality_weight must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cyclic_bench.make(**{"bench": GOLD, **arguments})
