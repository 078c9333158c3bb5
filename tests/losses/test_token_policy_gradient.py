"""Losses and rewards of tokens: the definitions as loops, enumerated completions, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses


def batch(seed, rows=5, steps=6):
    """Log-probabilities under three policies, a mask with gaps and an empty row, float64."""
    rng = np.random.default_rng(seed)
    policy = -np.abs(rng.standard_normal((rows, steps))) - 0.1
    behaviour, reference = policy + rng.standard_normal((2, rows, steps)) / 3
    mask = (rng.uniform(size=(rows, steps)) < 0.7).astype(np.int32)
    mask[0] = 0
    return policy, behaviour, reference, mask, rng.standard_normal(rows)


def in_float64(function, *arrays):
    with jax.enable_x64(True):
        found = jax.jit(function)(*map(jnp.asarray, arrays))
        return jax.tree.map(np.asarray, found)


def by_hand(policy, behaviour, reference, mask, advantage, low, high, beta, reduction):
    """The objective of GRPO, one completion at a time, as it is printed."""
    total, count = 0.0, 0
    for t in np.flatnonzero(mask):
        ratio = np.exp(policy[t] - behaviour[t])
        clipped = np.clip(ratio, 1 - low, 1 + high)
        k3 = np.exp(reference[t] - policy[t]) - (reference[t] - policy[t]) - 1
        total += min(ratio * advantage, clipped * advantage) - beta * k3
        count += 1
    if reduction == "mean":
        return -total / max(count, 1)
    return -total / (1 if reduction == "sum" else reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", 10])
def test_grpo_by_a_loop(reduction):
    policy, behaviour, reference, mask, advantages = batch(0)
    found = in_float64(
        lambda p, b, r, a: losses.grpo_loss(
            *(p, b, jnp.asarray(mask), a),
            clip_epsilon=0.2,
            clip_epsilon_high=0.28,
            reference_log_probs=r,
            beta=0.04,
            reduction=reduction,
        ),
        *(policy, behaviour, reference, advantages),
    )
    rows = zip(policy, behaviour, reference, mask, advantages, strict=True)
    expected = [by_hand(*row, 0.2, 0.28, 0.04, reduction) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0] == 0


def test_divergence_of_the_specification():
    # H4: log-probabilities -1 and -1.3 make k3 = exp(-.3) - 1 + .3; its slope is 1 - exp(-.3).
    def loss(log_prob):
        arrays = log_prob[None], jnp.zeros(1), jnp.ones(1), jnp.zeros(())
        return losses.grpo_loss(
            *arrays, clip_epsilon=0.2, reference_log_probs=jnp.array([-1.3]), beta=1.0
        )

    value, slope = jax.value_and_grad(loss)(jnp.float32(-1.0))
    np.testing.assert_allclose(value, 0.0408182207, rtol=1e-5)
    np.testing.assert_allclose(slope, 0.2591817793, rtol=1e-5)


@pytest.mark.parametrize(
    ("reduction", "divisors"), [("mean", [1, 2, 3, 4]), ("sum", [1] * 4), (8, [8] * 4)]
)
def test_first_step_of_grpo(reduction, divisors):
    # H4, ddof 0: rewards (1, 0, 0, .5) in a group. On policy every ratio is 1, and the gradient
    # of every token is minus the advantage over what the sum is divided by.
    rewards = np.array([1, 0, 0, 0.5])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    np.testing.assert_allclose(
        advantages, [1.507193174, -0.904315905, -0.904315905, 0.301438635], atol=1e-9
    )
    mask = np.arange(4) < np.arange(1, 5)[:, None]
    policy = np.random.default_rng(1).standard_normal((4, 4))

    def total(policy, advantages):
        arrays = policy, jax.lax.stop_gradient(policy), jnp.asarray(mask), advantages
        return losses.grpo_loss(*arrays, clip_epsilon=0.2, reduction=reduction).sum()

    found = in_float64(jax.grad(total), policy, advantages)
    expected = np.where(mask, -(advantages / np.array(divisors))[:, None], 0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_token_average_of_a_whole_batch():
    # DAPO: the sum over the tokens of all completions, over their number.
    policy, behaviour, _, mask, advantages = batch(2)
    found = in_float64(
        lambda *a: losses.grpo_loss(*a, clip_epsilon=0.2, reduction="sum").sum() / a[2].sum(),
        *(policy, behaviour, mask, advantages),
    )
    ratios = np.exp(policy - behaviour)[mask == 1]
    each = np.broadcast_to(advantages[:, None], mask.shape)[mask == 1]
    expected = -np.minimum(ratios * each, np.clip(ratios, 0.8, 1.2) * each).mean()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_advantages_of_tokens_and_numbers_of_completions():
    policy, behaviour, reference, mask, advantages = batch(3)
    hyper = {"clip_epsilon": 0.1, "clip_epsilon_high": 0.3, "dual_clip": 1.1, "beta": 0.2}

    def loss(advantages, **hyper):
        return losses.grpo_loss(
            jnp.asarray(policy),
            jnp.asarray(behaviour),
            jnp.asarray(mask),
            advantages,
            reference_log_probs=jnp.asarray(reference),
            **hyper,
        )

    expected = in_float64(functools.partial(loss, **hyper, reduction=6), advantages)
    tokens = np.where(mask, advantages[:, None], np.nan)
    found = in_float64(functools.partial(loss, **hyper, reduction=6), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    rows = [np.full(5, number) for number in (*hyper.values(), 6.0)]
    names = (*hyper, "reduction")
    traced = in_float64(
        lambda a, *given: loss(a, **dict(zip(names, given, strict=True))), advantages, *rows
    )
    np.testing.assert_allclose(traced, expected, atol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_tokens_may_hold_anything(poison):
    clean = batch(4)
    mask, earned = jnp.asarray(clean[3]), jnp.asarray(clean[4], jnp.float32)

    def everything(policy, behaviour, reference):
        loss = losses.grpo_loss(
            *(policy, behaviour, mask, earned),
            clip_epsilon=0.2,
            reference_log_probs=reference,
            beta=0.1,
        )
        rewards = losses.kl_shaped_rewards(earned, policy, reference, mask, beta=0.1)
        advantages = losses.remax_token_advantages(
            *(earned, earned / 2, policy, reference, mask), beta=0.1, kl_decay=0.9
        )
        reduced = losses.reduce_tokens(policy * rewards, mask, reduction="mean")
        return loss.sum() + reduced.sum(), (rewards, advantages)

    run = jax.jit(jax.value_and_grad(everything, argnums=(0, 1, 2), has_aux=True))
    single = [jnp.asarray(array, jnp.float32) for array in clean[:3]]
    dirty = [jnp.where(mask != 0, array, poison) for array in single]
    expected, found = run(*single), run(*dirty)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_rewards_by_hand():
    # Log-ratios .2, (not counted), -.1 and then padding: -beta of each, the reward on the last.
    policy = jnp.array([[-1.0, jnp.nan, -2.0, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    reference = jnp.array([[-1.2, -1.0, -1.9, -1.0], [-3.0, -3.0, -3.0, -3.0]])
    mask = jnp.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    found = losses.kl_shaped_rewards(jnp.array([3.0, 5.0]), policy, reference, mask, beta=0.5)
    np.testing.assert_allclose(found, [[-0.1, 0, 3.05, 0], [0, 0, 0, 0]], atol=1e-6)


def test_rewards_add_up_to_the_regularised_one():
    policy, _, reference, mask, rewards = batch(5)
    found = in_float64(
        functools.partial(losses.kl_shaped_rewards, beta=0.3), rewards, policy, reference, mask
    )
    expected = rewards - 0.3 * ((policy - reference) * mask).sum(axis=1)
    np.testing.assert_allclose(found.sum(axis=1)[1:], expected[1:], atol=1e-12)
    np.testing.assert_array_equal(found[mask == 0], 0)


def test_remax_is_the_difference_to_the_greedy_completion():
    policy, _, reference, mask, rewards = batch(6)
    greedy = np.random.default_rng(7).standard_normal(5)
    arrays = rewards, greedy, policy, reference, mask
    found = in_float64(losses.remax_token_advantages, *arrays)
    np.testing.assert_allclose(found, mask * (rewards - greedy)[:, None], atol=1e-12)
    shifted = in_float64(losses.remax_token_advantages, rewards + 5, greedy + 5, *arrays[2:])
    np.testing.assert_allclose(shifted, found, atol=1e-12)


@pytest.mark.parametrize("kl_decay", [0.0, 0.7, 1.0])
def test_remax_backwards_in_a_loop(kl_decay):
    # The official code walks back from the last token: the reward shrinks by gamma before it is
    # added, the divergence is forgotten at 0 and kept at 1.
    policy, _, reference, mask, rewards = batch(8)
    mask = (np.arange(6) < np.array([[0], [1], [6], [3], [4]])).astype(np.int32)
    greedy = rewards - np.array([0.5, -9.0, 7.0, 0.1, 1.0])
    expected = np.zeros((5, 6))
    for row in range(5):
        reward, divergence = np.clip(rewards[row] - greedy[row], -5, 5), 0.0
        for t in reversed(range(mask[row].sum())):
            divergence = kl_decay * divergence - 0.05 * (policy[row, t] - reference[row, t])
            reward *= 0.9
            expected[row, t] = reward + divergence
    found = in_float64(
        lambda *a: losses.remax_token_advantages(
            *a, beta=0.05, kl_decay=kl_decay, discount=0.9, reward_clip=5.0
        ),
        *(rewards, greedy, policy, reference, mask),
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_gap_costs_nothing():
    # The same completion with a token in the middle that does not count.
    policy, reference = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.5, -1.0, -0.7])
    hyper = {"beta": 0.3, "kl_decay": 0.5, "discount": 0.8}
    one = jnp.ones(())
    dense = losses.remax_token_advantages(one, 0 * one, policy, reference, jnp.ones(3), **hyper)
    wide = (
        jnp.insert(array, 1, value)
        for array, value in ((policy, jnp.inf), (reference, 3.0), (jnp.ones(3), 0.0))
    )
    found = losses.remax_token_advantages(one, 0 * one, *wide, **hyper)
    np.testing.assert_allclose(found, jnp.insert(dense, 1, 0.0), rtol=1e-6)


def two_token_log_probs(logits):
    """Log-probabilities [4, 2] of 00, 01, 10, 11 with P(0) = sigma(a), P(0|i) = sigma(b_i)."""
    stay, leave = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    first = jnp.stack([stay[0], stay[0], leave[0], leave[0]])
    second = jnp.stack([stay[1], leave[1], stay[2], leave[2]])
    return jnp.stack([first, second], axis=-1)


def test_expected_gradient_over_all_completions():
    # E r - beta KL, differentiated as it is written, against rewards to go and against ReMax with
    # all that is to come; ReMax with each token's own log-ratio is something else.
    with jax.enable_x64(True):
        logits = jnp.array([0.8, 0.4, -1.3])
        reference = two_token_log_probs(jnp.array([-0.5, 0.3, 0.9]))
        rewards, mask, beta = jnp.array([0.3, -1.0, 2.0, 0.5]), jnp.ones((4, 2)), 0.6
        chances = jnp.exp(two_token_log_probs(logits).sum(axis=-1))
        np.testing.assert_allclose(chances.sum(), 1, rtol=1e-12)

        def objective(logits):
            log_probs = two_token_log_probs(logits).sum(axis=-1)
            return jnp.exp(log_probs) @ (rewards - beta * (log_probs - reference.sum(axis=-1)))

        def to_go(policy):
            shaped = losses.kl_shaped_rewards(rewards, policy, reference, mask, beta=beta)
            return losses.generalised_advantages(shaped, jnp.zeros((4, 3)), mask, trace_decay=1.0)

        def remax(policy, kl_decay):
            greedy = jnp.full(4, 0.7)
            return losses.remax_token_advantages(
                rewards, greedy, policy, reference, mask, beta=beta, kl_decay=kl_decay
            )

        def slope(advantage):
            def loss(logits):
                policy = two_token_log_probs(logits)
                tokens = losses.policy_gradient_loss(policy, advantage(policy))
                return chances @ losses.reduce_tokens(tokens, mask, reduction="sum")

            return jax.jit(jax.grad(loss))(logits)

        expected = -jax.jit(jax.grad(objective))(logits)
        np.testing.assert_allclose(slope(to_go), expected, atol=1e-12)
        np.testing.assert_allclose(slope(lambda p: remax(p, 1.0)), expected, atol=1e-12)
        own = slope(lambda p: remax(p, 0.0))
        # The last tokens have nothing to come: right; the first one is not.
        np.testing.assert_allclose(own[1:], expected[1:], atol=1e-12)
        assert abs(own[0] - expected[0]) > 0.05


@pytest.mark.parametrize("reduction", ["mean", "sum", 3.0])
def test_reductions(reduction):
    values = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.inf, 5.0], [jnp.nan] * 3])
    mask = jnp.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    found = losses.reduce_tokens(values, mask, reduction=reduction)
    expected = {"mean": [1.5, 4.5, 0], "sum": [3, 9, 0]}.get(reduction, [1, 3, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


ROW, ONES = jnp.ones((2, 3)), jnp.ones(2)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda: losses.reduce_tokens(ROW, ROW, reduction="max"), "reduction"),
        (lambda: losses.reduce_tokens(ROW, ROW, reduction=0), "reduction"),
        (lambda: losses.grpo_loss(ROW, ROW, ROW, jnp.ones(3), clip_epsilon=0.2), "advantages"),
        (lambda: losses.grpo_loss(ROW, ROW, ROW, ROW[:, :1], clip_epsilon=0.2), "advantages"),
        (
            lambda: losses.grpo_loss(ROW, ROW, ROW, jnp.ones(2), clip_epsilon=0.2, beta=0.1),
            "reference_log_probs",
        ),
        (
            lambda: losses.grpo_loss(
                ROW, ROW, ROW, jnp.ones(2), clip_epsilon=0.2, reference_log_probs=ROW, beta=-1.0
            ),
            "beta",
        ),
        (lambda: losses.grpo_loss(ROW, ROW, ROW, jnp.ones(2), clip_epsilon=-1), "clip_epsilon"),
        (lambda: losses.kl_shaped_rewards(jnp.ones(2), ROW, ROW, ROW, beta=-0.1), "beta"),
        (
            lambda: losses.remax_token_advantages(ONES, ONES, ROW, ROW, ROW, discount=2),
            "discount",
        ),
        (
            lambda: losses.remax_token_advantages(ONES, ONES, ROW, ROW, ROW, kl_decay=-1),
            "kl_decay",
        ),
        (
            lambda: losses.remax_token_advantages(ONES, ONES, ROW, ROW, ROW, reward_clip=0),
            "reward_clip",
        ),
    ],
)
def test_wrong_arguments_are_named(run, named):
    with pytest.raises(ValueError, match=named):
        run()


def test_rewards_of_other_shapes_are_refused():
    with pytest.raises(Exception, match="rewards"):
        losses.kl_shaped_rewards(jnp.ones((2, 1)), ROW, ROW, ROW, beta=0.1)
    with pytest.raises(Exception, match="rewards"):
        losses.remax_token_advantages(jnp.ones(3), jnp.ones(3), ROW, ROW, ROW)
