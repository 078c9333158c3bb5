"""JEPO: exact gradients of both bounds over all tuples of chains, and numbers by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

# Three chains of thought, and how likely the answer is after each.
POLICY, LIKELIHOOD = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.3, 0.05])
LOGITS, BELIEFS = np.log(POLICY), np.log(LIKELIHOOD / (1 - LIKELIHOOD))
ANSWERS = np.log(LIKELIHOOD)
# Compiled whole: operation by operation every shape would cost seconds.
bound = jax.jit(losses.jepo_bound, static_argnames="multi_sample")
weights = jax.jit(losses.jepo_advantages, static_argnames="multi_sample")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tuples(size):
    chains = np.array(list(itertools.product(range(3), repeat=size)))
    return chains, jnp.asarray(np.prod(POLICY[chains], axis=-1))


def exact_bound(logits, beliefs, size, multi_sample=True):
    chains, _ = tuples(size)
    chances = jnp.prod(jax.nn.softmax(logits)[chains], axis=-1)
    likelihoods = jax.nn.sigmoid(beliefs)[chains]
    if multi_sample:
        return chances @ jnp.log(likelihoods.mean(axis=-1))
    return chances @ jnp.log(likelihoods).mean(axis=-1)


def gradients(loss, size):
    """Gradients of a loss in logits and beliefs, for all tuples of chains, and their chances."""
    chains, chances = tuples(size)

    @functools.partial(jax.jacrev, argnums=(0, 1))
    def slopes(logits, beliefs):
        return loss(jax.nn.log_softmax(logits)[chains], jax.nn.log_sigmoid(beliefs)[chains])

    return *jax.jit(slopes)(LOGITS, BELIEFS), chances


def test_bounds_rise_to_the_likelihood():
    expected = [
        -1.0130185538,
        -0.7658190710,
        -0.6946088774,
        -0.6646335388,
        -0.6486984116,
        -0.6388981027,
    ]
    found = [
        chances @ bound(jnp.asarray(ANSWERS)[chains])
        for chains, chances in map(tuples, range(1, 7))
    ]
    np.testing.assert_allclose(found, expected, atol=1e-10)
    likelihood = np.log(POLICY @ LIKELIHOOD)
    np.testing.assert_allclose(likelihood, np.log(0.55))
    assert np.all(np.diff([*found, likelihood]) > 0)
    # What one sample misses is its divergence from the chains that the answer makes likely.
    posterior = POLICY * LIKELIHOOD / (POLICY @ LIKELIHOOD)
    divergence = POLICY @ np.log(POLICY / posterior)
    np.testing.assert_allclose(divergence, 0.4151815531, atol=1e-10)
    np.testing.assert_allclose(likelihood - found[0], divergence, atol=1e-14)
    # The single-sample bound is that of one sample, however many there are.
    chains, chances = tuples(3)
    single = bound(jnp.asarray(ANSWERS)[chains], multi_sample=False)
    np.testing.assert_allclose(chances @ single, expected[0], atol=1e-10)


@pytest.mark.parametrize(
    ("size", "in_logits", "in_beliefs"),
    [
        (1, (0.453829019, -0.057286275, -0.396542744), (0.05, 0.21, 0.19)),
        (2, (0.411003031, -0.119627666, -0.291375365), (0.066447368, 0.1875, 0.064285714)),
        (3, (0.379795424, -0.135070972, -0.244724451), (0.072840309, 0.163232308, 0.036487505)),
    ],
)
def test_both_estimators_are_unbiased(size, in_logits, in_beliefs):
    for multi, bound_size in ((True, size), (False, 1)):
        loss = functools.partial(losses.jepo_loss, multi_sample=multi)
        chain_slopes, answer_slopes, chances = gradients(loss, size)
        exact = jax.jit(jax.grad(exact_bound, argnums=(0, 1)), static_argnums=2)(
            LOGITS, BELIEFS, bound_size
        )
        np.testing.assert_allclose(-chances @ chain_slopes, exact[0], atol=1e-14)
        np.testing.assert_allclose(-chances @ answer_slopes, exact[1], atol=1e-14)
        if multi:
            np.testing.assert_allclose(exact[0], in_logits, atol=1e-9)
            np.testing.assert_allclose(exact[1], in_beliefs, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "multi", "variance"),
    [(2, False, 0.842603), (3, False, 0.375714), (2, True, 0.745844), (3, True, 0.264694)],
)
def test_variances(size, multi, variance):
    # Of the part in the logits: total variance over all tuples.
    loss = functools.partial(losses.jepo_loss, multi_sample=multi)
    slopes, _, chances = gradients(loss, size)
    deviations = slopes - chances @ slopes
    np.testing.assert_allclose(chances @ np.sum(deviations**2, axis=-1), variance, atol=1e-6)


def test_group_by_hand():
    answers = jnp.asarray(ANSWERS)
    found = weights(answers)
    # log(1.25 / 3) less log(.35 / 2), log(.95 / 2), log(1.2 / 2).
    np.testing.assert_allclose(found, [0.867500568, -0.131028262, -0.364643114], atol=1e-9)
    np.testing.assert_allclose(
        weights(answers, multi_sample=False),
        [1.994492023, 0.346573590, -2.341065614],
        atol=1e-9,
    )
    np.testing.assert_allclose(jax.grad(bound)(answers), [0.72, 0.24, 0.04])
    np.testing.assert_allclose([np.std(found), np.std(found, ddof=1)], [0.534354624, 0.654448085])
    for ddof, expected in (
        (0, [1, -0.245208438, -0.682399099]),
        (1, [1, -0.200211851, -0.557176531]),
    ):
        scaled = losses.scaled_advantages(found, ddof=ddof, epsilon=0.0)
        np.testing.assert_allclose(scaled, expected, atol=1e-9)


def test_value_by_hand():
    chains, answers = jnp.log(POLICY), jnp.asarray(ANSWERS)
    multi = np.array([0.867500568, -0.131028262, -0.364643114]) @ LOGITS + np.log(1.25 / 3)
    single = np.array([1.994492023, 0.346573590, -2.341065614]) @ LOGITS + ANSWERS.sum()
    np.testing.assert_allclose(losses.jepo_loss(chains, answers), -multi, atol=1e-8)
    found = losses.jepo_loss(chains, answers, multi_sample=False)
    np.testing.assert_allclose(found, -single / 3, atol=1e-8)
    # A sum over chains, and a mean.
    slopes = jax.grad(losses.jepo_loss)(chains, answers)
    np.testing.assert_allclose(slopes, [-0.867500568, 0.131028262, 0.364643114], atol=1e-9)
    slopes = jax.grad(losses.jepo_loss)(chains, answers, multi_sample=False)
    np.testing.assert_allclose(slopes * 3, [-1.994492023, -0.34657359, 2.341065614], atol=1e-9)


def test_one_chain_has_no_baseline():
    chain, answer = jnp.array([-2.0]), jnp.array([-0.7])
    for multi in (True, False):
        loss = functools.partial(losses.jepo_loss, multi_sample=multi)
        found, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(chain, answer)
        np.testing.assert_allclose(found, 0.7 * -2.0 + 0.7)
        np.testing.assert_allclose(slopes, [[0.7], [-1.0]])
        # Without a chain, its log-probability 0, it is supervised learning of the answer.
        np.testing.assert_allclose(loss(jnp.zeros(1), answer), 0.7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("level", [-0.3, -1e4 / 3])
def test_equal_likelihoods_are_tight(dtype, level):
    for size in (2, 3, 7):
        answers = jnp.full((size,), level, dtype)
        for multi in (True, False):
            found = weights(answers, multi_sample=multi)
            # To the last digit: what follows divides by their deviation.
            np.testing.assert_array_equal(found, np.zeros(size))
            slopes = jax.grad(bound)(answers, multi_sample=multi)
            np.testing.assert_allclose(slopes, np.full(size, 1 / size), rtol=1e-6)
            found = bound(answers, multi_sample=multi)
            np.testing.assert_allclose(found, level, rtol=1e-6)


@pytest.mark.parametrize("multi", [True, False])
def test_long_answers_keep_their_digits(multi):
    # float32 near -1e4 knows a thousandth; quarters are exact.
    answers = np.array([[-0.25, -1.5, -3.0, -0.25], [-700.0, 0.0, -0.5, -90.0]])
    wide = weights(jnp.asarray(answers - 8192), multi_sample=multi)
    single = jnp.asarray(answers - 8192, jnp.float32)
    found = weights(single, multi_sample=multi)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wide, rtol=1e-6, atol=1e-7)
    loss = functools.partial(losses.jepo_loss, multi_sample=multi)
    slopes = jax.jit(jax.grad(lambda c, a: loss(c, a).sum(), argnums=(0, 1)))(single, single)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("multi", [True, False])
def test_impossible_answers(multi):
    answers = jnp.array(
        [[-jnp.inf, -1.0, -2.0], [-jnp.inf, -jnp.inf, -1.0], [-jnp.inf] * 3], jnp.float32
    )
    chains = jnp.full(answers.shape, -3.0, jnp.float32)
    loss = functools.partial(losses.jepo_loss, multi_sample=multi)

    def total(c, a):
        return loss(c, a).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, (chain_slopes, answer_slopes) = run(chains, answers)
    assert np.isfinite(value)
    assert np.isfinite(chain_slopes).all()
    np.testing.assert_array_equal(answer_slopes[np.isneginf(answers)], 0)
    advantages = weights(answers, multi_sample=multi)
    # The only chain that can give the answer is pushed up, whatever else is.
    assert advantages[1, 2] > 1e8
    assert (np.asarray(advantages[0]) < 0)[0]
    np.testing.assert_array_equal(advantages[2], np.zeros(3))
    scaled = losses.scaled_advantages(advantages)
    np.testing.assert_allclose(scaled[1, 2], 1)
    practical = losses.jepo_practical_loss(
        chains, answers, jnp.ones(answers.shape), beta_supervised=0.1, multi_sample=multi
    )
    assert np.isfinite(practical).all()


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_masked_chains_may_hold_anything(multi, poison):
    mask = jnp.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    rng = np.random.default_rng(0)
    chains, answers = (-jnp.asarray(rng.uniform(0.1, 3, (3, 4))) for _ in range(2))
    dirty = [jnp.where(mask != 0, array, poison) for array in (chains, answers)]
    loss = functools.partial(losses.jepo_loss, multi_sample=multi)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(c, a):
        return loss(c, a, mask=mask).sum()

    jax.tree.map(np.testing.assert_array_equal, run(*dirty), run(chains, answers))
    # Rows with what is masked left out, and nothing at all.
    found = losses.jepo_loss(*dirty, multi_sample=multi, mask=mask)
    kept = np.array([0, 2, 3])
    np.testing.assert_allclose(found[0], loss(chains[0, kept], answers[0, kept]), rtol=1e-12)
    np.testing.assert_allclose(found[1], loss(chains[1, 2:3], answers[1, 2:3]), rtol=1e-12)
    assert found[2] == 0
    np.testing.assert_array_equal(bound(dirty[1], multi_sample=multi, mask=mask)[2], 0)
    advantages = weights(dirty[1], multi_sample=multi, mask=mask)
    np.testing.assert_array_equal(np.asarray(advantages)[np.asarray(mask) == 0], 0)


def test_masked_chains_are_a_set_function():
    # Chain 1 leaves no place for an answer. The objective is the bound of the others, 0 without.
    chains, _ = tuples(3)
    good = chains != 1
    terms = np.where(good, LIKELIHOOD[chains], 0).sum(axis=-1) / np.maximum(good.sum(axis=-1), 1)
    outcomes = np.log(np.where(good.any(axis=-1), terms, 1))

    def objective(logits):
        return jnp.prod(jax.nn.softmax(logits)[chains], axis=-1) @ outcomes

    loss = functools.partial(losses.jepo_loss, mask=jnp.asarray(good))
    slopes, _, chances = gradients(loss, 3)
    np.testing.assert_allclose(-chances @ slopes, jax.grad(objective)(LOGITS), atol=1e-14)


def test_practical_loss_by_hand():
    # The second chain has no place for the answer, which is NaN after it.
    chains = jnp.array([-3.0, -5.0, -4.0, -2.0])
    answers = jnp.array([ANSWERS[0], jnp.nan, ANSWERS[1], ANSWERS[2]])
    good = jnp.array([1, 0, 1, 1])
    loss = functools.partial(losses.jepo_practical_loss, beta_supervised=0.01, epsilon=0.0)
    found, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(chains, answers, good)
    # The others as in `test_group_by_hand`; rewards 0, -10, 0, 0 less -2.5, over 2.5 root 3.
    scaled = np.array([1, 0, -0.245208438, -0.682399099])
    formatted = np.array([1 / np.sqrt(3), -1, 1 / np.sqrt(3), 1 / np.sqrt(3)])
    credit = scaled + formatted
    expected = -np.mean(credit * chains) - 0.01 * np.log(1.25 / 3)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(slopes[0], -credit / 4, atol=1e-9)
    np.testing.assert_allclose(slopes[1], [-0.0072, 0, -0.0024, -0.0004], atol=1e-12)


def test_practical_loss_of_one_good_chain():
    chains, answers = jnp.full((2, 3), -3.0), jnp.full((2, 3), -jnp.inf).at[:, 0].set(-0.5)
    good = jnp.array([[1, 0, 0], [0, 0, 0]])
    loss = functools.partial(losses.jepo_practical_loss, beta_supervised=jnp.array([1.0, 0.5]))
    slopes = jax.jit(jax.grad(lambda c, a: loss(c, a, good).sum(), argnums=(0, 1)))(chains, answers)
    # It is praised for its format alone, and its answer learned; where all are bad nothing is.
    assert slopes[0][0, 0] < 0 < slopes[0][0, 1]
    np.testing.assert_allclose(slopes[0][0, 0], -1 / 3)
    np.testing.assert_array_equal(slopes[0][1], np.zeros(3))
    np.testing.assert_allclose(slopes[1], [[-1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_probability_of_the_answer_is_unbiased(size):
    def exact(logits, beliefs):
        return jax.nn.softmax(logits) @ jax.nn.sigmoid(beliefs)

    chain_slopes, answer_slopes, chances = gradients(losses.answer_probability_loss, size)
    expected = jax.grad(exact, argnums=(0, 1))(LOGITS, BELIEFS)
    np.testing.assert_allclose(-chances @ chain_slopes, expected[0], atol=1e-15)
    np.testing.assert_allclose(-chances @ answer_slopes, expected[1], atol=1e-15)
    # Over the probability: the limit of the multi-sample bound's gradient.
    np.testing.assert_allclose(
        expected[0] / 0.55, [0.318181818, -0.136363636, -0.181818182], atol=1e-9
    )


@pytest.mark.parametrize(
    ("function", "arguments", "hyper", "named"),
    [
        ("jepo_loss", (jnp.zeros(3), jnp.zeros(4)), {}, "answer_log_probs"),
        ("jepo_loss", (jnp.zeros(3), jnp.zeros(3)), {"mask": jnp.ones(4)}, "mask"),
        ("jepo_bound", (jnp.zeros(()),), {}, "answer_log_probs"),
        ("jepo_bound", (jnp.zeros(3, jnp.int32),), {}, "answer_log_probs"),
        ("jepo_practical_loss", (jnp.zeros(3),) * 3, {"beta_supervised": -1.0}, "beta_supervised"),
        (
            "jepo_practical_loss",
            (jnp.zeros(3),) * 3,
            {"beta_supervised": 1.0, "format_penalty": -1.0},
            "format_penalty",
        ),
        (
            "jepo_practical_loss",
            (jnp.zeros(3), jnp.zeros(3), jnp.ones((1, 3))),
            {"beta_supervised": 1.0},
            "well_formatted",
        ),
        ("jepo_practical_loss", (jnp.zeros(1),) * 3, {"beta_supervised": 1, "ddof": 1}, "ddof 1"),
        ("answer_probability_loss", (jnp.zeros(3), jnp.zeros(4)), {}, "answer_log_probs"),
    ],
)
def test_errors_name_the_argument(function, arguments, hyper, named):
    with pytest.raises(Exception, match=named):
        getattr(losses, function)(*arguments, **hyper)
