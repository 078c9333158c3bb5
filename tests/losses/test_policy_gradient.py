"""Policy gradients of single actions: the specification, enumerated expectations, rlax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

# Specification H.5: one clip on either side that bites, one that does not.
RATIOS, ADVANTAGES = np.array([0.5, 0.9, 1.1, 1.5, 0.5, 1.5]), np.array([1.0, 1, 1, 1, -1, -1])
# Specification H.3: three arms.
LAW, REWARDS = np.array([0.6, 0.3, 0.1]), np.array([0.2, 1.0, 0.5])
TRUE_GRADIENT = LAW * (REWARDS - LAW @ REWARDS)
BEHAVIOUR = np.array([0.2, 0.3, 0.5])


def value_and_slope(loss, *arrays, **hyper):
    """Losses, and the derivative of each by its own log-probability."""

    def total(log_probs, *rest):
        values = loss(log_probs, *rest, **hyper)
        return values.sum(), values

    with jax.enable_x64(True):
        run = jax.jit(jax.grad(total, has_aux=True))
        slopes, values = run(*(jnp.asarray(array, jnp.float64) for array in arrays))
        return np.asarray(values), np.asarray(slopes)


def arm_gradients(loss):
    """Gradients by the logits [3, 3] of a loss of log-probabilities [3], one row an arm."""
    with jax.enable_x64(True):
        logits = jnp.log(jnp.asarray(LAW))
        return np.asarray(jax.jacrev(lambda x: loss(jax.nn.log_softmax(x)))(logits))


def test_clipped_surrogate_of_the_specification():
    arrays = np.log(RATIOS), np.zeros(6), ADVANTAGES
    values, slopes = value_and_slope(losses.ppo_clip_loss, *arrays, clip_epsilon=0.2)
    np.testing.assert_allclose(values, [-0.5, -0.9, -1.1, -1.2, 0.8, 1.5], atol=1e-12)
    np.testing.assert_allclose(values.mean(), -0.2333333333, atol=1e-10)
    # The derivative by the ratio; d rho / d log pi = rho.
    np.testing.assert_allclose(slopes / RATIOS, [-1, -1, -1, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, None, None), (0.2, 0.5, None), (0.3, 0.1, 1.5), (1.5, 4.0, 3.0)]
)
def test_clipped_surrogate_as_it_is_printed(low, high, dual):
    rng = np.random.default_rng(0)
    policy, behaviour, advantages = rng.standard_normal((3, 400))
    ratios, upper = np.exp(policy - behaviour), 1 + (low if high is None else high)
    objective = np.minimum(
        ratios * advantages, np.clip(ratios, max(1 - low, 0), upper) * advantages
    )
    silent = ((ratios > upper) & (advantages > 0)) | ((ratios < 1 - low) & (advantages < 0))
    if dual is not None:
        objective = np.where(advantages < 0, np.maximum(objective, dual * advantages), objective)
        silent |= (ratios > dual) & (advantages < 0)
    values, slopes = value_and_slope(
        losses.ppo_clip_loss,
        *(policy, behaviour, advantages),
        **{"clip_epsilon": low, "clip_epsilon_high": high, "dual_clip": dual},
    )
    np.testing.assert_allclose(values, -objective, atol=1e-12)
    np.testing.assert_array_equal(slopes == 0, silent)
    np.testing.assert_allclose(slopes, np.where(silent, 0, -ratios * advantages), atol=1e-12)
    if dual is not None:
        # A bad action never costs more than c |A|, however likely it has become.
        falls = advantages < 0
        assert (values[falls] <= dual * -advantages[falls] + 1e-12).all()


def test_what_is_clipped_cannot_overflow():
    arrays = np.array([1e4, -1e4, 1e4]), np.zeros(3), np.array([2.0, -2.0, -2.0])
    values, slopes = value_and_slope(losses.ppo_clip_loss, *arrays, clip_epsilon=0.2, dual_clip=3.0)
    np.testing.assert_allclose(values, [-2.4, 1.6, 6.0], rtol=1e-12)
    np.testing.assert_array_equal(slopes, [0, 0, 0])
    values, slopes = value_and_slope(
        losses.importance_weighted_policy_gradient_loss, *arrays, ratio_clip=2.0
    )
    np.testing.assert_allclose(slopes, [-4, 0, 4], atol=1e-12)
    assert np.isfinite(values).all()


def test_without_a_clip_it_is_importance_weighting():
    rng = np.random.default_rng(1)
    arrays = rng.standard_normal((3, 50))
    ratios = np.exp(arrays[0] - arrays[1])
    unclipped = {"clip_epsilon": np.inf}
    values, slopes = value_and_slope(losses.ppo_clip_loss, *arrays, **unclipped)
    np.testing.assert_allclose(values, -ratios * arrays[2], atol=1e-12)
    weighted, same = value_and_slope(losses.importance_weighted_policy_gradient_loss, *arrays)
    np.testing.assert_allclose(slopes, same, atol=1e-12)
    np.testing.assert_allclose(weighted, -ratios * arrays[2] * arrays[0], atol=1e-12)
    truncated = value_and_slope(
        losses.importance_weighted_policy_gradient_loss, *arrays, ratio_clip=1.2
    )
    np.testing.assert_allclose(truncated[1], -np.minimum(ratios, 1.2) * arrays[2], atol=1e-12)


def test_on_policy_all_are_policy_gradients():
    rng = np.random.default_rng(2)
    policy, advantages = rng.standard_normal((2, 20))
    _, expected = value_and_slope(losses.policy_gradient_loss, policy, advantages)
    np.testing.assert_array_equal(expected, -advantages)
    for loss, hyper in (
        (losses.ppo_clip_loss, {"clip_epsilon": 0.1, "dual_clip": 2.0}),
        (losses.importance_weighted_policy_gradient_loss, {"ratio_clip": 1.0}),
    ):
        _, slopes = value_and_slope(loss, policy, policy, advantages, **hyper)
        np.testing.assert_allclose(slopes, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("baseline", "variance"),
    [(0.0, 0.244206), (REWARDS[0], 0.124926), (LAW @ REWARDS, 0.032424)],
    ids=["REINFORCE", "ReMax", "mean"],
)
def test_baselines_change_the_variance_alone(baseline, variance):
    # H3, whose variance is the sum over the logits; the greedy arm is the first.
    np.testing.assert_allclose(TRUE_GRADIENT, [-0.162, 0.159, 0.003], atol=1e-12)
    advantages = REWARDS - baseline
    found = -arm_gradients(lambda lp: losses.policy_gradient_loss(lp, jnp.asarray(advantages)))
    np.testing.assert_allclose(LAW @ found, TRUE_GRADIENT, atol=1e-12)
    spread = LAW @ np.square(found).sum(axis=1) - np.square(LAW @ found).sum()
    np.testing.assert_allclose(spread, variance, atol=1e-6)


def leave_one_out(rewards):
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def what_each_adds_to_the_best(rewards):
    others = [np.delete(rewards, i).max() for i in range(len(rewards))]
    return rewards.max() - np.array(others)


def expected_over_groups(advantage, samples, average):
    """The expected gradient of a loss of groups, by enumeration of all of them."""
    arms = np.array(list(itertools.product(range(3), repeat=samples)))
    chances = LAW[arms].prod(axis=1)
    advantages = np.array([advantage(REWARDS[group]) for group in arms])

    def loss(log_probs):
        values = losses.policy_gradient_loss(log_probs[arms], jnp.asarray(advantages))
        return jnp.asarray(chances) @ average(values, axis=-1)

    return -arm_gradients(loss)


@pytest.mark.parametrize("samples", [2, 3])
def test_leave_one_out_is_unbiased(samples):
    found = expected_over_groups(leave_one_out, samples, jnp.mean)
    np.testing.assert_allclose(found, TRUE_GRADIENT, atol=1e-12)


def test_best_of_k_is_unbiased():
    # Of three samples: the objective itself, differentiated as a sum over groups.
    arms = np.array(list(itertools.product(range(3), repeat=3)))
    best = REWARDS[arms].max(axis=1)
    expected = arm_gradients(lambda lp: jnp.exp(lp[arms].sum(axis=1)) @ jnp.asarray(best))
    found = expected_over_groups(what_each_adds_to_the_best, 3, jnp.sum)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_importance_weights_undo_the_behaviour():
    with jax.enable_x64(True):
        behaviour, rewards = jnp.log(jnp.asarray(BEHAVIOUR)), jnp.asarray(REWARDS)

    def expected(weigh, **hyper):
        return -BEHAVIOUR @ arm_gradients(lambda lp: weigh(lp, behaviour, rewards, **hyper))

    weighted = losses.importance_weighted_policy_gradient_loss
    np.testing.assert_allclose(expected(weighted), TRUE_GRADIENT, atol=1e-12)
    unclipped = expected(losses.ppo_clip_loss, clip_epsilon=np.inf)
    np.testing.assert_allclose(unclipped, TRUE_GRADIENT, atol=1e-12)
    # Truncated below every ratio it is the behaviour's own gradient, scaled.
    scores = np.eye(3) - LAW
    np.testing.assert_allclose(
        expected(weighted, ratio_clip=0.1), 0.1 * (BEHAVIOUR * REWARDS) @ scores, atol=1e-12
    )
    # Truncated somewhere it is the gradient with the ratios (3, 1, .2) cut to (1.5, 1, .2).
    cut = BEHAVIOUR * np.array([1.5, 1.0, 0.2]) * REWARDS
    np.testing.assert_allclose(expected(weighted, ratio_clip=1.5), cut @ scores, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True], ids=["sequence", "geometric mean"])
def test_ratios_of_whole_completions(normalise):
    # The product of the token ratios, or its root of the number of tokens as in GSPO: the gradient
    # of every token is -s A, over that number for the root, unless s has left the interval.
    rng = np.random.default_rng(3)
    policy, behaviour = rng.standard_normal((2, 40, 4)) / 4
    mask = np.arange(4) < rng.integers(1, 5, (40, 1))
    advantages = rng.standard_normal(40)
    lengths = mask.sum(axis=1)
    ratios = np.where(mask, np.exp(policy - behaviour), 1).prod(axis=1)
    ratios = ratios ** (1 / lengths) if normalise else ratios
    silent = ((ratios > 1.2) & (advantages > 0)) | ((ratios < 0.8) & (advantages < 0))
    assert 0 < silent.sum() < 40

    def loss(policy, behaviour, advantages):
        def whole(tokens):
            return losses.sequence_log_probs(tokens, jnp.asarray(mask), normalise=normalise)

        return losses.ppo_clip_loss(whole(policy), whole(behaviour), advantages, clip_epsilon=0.2)

    values, slopes = value_and_slope(loss, policy, behaviour, advantages)
    expected = np.minimum(ratios * advantages, np.clip(ratios, 0.8, 1.2) * advantages)
    np.testing.assert_allclose(values, -expected, atol=1e-12)
    each = np.where(silent, 0, -ratios * advantages) / (lengths if normalise else 1)
    np.testing.assert_allclose(slopes, each[:, None] * mask, atol=1e-12)


def test_values_by_hand():
    # G = 2 from V_old = 0: V = 1 has moved towards it, and only .2 of that counts: (.2 - 2)^2 / 2.
    # G = -1: V = 1 has moved away, and all of it costs: (1 + 1)^2 / 2. V = .1: inside of the clip.
    arrays = np.array([1.0, 1.0, 0.1]), np.zeros(3), np.array([2.0, -1.0, 2.0])
    values, slopes = value_and_slope(losses.ppo_value_loss, *arrays, clip_epsilon=0.2)
    np.testing.assert_allclose(values, [1.62, 2.0, 1.805], atol=1e-12)
    np.testing.assert_allclose(slopes, [0, 2, -1.9], atol=1e-12)
    values, slopes = value_and_slope(losses.ppo_value_loss, *arrays)
    np.testing.assert_allclose(values, [0.5, 2.0, 1.805], atol=1e-12)
    np.testing.assert_allclose(slopes, [-1, 2, -1.9], atol=1e-12)


def test_clipped_values_cost_no_less():
    rng = np.random.default_rng(4)
    arrays = rng.standard_normal((3, 300))
    plain, slopes = value_and_slope(losses.ppo_value_loss, *arrays)
    np.testing.assert_allclose(plain, np.square(arrays[0] - arrays[2]) / 2, atol=1e-12)
    np.testing.assert_allclose(slopes, arrays[0] - arrays[2], atol=1e-12)
    values, clipped = value_and_slope(losses.ppo_value_loss, *arrays, clip_epsilon=0.3)
    assert (values >= plain - 1e-12).all()
    value, old, target = arrays
    near = old + np.clip(value - old, -0.3, 0.3)
    silent = np.abs(near - target) > np.abs(value - target)
    np.testing.assert_allclose(clipped, np.where(silent, 0, slopes), atol=1e-12)
    assert silent.any()


@pytest.mark.filterwarnings("ignore:Rlax softmax")
def test_equal_to_rlax():
    rlax = pytest.importorskip("rlax")
    rng = np.random.default_rng(5)
    policy, behaviour, advantages = jnp.asarray(rng.standard_normal((3, 30)), jnp.float32)
    found = losses.ppo_clip_loss(policy, behaviour, advantages, clip_epsilon=0.2).mean()
    theirs = rlax.clipped_surrogate_pg_loss(jnp.exp(policy - behaviour), advantages, 0.2)
    np.testing.assert_allclose(found, theirs, rtol=1e-5)
    logits, actions = jnp.asarray(rng.standard_normal((30, 4)), jnp.float32), jnp.arange(30) % 4
    taken = losses.token_log_probs(logits, actions)
    theirs = rlax.policy_gradient_loss(logits, actions, advantages, jnp.ones(30))
    np.testing.assert_allclose(losses.policy_gradient_loss(taken, advantages).mean(), theirs, 1e-5)


def test_numbers_of_each_example_and_traced():
    policy, behaviour, advantages = jnp.asarray(
        np.random.default_rng(6).standard_normal((3, 4)), jnp.float32
    )

    def run(low, high, dual, ratio, value):
        return (
            losses.ppo_clip_loss(
                *(policy, behaviour, advantages),
                clip_epsilon=low,
                clip_epsilon_high=high,
                dual_clip=dual,
            ),
            losses.importance_weighted_policy_gradient_loss(
                policy, behaviour, advantages, ratio_clip=ratio
            ),
            losses.ppo_value_loss(policy, behaviour, advantages, clip_epsilon=value),
        )

    knobs = (0.2, 0.4, 1.5, 0.9, 0.3)
    for given in (knobs, [jnp.full(4, knob) for knob in knobs]):
        for found, expected in zip(jax.jit(run)(*given), run(*knobs), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "hyper", "named"),
    [
        ("ppo_clip_loss", {"clip_epsilon": -0.1}, "clip_epsilon"),
        ("ppo_clip_loss", {"clip_epsilon": 0.2, "clip_epsilon_high": -1}, "clip_epsilon_high"),
        ("ppo_clip_loss", {"clip_epsilon": 0.2, "dual_clip": 1.0}, "dual_clip"),
        ("ppo_clip_loss", {"clip_epsilon": float("nan")}, "clip_epsilon"),
        ("ppo_clip_loss", {"clip_epsilon": np.ones(2, np.float32)}, "clip_epsilon"),
        ("importance_weighted_policy_gradient_loss", {"ratio_clip": 0.0}, "ratio_clip"),
        ("ppo_value_loss", {"clip_epsilon": 0.0}, "clip_epsilon"),
    ],
)
def test_wrong_numbers_are_named(name, hyper, named):
    hyper = {key: jnp.asarray(v) if isinstance(v, np.ndarray) else v for key, v in hyper.items()}
    with pytest.raises(ValueError, match=named):
        getattr(losses, name)(*(jnp.ones(3),) * 3, **hyper)


def test_wrong_shapes_are_named():
    for loss in (losses.ppo_clip_loss, losses.ppo_value_loss):
        with pytest.raises(Exception, match=r"returns|advantages"):
            loss(jnp.ones(3), jnp.ones(3), jnp.ones((3, 1)), clip_epsilon=0.2)
