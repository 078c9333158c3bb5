"""P3O: the specification, the printed minimum, expectations under a behaviour, identities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

BOTH = pytest.mark.parametrize("loss", [losses.p3o_loss, losses.p3o_separate_loss])
# Specification E.10.
POLICY, BEHAVIOUR = np.array([[-2.0, -2.5], [-3.0, -2.0]]), np.array([[-2.2, -2.4], [-2.9, -2.3]])
REWARDS = np.array([[1.0, 0.4], [0.2, 0.9]])


def value_and_slope(loss, *arrays, **hyper):
    """Losses [B], and the derivative of each by its two log-probabilities [B, 2]."""

    def total(log_probs, *rest):
        values = loss(log_probs, *rest, **hyper)
        return values.sum(), values

    with jax.enable_x64(True):
        run = jax.jit(jax.grad(total, has_aux=True))
        slopes, values = run(*(jnp.asarray(array, jnp.float64) for array in arrays))
        return np.asarray(values), np.asarray(slopes)


def pairs(seed, rows=300):
    rng = np.random.default_rng(seed)
    policy, rewards = rng.standard_normal((2, rows, 2))
    return policy, policy + rng.standard_normal((rows, 2)) / 3, rewards


def test_batch_of_the_specification():
    ratios = np.exp(POLICY - BEHAVIOUR)
    np.testing.assert_allclose(
        ratios, [[1.22140276, 0.90483742], [0.90483742, 1.34985881]], atol=1e-8
    )
    arrays = POLICY, BEHAVIOUR, REWARDS
    values, slopes = value_and_slope(losses.p3o_separate_loss, *arrays, clip_epsilon=0.2)
    np.testing.assert_allclose(-values, [-0.00580980, -0.04745925], atol=1e-8)
    np.testing.assert_allclose(values.mean(), 0.02663453, atol=1e-8)
    np.testing.assert_allclose(-slopes, [[0, -0.33155128], [-0.42749097, 0]], atol=1e-8)
    values, slopes = value_and_slope(losses.p3o_loss, *arrays, clip_epsilon=0.2)
    np.testing.assert_allclose(-values, [0.13262051, 0.34199277], atol=1e-8)
    np.testing.assert_allclose(values.mean(), -0.23730664, atol=1e-8)
    # Both pairs have moved by more than .2 where they should: .3 and .4 of the log-ratio.
    np.testing.assert_array_equal(slopes, np.zeros((2, 2)))


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.6])
def test_joint_clip_as_it_is_printed(epsilon):
    policy, behaviour, rewards = pairs(0)
    values, slopes = value_and_slope(
        losses.p3o_loss, policy, behaviour, rewards, clip_epsilon=epsilon
    )
    k = (rewards[:, 0] - rewards[:, 1]) * np.exp((policy - behaviour).sum(axis=1))
    u, before = policy[:, 0] - policy[:, 1], behaviour[:, 0] - behaviour[:, 1]
    objective = np.minimum(k * u, k * np.clip(u, before - epsilon, before + epsilon)) / 2
    np.testing.assert_allclose(values, -objective, atol=1e-12)
    silent = (np.sign(k) * (u - before)) > epsilon
    expected = np.where(silent, 0, -k / 2)
    np.testing.assert_allclose(slopes, np.stack([expected, -expected], axis=1), atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.4, 0.8])
def test_separate_clip_as_it_is_printed(epsilon):
    policy, behaviour, rewards = pairs(1)
    values, slopes = value_and_slope(
        losses.p3o_separate_loss, policy, behaviour, rewards, clip_epsilon=epsilon
    )
    ratios = np.exp(policy - behaviour)
    k = (rewards - rewards[:, ::-1]) * ratios[:, ::-1]
    terms = np.minimum(k * ratios, k * np.clip(ratios, 1 - epsilon, 1 + epsilon))
    np.testing.assert_allclose(values, -terms.sum(axis=1) / 2, atol=1e-12)
    silent = np.where(k > 0, ratios > 1 + epsilon, ratios < 1 - epsilon)
    np.testing.assert_allclose(slopes, np.where(silent, 0, -k * ratios / 2), atol=1e-12)
    # Where one of the two is clipped the other may go on.
    assert (silent.sum(axis=1) == 1).any()


@BOTH
def test_unclipped_they_have_one_gradient(loss):
    policy, behaviour, rewards = pairs(2)
    _, slopes = value_and_slope(loss, policy, behaviour, rewards, clip_epsilon=np.inf)
    weight = (rewards[:, 0] - rewards[:, 1]) * np.exp((policy - behaviour).sum(axis=1)) / 2
    np.testing.assert_allclose(slopes, np.stack([-weight, weight], axis=1), atol=1e-12)


@BOTH
def test_expected_gradient_under_any_behaviour(loss):
    # E10a: three arms, all nine pairs of them with the behaviour's probabilities.
    logits, rewards = np.array([0.3, -0.2, 0.1]), np.array([1, -0.5, 0.3])
    law = np.exp(logits) / np.exp(logits).sum()
    exact = law * (rewards - law @ rewards)
    np.testing.assert_allclose(exact, [0.25211399, -0.22221830, -0.02989570], atol=1e-8)
    arms = np.array(list(itertools.product(range(3), repeat=2)))
    for old in (np.array([0.1, 0.0, 0.2]), np.array([2.0, -1.0, 0.0]), logits):
        log_behaviour = old - np.log(np.exp(old).sum())
        chances = np.exp(log_behaviour[arms].sum(axis=1))

        def expected(x, chances=chances, log_behaviour=log_behaviour):
            values = loss(
                jax.nn.log_softmax(x)[arms],
                jnp.asarray(log_behaviour[arms]),
                jnp.asarray(rewards[arms]),
                clip_epsilon=np.inf,
            )
            return jnp.asarray(chances) @ values

        with jax.enable_x64(True):
            found = jax.grad(expected)(jnp.asarray(logits))
        np.testing.assert_allclose(-found, exact, atol=1e-12)


@BOTH
def test_what_the_prompt_adds_to_both_rewards_changes_nothing(loss):
    policy, behaviour, rewards = pairs(3)
    shifted = rewards + 100 * np.random.default_rng(4).standard_normal((300, 1))
    expected = value_and_slope(loss, policy, behaviour, rewards)
    found = value_and_slope(loss, policy, behaviour, shifted)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    # The surrogate of PPO, without a baseline, does change.
    clipped = value_and_slope(losses.ppo_clip_loss, policy, behaviour, rewards, clip_epsilon=0.2)
    moved = value_and_slope(losses.ppo_clip_loss, policy, behaviour, shifted, clip_epsilon=0.2)
    assert np.abs(clipped[1] - moved[1]).max() > 10


@BOTH
def test_the_order_of_the_two_does_not_matter(loss):
    policy, behaviour, rewards = pairs(5)
    values, slopes = value_and_slope(loss, policy, behaviour, rewards)
    swapped = value_and_slope(loss, *(array[:, ::-1] for array in (policy, behaviour, rewards)))
    np.testing.assert_allclose(swapped[0], values, atol=1e-12)
    np.testing.assert_allclose(swapped[1], slopes[:, ::-1], atol=1e-12)


@BOTH
def test_on_policy_it_is_half_of_copg(loss):
    # CoPG's gradient is minus (R - R') (grad log pi - grad log pi') of regularised rewards R.
    policy, reference, rewards = pairs(6)
    regularised = rewards - 0.3 * (policy - reference)
    _, slopes = value_and_slope(loss, policy, policy, regularised, clip_epsilon=0.2)
    weight = regularised[:, 0] - regularised[:, 1]
    np.testing.assert_allclose(slopes, np.stack([-weight, weight], axis=1) / 2, atol=1e-12)
    _, theirs = value_and_slope(losses.copg_loss, policy, reference, rewards, beta=0.3)
    np.testing.assert_allclose(slopes, theirs / 2, atol=1e-12)


@BOTH
def test_numbers_of_each_pair_and_traced(loss):
    arrays = [jnp.asarray(array, jnp.float32) for array in pairs(7, rows=4)]
    expected = loss(*arrays, clip_epsilon=0.2)
    run = jax.jit(lambda epsilon: loss(*arrays, clip_epsilon=epsilon))
    np.testing.assert_allclose(run(0.2), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(jnp.full(4, 0.2)), expected, rtol=1e-5, atol=1e-6)


@BOTH
def test_refused(loss):
    with pytest.raises(ValueError, match="clip_epsilon"):
        loss(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 2)), clip_epsilon=-0.1)
    with pytest.raises(Exception, match="log_probs"):
        loss(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(Exception, match="rewards"):
        loss(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 1)))
