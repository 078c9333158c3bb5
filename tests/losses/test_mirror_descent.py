"""MDPO: the closed form of the mirror step, the specification, reparameterised Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

# Specification H1: the advantages have mean zero under the old policy.
OLD, ADVANTAGES, STEP = np.array([0.5, 0.3, 0.2]), np.array([0.61, -0.89, -0.19]), 0.5


def normalised(weights):
    return weights / weights.sum()


def value_and_slope(function, logits):
    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(function))(jnp.asarray(logits, jnp.float64))
        return float(value), np.asarray(slope)


def on_policy(logits, step=STEP):
    """The expected loss over the old policy's actions."""
    found = losses.mdpo_loss(
        jnp.broadcast_to(logits, (3, 3)),
        jnp.broadcast_to(jnp.log(jnp.asarray(OLD)), (3, 3)),
        jnp.arange(3),
        jnp.asarray(ADVANTAGES),
        inverse_step=1 / step,
    )
    return jnp.asarray(OLD) @ found


def test_on_policy_of_the_specification():
    # The minimum, minus log sum pi_k exp(t A) over t, is attained at pi_k exp(t A).
    optimum = normalised(OLD * np.exp(STEP * ADVANTAGES))
    np.testing.assert_allclose(optimum, [0.644517625, 0.182669141, 0.172813234], atol=1e-9)
    value, slope = value_and_slope(on_policy, np.log(optimum))
    np.testing.assert_allclose(value, -0.1022118590, atol=1e-10)
    np.testing.assert_allclose(value, -np.log(OLD @ np.exp(STEP * ADVANTAGES)) / STEP, atol=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    value, slope = value_and_slope(on_policy, np.log(OLD) + np.array([0.3, -0.1, 0.2]))
    np.testing.assert_allclose(value, -0.0763307426, atol=1e-10)
    np.testing.assert_allclose(slope, [-0.160241747, 0.095140569, 0.065101178], atol=1e-9)


def test_no_policy_is_better_than_the_closed_form():
    best, _ = value_and_slope(on_policy, np.log(OLD * np.exp(STEP * ADVANTAGES)))
    for logits in np.random.default_rng(0).standard_normal((10, 3)):
        value, slope = value_and_slope(on_policy, logits)
        assert value > best
        # Its excess is the divergence from the closed form over t.
        law = normalised(np.exp(logits))
        optimum = normalised(OLD * np.exp(STEP * ADVANTAGES))
        np.testing.assert_allclose(value - best, law @ np.log(law / optimum) / STEP, atol=1e-12)
        np.testing.assert_allclose(slope.sum(), 0, atol=1e-12)


@pytest.mark.parametrize("step", [0.1, 1.0, np.inf])
def test_the_first_step_is_a_policy_gradient(step):
    # H1: at the old policy the divergence has no gradient, whatever its weight.
    _, slope = value_and_slope(lambda x: on_policy(x, step), np.log(OLD))
    np.testing.assert_allclose(slope, [-0.305, 0.267, 0.038], atol=1e-12)

    def plain(logits):
        log_probs = jax.nn.log_softmax(logits)
        return jnp.asarray(OLD) @ losses.policy_gradient_loss(log_probs, jnp.asarray(ADVANTAGES))

    np.testing.assert_allclose(slope, value_and_slope(plain, np.log(OLD))[1], atol=1e-12)


def test_the_new_policy_comes_first_in_the_divergence():
    # With the old one first the closed form is no point of rest.
    def surrogate(logits, divergence):
        old = jnp.log(jnp.asarray(OLD))
        return jnp.asarray(OLD) @ losses.mdpo_surrogate_loss(
            *(jax.nn.log_softmax(logits), old, jnp.asarray(ADVANTAGES)),
            jnp.broadcast_to(divergence(logits, old), (3,)),
            inverse_step=1 / STEP,
        )

    logits = np.log(OLD * np.exp(STEP * ADVANTAGES))
    _, slope = value_and_slope(lambda x: surrogate(x, losses.categorical_kl), logits)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    _, slope = value_and_slope(
        lambda x: surrogate(x, lambda new, old: losses.categorical_kl(old, new)), logits
    )
    assert np.abs(slope).max() > 0.01


def test_impossible_actions_and_rows():
    logits = jnp.array([[0.2, -jnp.inf, 1.0], [0.0, 0.5, -1.0]])
    old = jnp.array([[0.0, -jnp.inf, 0.3], [0.1, 0.2, 0.3]])
    actions, advantages = jnp.array([2, 1]), jnp.array([1.0, -2.0])

    def run(logits, old, actions, inverse_step):
        found = losses.mdpo_loss(logits, old, actions, advantages, inverse_step=inverse_step)
        return found.sum(), found

    grad = jax.jit(jax.grad(run, has_aux=True))
    slopes, found = grad(logits, old, actions, 0.7)
    assert np.isfinite(slopes).all()
    assert slopes[0, 1] == 0
    # Without the impossible action the first row is a policy of two.
    narrow = losses.mdpo_loss(
        logits[0, ::2], old[0, ::2], jnp.array(1), jnp.float32(1), inverse_step=0.7
    )
    np.testing.assert_allclose(found[0], narrow, rtol=1e-6)
    _, each = grad(logits, old, actions, jnp.array([0.7, 2.0]))
    np.testing.assert_allclose(each[0], found[0], rtol=1e-6)
    assert each[1] > found[1]


def off_policy(logits, values, **hyper):
    """The expected loss over the policy's own actions, which moves with it."""
    log_probs = jax.nn.log_softmax(logits)
    found = losses.mdpo_off_policy_loss(
        log_probs, jnp.log(jnp.asarray(OLD)), jnp.asarray(values), **hyper
    )
    return jnp.exp(log_probs) @ found


@pytest.mark.parametrize(
    ("hyper", "law", "expected"),
    [
        (
            {"inverse_step": 2.0},
            lambda q: OLD * np.exp(q / 2),
            [0.661782635, 0.240834875, 0.097382490],
        ),
        (
            {"inverse_step": 1.0, "entropy_weight": 0.2},
            lambda q: OLD**0.8 * np.exp(q),
            [0.763654716, 0.186691075, 0.049654209],
        ),
        (
            {"inverse_step": 0.2, "entropy_weight": 0.2},
            lambda q: np.exp(q / 0.2),
            [0.993262357, 0.006692549, 0.000045094],
        ),
    ],
    ids=["paper", "code", "soft actor-critic"],
)
def test_off_policy_of_the_specification(hyper, law, expected):
    values = np.array([2.0, 1.0, 0.0])
    rest = normalised(law(values))
    np.testing.assert_allclose(rest, expected, atol=1e-9)
    best, slope = value_and_slope(lambda x: off_policy(x, values, **hyper), np.log(rest))
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    for logits in np.random.default_rng(1).standard_normal((5, 3)):
        value, _ = value_and_slope(lambda x: off_policy(x, values, **hyper), logits)
        other = normalised(np.exp(logits))
        # A divergence from the point of rest, times 1 / t_k.
        excess = hyper["inverse_step"] * (other @ np.log(other / rest))
        np.testing.assert_allclose(value - best, excess, atol=1e-12)


def test_forms_of_paper_code_and_soft_actor_critic():
    policy, old, values = jnp.asarray(np.random.default_rng(2).standard_normal((3, 6)), jnp.float32)
    paper = policy - old - 0.3 * values
    found = 0.3 * losses.mdpo_off_policy_loss(policy, old, values, inverse_step=1 / 0.3)
    np.testing.assert_allclose(found, paper, rtol=1e-5, atol=1e-6)
    code = 1.0 * policy + (0.2 - 1.0) * old - values
    found = losses.mdpo_off_policy_loss(policy, old, values, entropy_weight=0.2)
    np.testing.assert_allclose(found, code, rtol=1e-5, atol=1e-6)
    soft = losses.mdpo_off_policy_loss(policy, old, values, inverse_step=0.2, entropy_weight=0.2)
    np.testing.assert_allclose(soft, 0.2 * policy - values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.2])
def test_reparameterised_gaussians_rest_at_the_tilted_one(entropy_weight):
    # pi_k = N(.4, .7^2), Q = -(a - 1)^2 / 2, 1 / t = .5: pi_k^(1 - t lambda) exp(t Q) has precision
    # (1 - t lambda) / .49 + t and mean ((1 - t lambda) .4 / .49 + t) over it. Expectations over the
    # noise are exact by Gauss-Hermite quadrature, the loss being quadratic in it.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    old_mean, old_scale, inverse_step = 0.4, 0.7, 0.5
    share = (1 - entropy_weight / inverse_step) / old_scale**2
    precision = share + 1 / inverse_step
    mean = (share * old_mean + 1 / inverse_step) / precision

    def log_density(action, mean, scale):
        return -jnp.square((action - mean) / scale) / 2 - jnp.log(scale)

    def expected(parameters, hold=lambda x: x):
        scale = jnp.exp(parameters[1])
        action = parameters[0] + scale * jnp.asarray(nodes)
        found = losses.mdpo_off_policy_loss(
            log_density(action, parameters[0], scale),
            hold(log_density(action, old_mean, old_scale)),
            -jnp.square(action - 1) / 2,
            inverse_step=inverse_step,
            entropy_weight=entropy_weight,
        )
        return jnp.asarray(weights / weights.sum()) @ found

    rest = np.array([mean, -np.log(precision) / 2])
    _, slope = value_and_slope(expected, rest)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    # The old policy counts through the action: stopped, the point of rest is another.
    _, slope = value_and_slope(lambda x: expected(x, jax.lax.stop_gradient), rest)
    assert np.abs(slope).max() > 0.1


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (
            lambda: losses.mdpo_off_policy_loss(*(jnp.ones(2),) * 3, inverse_step=-1.0),
            "inverse_step",
        ),
        (
            lambda: losses.mdpo_off_policy_loss(*(jnp.ones(2),) * 3, entropy_weight=-1),
            "entropy_weight",
        ),
        (
            lambda: losses.mdpo_surrogate_loss(*(jnp.ones(2),) * 4, inverse_step=-1.0),
            "inverse_step",
        ),
    ],
)
def test_wrong_numbers_are_named(run, named):
    with pytest.raises(ValueError, match=named):
        run()


def test_wrong_shapes_are_named():
    logits = jnp.ones((2, 3))
    with pytest.raises(Exception, match="actions"):
        losses.mdpo_loss(logits, logits, jnp.zeros(3, jnp.int32), jnp.ones(2), inverse_step=1)
    with pytest.raises(Exception, match="advantages"):
        losses.mdpo_loss(logits, logits, jnp.zeros(2, jnp.int32), jnp.ones((2, 1)), inverse_step=1)
    with pytest.raises(Exception, match="actions"):
        losses.mdpo_loss(logits, logits, jnp.zeros(2), jnp.ones(2), inverse_step=1)
