"""AGRO and CoPG on the bandit of CoPG's paper: numbers, expectations, and where they converge."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from bellmax import losses

REWARDS, BETA = np.array([2.5, 2.0, 1.0]), 0.5
UNIFORM = np.full(3, 1 / 3)
FIRST, SECOND = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])
POLICY, BEHAVIOUR = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
# Proportional to exp(r / beta) under a uniform reference.
BEST = np.exp(REWARDS / BETA) / np.exp(REWARDS / BETA).sum()


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def regularised(law):
    return REWARDS - BETA * np.log(law / UNIFORM)


def value(law):
    """The expected reward less beta times the divergence from the reference."""
    return law @ regularised(law)


def of_arms(loss, logits, arms, **hyper):
    """A loss of arms [..., G], as a function of the logits."""
    log_probs = jax.nn.log_softmax(logits)[arms]
    reference = jnp.broadcast_to(jnp.log(UNIFORM[0]), log_probs.shape)
    return loss(log_probs, reference, jnp.asarray(REWARDS)[arms], beta=BETA, **hyper)


def expected(loss, logits, laws, **hyper):
    """Mean of a loss over arms, each sampled from its law; the laws are constant."""
    arms = np.array(list(itertools.product(range(3), repeat=len(laws))))
    chances = np.prod([law[arms[:, i]] for i, law in enumerate(laws)], axis=0)
    return jnp.asarray(chances) @ of_arms(loss, logits, arms, **hyper)


def test_the_best_policy_is_consistent():
    np.testing.assert_allclose(BEST, [0.705384513, 0.259496460, 0.035119027], atol=1e-9)
    np.testing.assert_allclose(regularised(BEST), 2.1251999641, atol=1e-10)
    np.testing.assert_allclose([value(BEST), value(UNIFORM)], [2.1251999641, 11 / 6], atol=1e-10)
    np.testing.assert_allclose(value(BEST) - value(UNIFORM), 0.2918666307, atol=1e-10)
    arms = np.array(list(itertools.product(range(3), repeat=3)))
    for hyper in ({}, {"on_policy": True}):
        loss = functools.partial(of_arms, losses.agro_loss, arms=arms, **hyper)
        np.testing.assert_allclose(loss(jnp.log(BEST)), np.zeros(27), atol=1e-25)
        slopes = jax.jit(jax.jacrev(loss))(jnp.log(BEST))
        np.testing.assert_allclose(slopes, np.zeros((27, 3)), atol=1e-14)


def test_pair_by_hand():
    pair = np.array([0, 2])
    logits = jnp.log(POLICY)
    pair_loss = functools.partial(of_arms, losses.copg_loss, arms=pair)
    loss, slope = jax.jit(jax.value_and_grad(pair_loss))(logits)
    np.testing.assert_allclose(loss, -1.1645389215, atol=1e-10)
    np.testing.assert_allclose(slope, [-1.041854634, 0, 1.041854634], atol=1e-9)
    # The products and the squares of the paper.
    ratio = np.log(POLICY / UNIFORM)
    halved = REWARDS - BETA / 2 * ratio
    products = (halved[0] - halved[2]) * ratio[0] + (halved[2] - halved[0]) * ratio[2]
    difference = regularised(POLICY)[0] - regularised(POLICY)[2]
    squares = -(difference**2) / (2 * BETA) + (2.5 - 1.0) ** 2 / (2 * BETA)
    np.testing.assert_allclose([products, squares], -loss, rtol=1e-14)


def test_group_by_hand():
    arms = np.array([0, 2, 2, 1])
    values = regularised(POLICY)[arms]
    np.testing.assert_allclose(
        values, [2.297267446, 1.255412812, 1.255412812, 2.052680258], atol=1e-9
    )
    advantages = losses.leave_one_out_advantages(jnp.asarray(values))
    np.testing.assert_allclose(
        advantages, [0.776098819, -0.613040693, -0.613040693, 0.449982568], atol=1e-9
    )
    logits = jnp.log(POLICY)
    group_loss = functools.partial(of_arms, losses.agro_loss, arms=arms)
    loss, slope = jax.jit(jax.value_and_grad(group_loss))(logits)
    np.testing.assert_allclose(loss, 0.1459173253, atol=1e-10)
    # -beta / G times the advantages, each with the gradient of its log-probability.
    by_hand = -BETA / 4 * np.asarray(advantages) @ (np.eye(3)[arms] - POLICY)
    np.testing.assert_allclose(slope, by_hand, atol=1e-14)
    np.testing.assert_allclose(of_arms(losses.agro_loss, logits, arms, on_policy=True), loss)


@pytest.mark.parametrize("size", [2, 3])
def test_any_behaviour_is_unbiased(size):
    logits = jnp.log(POLICY)

    def exact(x):
        values = REWARDS - BETA * (jax.nn.log_softmax(x) - np.log(UNIFORM))
        return BEHAVIOUR @ (values - BEHAVIOUR @ values) ** 2 / 2

    mean = functools.partial(expected, losses.agro_loss, laws=[BEHAVIOUR] * size)
    found, slope = jax.jit(jax.value_and_grad(mean))(logits)
    np.testing.assert_allclose(found, 0.1037403942, atol=1e-10)
    np.testing.assert_allclose(slope, [-0.059430347, -0.052457443, 0.111887790], atol=1e-9)
    np.testing.assert_allclose(found, exact(logits), rtol=1e-14)
    np.testing.assert_allclose(slope, jax.grad(exact)(logits), atol=1e-15)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_policy_itself_is_unbiased(size):
    logits = jnp.log(POLICY)

    def exact(x):
        law = jax.nn.softmax(x)
        values = REWARDS - BETA * (jnp.log(law) - np.log(UNIFORM))
        return law @ (values - law @ values) ** 2 / 2

    laws = [POLICY] * size
    plain = jax.jit(jax.grad(functools.partial(expected, losses.agro_loss, laws=laws)))(logits)
    np.testing.assert_allclose(plain, [-0.070436771, -0.005573984, 0.076010755], atol=1e-9)
    # Minus beta times the gradient of the regularised reward.
    residual = regularised(POLICY) - value(POLICY)
    np.testing.assert_allclose(plain, -BETA * POLICY * residual, atol=1e-15)

    mean = functools.partial(expected, losses.agro_loss, laws=laws, on_policy=True)
    found, slope = jax.jit(jax.value_and_grad(mean))(logits)
    np.testing.assert_allclose(found, 0.0778288323, atol=1e-10)
    np.testing.assert_allclose(slope, [-0.089505832, -0.028715505, 0.118221338], atol=1e-9)
    np.testing.assert_allclose(slope - plain, [-0.019069061, -0.023141521, 0.042210582], atol=1e-9)
    np.testing.assert_allclose(slope, jax.grad(exact)(logits), atol=1e-15)


@jax.jit
def credit(values):
    """What `on_policy` adds to the gradient in the log-probabilities. [..., G]."""

    def slope(**hyper):
        return jax.grad(lambda x: losses.agro_loss(x, x * 0, values, beta=BETA, **hyper).sum())(
            jnp.zeros(values.shape)
        )

    return slope(on_policy=True) - slope()


def test_the_others_are_a_baseline_of_the_likelihood_ratio():
    others = [0.3, -1.0, 0.8]
    groups = jnp.array([[first, *others] for first in (0.0, 1.0, 5.0)])
    squares = losses.leave_one_out_advantages(groups)[:, 0] ** 2
    np.testing.assert_allclose(credit(groups)[:, 0], (squares - np.var(others)) / 8, rtol=1e-12)
    # One other sample has no variance.
    np.testing.assert_allclose(credit(jnp.array([1.0, -2.0])), [9 / 4, 9 / 4], rtol=1e-12)


def test_the_baseline_of_unlike_completions_is_worth_having():
    # Eight arms, as good as normal quantiles, equally likely, in groups of four.
    rewards = jnp.array([-1.5, -0.9, -0.5, -0.2, 0.2, 0.5, 0.9, 1.5])
    arms = np.array(list(itertools.product(range(8), repeat=4)))
    values = rewards[arms]
    scores = np.eye(8)[arms] - 1 / 8
    plain = losses.leave_one_out_advantages(values) ** 2 / 8
    means, variances = [], []
    for weights in (plain, credit(values)):
        terms = np.sum(np.asarray(weights)[..., None] * scores, axis=1)
        means.append(terms.mean(axis=0))
        variances.append(np.sum((terms - means[-1]) ** 2, axis=-1).mean())
    np.testing.assert_allclose(means[0], means[1], atol=1e-15)
    assert variances[1] < 0.95 * variances[0]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_one_kernel(size):
    rng = np.random.default_rng(size)
    log_probs, reference, rewards = (jnp.asarray(rng.standard_normal((4, size))) for _ in range(3))
    beta = jnp.array([0.1, 0.5, 1.0, 3.0])

    def slope(loss):
        total = jax.grad(lambda x: loss(x, reference, rewards, beta=beta).sum())
        return jax.jit(total)(log_probs)

    np.testing.assert_allclose(
        slope(losses.copg_loss), 2 / beta[:, None] * slope(losses.agro_loss), rtol=1e-9, atol=1e-12
    )
    found = losses.copg_loss(log_probs, reference, rewards, beta=beta)
    pairs = list(itertools.combinations(range(size), 2))
    two = [
        losses.copg_loss(log_probs[:, p], reference[:, p], rewards[:, p], beta=beta)
        for p in np.array(pairs)
    ]
    np.testing.assert_allclose(found, np.mean(two, axis=0), rtol=1e-9)
    # 1 / (G - 1) times the sum of squares is beta G times it, and a constant.
    values = rewards - beta[:, None] * (log_probs - reference)

    def squares(x):
        return sum((x[:, i] - x[:, j]) ** 2 for i, j in pairs) / (size - 1)

    np.testing.assert_allclose(
        found, (squares(values) - squares(rewards)) / (beta * size), rtol=1e-9, atol=1e-12
    )


def test_pair_of_the_policy_is_leave_one_out():
    logits = jnp.log(POLICY)
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    slopes = jax.jit(jax.jacrev(lambda x: of_arms(losses.copg_loss, x, pairs)))(logits)
    for arms, slope in zip(pairs, slopes, strict=True):
        values = jnp.asarray(regularised(POLICY)[arms])
        advantages = np.asarray(losses.leave_one_out_advantages(values))
        np.testing.assert_allclose(slope, -advantages @ (np.eye(3)[arms] - POLICY), atol=1e-14)
    # In the mean twice the gradient of the regularised reward.
    mean = jax.jit(jax.grad(functools.partial(expected, losses.copg_loss, laws=[POLICY] * 2)))(
        logits
    )
    residual = regularised(POLICY) - value(POLICY)
    np.testing.assert_allclose(mean, -2 * POLICY * residual, atol=1e-14)


def test_pairs_of_two_laws():
    # E_mu1 [(R - E_mu2 R) grad log pi] and the same with the laws exchanged.
    mean = jax.jit(jax.grad(functools.partial(expected, losses.copg_loss, laws=[FIRST, SECOND])))
    values, scores = regularised(POLICY), np.eye(3) - POLICY
    by_hand = sum(
        (law * (values - other @ values)) @ scores
        for law, other in ((FIRST, SECOND), (SECOND, FIRST))
    )
    np.testing.assert_allclose(mean(jnp.log(POLICY)), -by_hand, atol=1e-14)


def test_labels_of_a_quarter_are_ipo():
    rng = np.random.default_rng(0)
    ratios = jnp.asarray(rng.standard_normal((5, 2)))
    rewards = jnp.broadcast_to(jnp.array([0.25, -0.25]), ratios.shape)
    for beta in (0.1, 2.0):
        found = losses.copg_loss(ratios, jnp.zeros_like(ratios), rewards, beta=beta)
        ipo = losses.ipo_loss(ratios[:, 0], ratios[:, 1], tau=beta)
        np.testing.assert_allclose(found, beta / 2 * ipo - 1 / (8 * beta), rtol=1e-12)


def flow(update, time=2000.0):
    """The policy at the end of a gradient flow in the logits, from a uniform one."""
    found = scipy.integrate.solve_ivp(
        lambda _, logits: np.asarray(update(logits)),
        (0, time),
        np.zeros(3),
        method="LSODA",
        rtol=1e-9,
        atol=1e-11,
    )
    return np.asarray(jax.nn.softmax(found.y[:, -1]))


@pytest.mark.parametrize(
    ("loss", "laws"),
    [
        (losses.copg_loss, [FIRST, SECOND]),
        (losses.agro_loss, [FIRST, FIRST]),
        (losses.agro_loss, [UNIFORM, UNIFORM]),
    ],
)
def test_both_find_the_best_policy_off_policy(loss, laws):
    slope = jax.jit(jax.grad(lambda x: -expected(loss, x, laws)))
    np.testing.assert_allclose(flow(slope), BEST, atol=1e-7)


def policy_gradient(baseline):
    """Expected updates of REINFORCE on regularised rewards of pairs from the two laws."""

    def update(logits):
        law = np.exp(logits - logits.max())
        law = law / law.sum()
        values = regularised(law)
        return ((FIRST + SECOND) / 2 * (values - baseline(law, values))) @ (np.eye(3) - law)

    return update


@pytest.mark.parametrize(
    ("baseline", "limit", "regret"),
    [
        (lambda law, _: law @ REWARDS, (0.811548184, 0.167524752, 0.020927064), 0.0148174262),
        (lambda law, _: 0.0, (0.193990258, 0.250138590, 0.555871152), 0.6377927),
        (lambda law, values: law @ values, BEST, 0.0),
    ],
)
def test_where_policy_gradients_end_off_policy(baseline, limit, regret):
    found = flow(policy_gradient(baseline))
    np.testing.assert_allclose(found, limit, atol=1e-6)
    np.testing.assert_allclose(value(BEST) - value(found), regret, atol=1e-6)


def test_where_ipo_ends():
    # Labels of the Bradley-Terry model; a pair of one arm twice has no margin.
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    chances = jnp.asarray(FIRST[pairs[:, 0]] * SECOND[pairs[:, 1]])
    wins = jax.nn.sigmoid(jnp.asarray(REWARDS[pairs[:, 0]] - REWARDS[pairs[:, 1]]))

    def loss(logits):
        first, second = jnp.moveaxis(jax.nn.log_softmax(logits)[pairs], -1, 0)
        chosen = losses.ipo_loss(first, second, tau=BETA)
        rejected = losses.ipo_loss(second, first, tau=BETA)
        return chances @ (wins * chosen + (1 - wins) * rejected)

    found = flow(jax.jit(jax.grad(lambda x: -loss(x))))
    np.testing.assert_allclose(found, [0.424169062, 0.352705831, 0.223125106], atol=1e-6)
    np.testing.assert_allclose(value(BEST) - value(found), 0.1525306579, atol=1e-7)


def test_divergence_of_steps_from_the_reference():
    # Exact updates of step .05, over beta, on completions of the reference.
    slope = jax.grad(lambda x: expected(losses.agro_loss, x, [UNIFORM] * 2) / BETA)

    @jax.jit
    def run(logits, steps):
        return jax.lax.fori_loop(0, steps, lambda _, x: x - 0.05 * slope(x), logits)

    logits, done = jnp.zeros(3), 0
    for steps, divergence in ((0, 0.583733), (20, 0.372136), (100, 0.065443), (500, 5.2e-5)):
        logits, done = run(logits, steps - done), steps
        law = np.asarray(jax.nn.softmax(logits))
        found = law @ np.log(law / BEST)
        np.testing.assert_allclose(found, divergence, rtol=1e-2 if steps == 500 else 1e-5)


@pytest.mark.parametrize("loss", [losses.agro_loss, losses.copg_loss])
def test_long_completions_keep_their_digits(loss):
    # Log-probabilities of a thousand tokens, which differ by some nats.
    rng = np.random.default_rng(0)
    ratios, rewards = jnp.asarray(rng.standard_normal((2, 8, 4)))
    # Halves are exact in float32 beside 8192.
    ratios = jnp.round(ratios * 8) / 8
    slope = jax.jit(jax.value_and_grad(lambda x, y, r: loss(x, y, r, beta=0.1).sum()))
    expected_value, expected_slope = slope(ratios, jnp.zeros_like(ratios), rewards)
    single = [x.astype(jnp.float32) for x in (ratios - 8192, jnp.full_like(ratios, -8192), rewards)]
    found, found_slope = slope(*single)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected_value, rtol=1e-5)
    np.testing.assert_allclose(found_slope, expected_slope, rtol=1e-4, atol=1e-6)
    for size in (1e4, -1e4):
        extreme = jnp.array([[size, -size]], jnp.float32)
        results = slope(extreme, -extreme, extreme)
        assert all(np.isfinite(result).all() for result in results)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_on_policy_gradient_of_half_precision(dtype):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(-rng.uniform(0, 2, (3, 4)), dtype) for _ in range(3)]

    @jax.jit
    @jax.grad
    def slope(*inputs):
        return losses.agro_loss(*inputs, beta=0.3, on_policy=True).sum()

    found = slope(*arrays)
    wide = slope(*(array.astype(jnp.float32) for array in arrays))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), wide, rtol=1e-2, atol=1e-3)


def test_beta_of_each_prompt_may_be_traced():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((3, 4))) for _ in range(3)]
    betas = jnp.array([0.1, 0.5, 2.0])
    for loss in (
        losses.agro_loss,
        losses.copg_loss,
        functools.partial(losses.agro_loss, on_policy=True),
    ):
        found = jax.jit(lambda b, loss=loss: loss(*arrays, beta=b))(betas)
        rows = [
            jax.jit(loss)(*(a[i] for a in arrays), beta=jnp.asarray(betas[i])) for i in range(3)
        ]
        np.testing.assert_allclose(found, rows, rtol=1e-12)
        slope = jax.jit(jax.grad(lambda b, loss=loss: loss(*arrays, beta=b).sum()))(betas)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("on_policy", [False, True])
def test_reference_and_rewards_pass_no_gradient(on_policy):
    arrays = [jnp.array([0.1, -0.3, 0.8]), jnp.zeros(3), jnp.array([1.0, 0.0, 0.5])]
    slopes = jax.grad(
        lambda *a: losses.agro_loss(*a, beta=0.3, on_policy=on_policy), argnums=(1, 2)
    )(*arrays)
    for slope in slopes:
        np.testing.assert_array_equal(slope, np.zeros(3))


@pytest.mark.parametrize("loss", [losses.agro_loss, losses.copg_loss])
@pytest.mark.parametrize(
    ("shapes", "beta", "named"),
    [
        ([(3, 1)] * 3, 0.1, "at least 2 samples"),
        ([()] * 3, 0.1, "log_probs"),
        ([(3, 2)] * 3, 0.0, "beta"),
        ([(3, 2)] * 3, jnp.ones((3, 1)), "beta"),
        ([(3, 2), (3, 2), (3, 1)], 0.1, "rewards"),
    ],
)
def test_errors_name_the_argument(loss, shapes, beta, named):
    with pytest.raises(Exception, match=named):
        loss(*(jnp.zeros(shape) for shape in shapes), beta=beta)
