"""A-LoL and its relatives: definitions, where they come to rest, what they equal, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def value_and_slope(loss, *arrays):
    """Losses, and the derivative of each by its own log-probabilities."""

    def total(log_probs, *rest):
        values = loss(log_probs, *rest)
        return values.sum(), values

    with jax.enable_x64(True):
        run = jax.jit(jax.grad(total, has_aux=True))
        slopes, values = run(*map(jnp.asarray, arrays))
        return np.asarray(values), np.asarray(slopes)


def completions(seed, rows=200):
    rng = np.random.default_rng(seed)
    policy = -np.abs(rng.standard_normal(rows))
    return policy, policy + rng.standard_normal(rows), rng.standard_normal(rows)


def tokens(seed, rows=30, steps=5):
    rng = np.random.default_rng(seed)
    policy = -np.abs(rng.standard_normal((rows, steps)))
    mask = rng.integers(0, 2, (rows, steps))
    mask[0] = 0
    return policy, policy + rng.standard_normal((rows, steps)), mask, rng.standard_normal(rows)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.9, np.inf])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_values_and_gradients_as_printed(epsilon, beta):
    policy, reference, advantages = completions(0)
    ratios = np.exp(policy - reference)
    weights = np.maximum(advantages, 0) * np.clip(ratios, 1 - epsilon, 1 + epsilon)
    values, slopes = value_and_slope(
        lambda *a: losses.alol_loss(*a, clip_epsilon=epsilon, beta=beta),
        *(policy, reference, advantages),
    )
    np.testing.assert_allclose(values, -weights * policy + beta * np.log(ratios), atol=1e-12)
    np.testing.assert_allclose(slopes, beta - weights, atol=1e-12)


def test_bad_completions_teach_nothing():
    policy, reference, advantages = completions(1)
    values, slopes = value_and_slope(losses.alol_loss, policy, reference, -np.abs(advantages))
    np.testing.assert_array_equal(values, np.zeros(200))
    np.testing.assert_array_equal(slopes, np.zeros(200))


def test_at_the_reference_all_ratios_are_one():
    policy, _, advantages = completions(2)
    expected = value_and_slope(losses.policy_gradient_loss, policy, np.maximum(advantages, 0))
    for epsilon in (0.0, 0.9, np.inf):
        found = value_and_slope(
            lambda *a, epsilon=epsilon: losses.alol_loss(*a, clip_epsilon=epsilon),
            *(policy, policy, advantages),
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def expected_slope(data, loss):
    """The gradient by the logits, at a law other than the data's, of an expectation over arms."""
    logits = np.array([0.3, -0.5, 0.1, 0.6])
    with jax.enable_x64(True):
        slope = jax.grad(lambda x: jnp.asarray(data) @ loss(jax.nn.log_softmax(x)))
        law = np.exp(logits) / np.exp(logits).sum()
        return np.asarray(slope(jnp.asarray(logits))), law


DATA, ADVANTAGES = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1.0, -2.0, 0.5, 3.0])


def test_unclipped_on_data_of_the_reference_it_is_a_policy_gradient():
    # Of the positive part of the advantage: importance weights make the data the policy's own.
    found, law = expected_slope(
        DATA,
        lambda lp: losses.alol_loss(
            lp, jnp.log(jnp.asarray(DATA)), jnp.asarray(ADVANTAGES), clip_epsilon=np.inf
        ),
    )
    gains = np.maximum(ADVANTAGES, 0)
    np.testing.assert_allclose(found, -law * (gains - law @ gains), atol=1e-12)


def test_without_a_reference_it_rests_at_the_weighted_data():
    # Weighted likelihood: pi is proportional to data times positive advantage, (.4, 0, .1, .3).
    rest = np.array([0.5, 1e-300, 0.125, 0.375])

    def expected(logits):
        log_probs = jax.nn.log_softmax(logits)
        arrays = log_probs, jnp.zeros(4), jnp.asarray(ADVANTAGES)
        return jnp.asarray(DATA) @ losses.alol_loss(*arrays, clip_epsilon=0.0)

    with jax.enable_x64(True):
        slope = jax.grad(expected)(jnp.log(jnp.asarray(rest)))
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    found = losses.priority_weights(jnp.asarray(ADVANTAGES, jnp.float32))
    np.testing.assert_allclose(found, np.maximum(ADVANTAGES, 0) / 4.5, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.9, np.inf])
def test_ratios_of_tokens_as_printed(epsilon):
    policy, reference, mask, advantages = tokens(3)
    weights = np.clip(np.exp(policy - reference), 1 - epsilon, 1 + epsilon)
    weights = weights * mask * np.maximum(advantages, 0)[:, None]
    values, slopes = value_and_slope(
        lambda *a: losses.alol_token_loss(*a, clip_epsilon=epsilon),
        *(policy, reference, mask, advantages),
    )
    np.testing.assert_allclose(values, -(weights * policy).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(slopes, -weights, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_gold_as_printed(floor):
    policy, _, mask, rewards = tokens(4)
    weights = np.maximum(np.exp(policy), floor) * mask * rewards[:, None]
    values, slopes = value_and_slope(
        lambda *a: losses.gold_loss(*a, floor=floor), policy, mask, rewards
    )
    np.testing.assert_allclose(values, -(weights * policy).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(slopes, -weights, atol=1e-12)


def test_gold_without_a_floor_undoes_uniform_data():
    rewards = np.array([1.0, 0.2, 0.0, 3.0])
    found, law = expected_slope(
        np.full(4, 0.25),
        lambda lp: losses.gold_loss(lp[:, None], jnp.ones((4, 1)), jnp.asarray(rewards), floor=0.0),
    )
    np.testing.assert_allclose(found, -law * (rewards - law @ rewards) / 4, atol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_tokens_may_hold_anything(poison):
    policy, reference, mask, advantages = tokens(5)

    def total(policy, reference):
        earned, counted = jnp.asarray(advantages, jnp.float32), jnp.asarray(mask)
        alol = losses.alol_token_loss(policy, reference, counted, earned)
        return alol.sum() + losses.gold_loss(policy, counted, earned).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    clean = [jnp.asarray(array, jnp.float32) for array in (policy, reference)]
    dirty = [jnp.where(mask != 0, array, poison) for array in clean]
    found, expected = run(*dirty), run(*clean)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(found[0])


def test_priorities():
    found = losses.priority_weights(jnp.array([[1.0, -2.0, 3.0], [-1.0, 0.0, -5.0]]))
    np.testing.assert_allclose(found, [[0.25, 0, 0.75], [0, 0, 0]], rtol=1e-6)


def test_numbers_may_be_traced():
    policy, reference, advantages = (
        jnp.asarray(array[:4], jnp.float32) for array in completions(6)
    )

    def run(clip, beta):
        return losses.alol_loss(policy, reference, advantages, clip_epsilon=clip, beta=beta)

    expected = run(0.5, 0.1)
    np.testing.assert_allclose(jax.jit(run)(0.5, 0.1), expected, rtol=1e-5, atol=1e-6)
    each = jax.jit(run)(jnp.full(4, 0.5), jnp.full(4, 0.1))
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)


ROW = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda: losses.alol_loss(*(jnp.ones(2),) * 3, clip_epsilon=-0.1), "clip_epsilon"),
        (lambda: losses.alol_loss(*(jnp.ones(2),) * 3, beta=-0.1), "beta"),
        (
            lambda: losses.alol_token_loss(ROW, ROW, ROW, jnp.ones(2), clip_epsilon=-1),
            "clip_epsilon",
        ),
        (lambda: losses.gold_loss(ROW, ROW, jnp.ones(2), floor=1.5), "floor"),
    ],
)
def test_wrong_numbers_are_named(run, named):
    with pytest.raises(ValueError, match=named):
        run()


def test_wrong_shapes_are_named():
    with pytest.raises(Exception, match="advantages"):
        losses.alol_token_loss(ROW, ROW, ROW, jnp.ones((2, 1)))
    with pytest.raises(Exception, match="rewards"):
        losses.gold_loss(ROW, ROW, jnp.ones(3))
    with pytest.raises(Exception, match="reference_log_probs"):
        losses.alol_loss(jnp.ones(3), jnp.ones((3, 1)), jnp.ones(3))
