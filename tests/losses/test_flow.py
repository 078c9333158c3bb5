"""TD-CFM, TD-CFM(C) and TD2-CFM: the specification's numbers, fixed points, variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

BOOTSTRAPS = ("td_cfm", "coupled_td_cfm", "td2_cfm")
every_bootstrap = pytest.mark.parametrize("name", BOOTSTRAPS)


def bootstrap(name, field, noise, fresh_noise, time, **hyper):
    """Calls a bootstrap; only TD-CFM takes fresh noise."""
    function = getattr(losses, f"{name}_bootstrap")
    draws = (noise, fresh_noise) if name == "td_cfm" else (noise,)
    return function(field, *draws, time, **hyper)


def normal_quantiles(count):
    """Midpoints of equal shares of N(0, 1): a quadrature rule for smooth functions."""
    special = pytest.importorskip("scipy.special")
    return special.ndtri((np.arange(count) + 0.5) / count)


# Specification C1: two transitions in one dimension.
TIME = np.array([0.3, 0.7])
NOISE, OTHER, FRESH = np.array([[[0.2], [-1.1]], [[-0.4], [0.9]], [[0.5], [-0.2]]])
STATE, NEXT = np.array([[0.0], [1.0]]), np.array([[1.0], [-0.5]])


def online(point, time):
    return 0.5 * point - time[:, None] + 0.1 * STATE


def to_a_point(point, time):
    return (2 * NEXT - point) / (1 - time[:, None])


def not_straight(point, time):
    del time
    return NEXT - point


STRAIGHT_VALUES = {
    "td_cfm": ([0.95, -0.76], [1.5, -0.8], 0.96191125),
    "coupled_td_cfm": ([0.32, -0.43], [2.4, -1.9], 3.59027125),
    "td2_cfm": ([0.32, -0.43], [2.4, -1.9], 3.59027125),
}
# v = s' - x takes one midpoint step of 1/10 by x <- s' + (x - s') (1 - .1 + .005). From -.4 and .9
# ten steps end at 1 - 1.4 (.905)^10 and -.5 + 1.4 (.905)^10; TD-CFM and (C) follow from the path.
END = NEXT[:, 0] + (OTHER - NEXT)[:, 0] * 0.905**10
CURVED_VALUES = {
    "td_cfm": (
        TIME * END + (1 - TIME) * FRESH[:, 0],
        END - FRESH[:, 0],
        0.4756989377,
    ),
    "coupled_td_cfm": (
        TIME * END + (1 - TIME) * OTHER[:, 0],
        END - OTHER[:, 0],
        0.9431805939,
    ),
    "td2_cfm": ([-0.037193244, 0.195638434], [1.037193244, -0.695638434], 1.0013164111),
}


def transition_loss(name, field):
    with jax.enable_x64(True):
        noise, other, fresh, next_states, time = (
            jnp.asarray(array) for array in (NOISE, OTHER, FRESH, NEXT, TIME)
        )
        direct, direct_velocity = losses.linear_path(noise, next_states, time)
        point, velocity = bootstrap(name, field, other, fresh, time)
        loss = losses.td_flow_loss(
            online(direct, time), direct_velocity, online(point, time), velocity, discount=0.9
        )
        return np.asarray(point)[:, 0], np.asarray(velocity)[:, 0], np.mean(loss)


@every_bootstrap
@pytest.mark.parametrize(
    ("field", "values"), [(to_a_point, STRAIGHT_VALUES), (not_straight, CURVED_VALUES)]
)
def test_numbers_of_the_specification(name, field, values):
    point, velocity, loss = transition_loss(name, field)
    np.testing.assert_allclose(END, [0.484042621, 0.015957379], atol=5.1e-10)
    np.testing.assert_allclose(point, values[name][0], atol=5.1e-10)
    np.testing.assert_allclose(velocity, values[name][1], atol=5.1e-10)
    np.testing.assert_allclose(loss, values[name][2], atol=5.1e-11)


def test_weights_of_the_two_terms():
    # Specification C1, squared errors of the direct term and of TD-CFM's.
    direct, boot = np.array([0.7744, 2.3716]), np.array([1.755625, 0.0324])
    zero = jnp.zeros((2, 1))
    for discount in (0.0, 0.9, 1.0, jnp.array([0.25, 0.5])):
        found = losses.td_flow_loss(
            jnp.sqrt(direct)[:, None], zero, zero, jnp.sqrt(boot)[:, None], discount=discount
        )
        np.testing.assert_allclose(found, (1 - discount) * direct + discount * boot, rtol=2e-6)


@every_bootstrap
def test_discount_zero_is_monte_carlo_flow_matching(name):
    # Specification C2, in value and gradient. Both by hand for a linear network v = x W + b t:
    # the mean of |v - u|^2, and 2 x^T (v - u) / n for W.
    rng = np.random.default_rng(0)
    noise, other, fresh, next_states = rng.standard_normal((4, 6, 3))
    time, weights = rng.uniform(size=6), rng.standard_normal((3, 3))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a) for a in (noise, next_states, time)]
        direct, velocity = losses.linear_path(*arrays)
        boot, boot_velocity = bootstrap(
            name, lambda x, t: jnp.sin(x), jnp.asarray(other), jnp.asarray(fresh), arrays[2]
        )

        def td(w):
            values = losses.td_flow_loss(
                direct @ w, velocity, boot @ w, boot_velocity, discount=0.0
            )
            return jnp.mean(values)

        def monte_carlo(w):
            return jnp.mean(losses.flow_matching_loss(direct @ w, velocity))

        found = jax.value_and_grad(td)(jnp.asarray(weights))
        other_found = jax.value_and_grad(monte_carlo)(jnp.asarray(weights))
    point = time[:, None] * next_states + (1 - time)[:, None] * noise
    error = point @ weights - (next_states - noise)
    for value, gradient in (found, other_found):
        np.testing.assert_allclose(value, np.mean(np.sum(error**2, -1)), rtol=1e-12)
        np.testing.assert_allclose(gradient, 2 * point.T @ error / 6, rtol=1e-11)


# Specification C7: a deterministic cycle of three states at these places.
PLACES, DISCOUNT = np.array([-1.0, 0.0, 2.0]), 0.8


def successor_measure(discount):
    """M = (1 - gamma) (I - gamma P)^-1 P of the cycle 0 -> 1 -> 2 -> 0."""
    moves = np.roll(np.eye(3), 1, axis=1)
    return (1 - discount) * np.linalg.solve(np.eye(3) - discount * moves, moves)


def mixture_field(weights, places=PLACES):
    """The flow-matching field of a law of atoms, the mean of u_{t|1} under the posterior."""

    def field(point, time):
        t = time[..., None]
        logits = jnp.log(weights) - jnp.square((point - t * places) / (1 - t)) / 2
        mean = jnp.sum(jax.nn.softmax(logits, axis=-1) * places, axis=-1, keepdims=True)
        return (mean - point) / (1 - t)

    return field


def at(field, point, time):
    with jax.enable_x64(True):
        return float(field(jnp.array([point]), jnp.array(time))[0])


def test_fields_and_densities_of_the_specification():
    law = successor_measure(DISCOUNT)
    np.testing.assert_allclose(law[0], [0.262295082, 0.409836066, 0.327868852], atol=5.1e-10)
    found = [at(mixture_field(row), 0.5, 0.6) for row in law]
    np.testing.assert_allclose(found, [0.033772271, 0.713431760, -0.046021789], atol=5.1e-10)
    two = at(mixture_field(np.array([0.3, 0.7]), np.array([-1.0, 1.0])), 0.2, 0.4)
    np.testing.assert_allclose(two, 0.614806488, atol=5.1e-10)


def normal_density(point, mean, scale):
    return np.exp(-(((point - mean) / scale) ** 2) / 2) / scale / np.sqrt(2 * np.pi)


@pytest.mark.parametrize("state", [0, 1, 2])
def test_bellman_equation_of_the_field_is_where_the_loss_is_stationary(state):
    # At a point x the direct term arrives with density (1 - gamma) N(x; t e', (1 - t)^2), the
    # bootstrap with gamma m_t(x | s'): the loss with these weights is least at the field of s.
    time, point, after = 0.6, 0.5, (state + 1) % 3
    law = successor_measure(DISCOUNT)
    kernels = normal_density(point, time * PLACES, 1 - time)
    densities = law @ kernels
    np.testing.assert_allclose(densities, [0.263822562, 0.215622524, 0.215604831], atol=5.1e-10)
    direct, boot = (1 - DISCOUNT) * kernels[after], DISCOUNT * densities[after]
    # m_t itself solves the Bellman equation.
    np.testing.assert_allclose(direct + boot, densities[state], rtol=1e-12)
    velocities = [at(mixture_field(row), point, time) for row in law]
    with jax.enable_x64(True):
        straight = jnp.array([(PLACES[after] - point) / (1 - time)])
        own, target = (jnp.array([velocities[index]]) for index in (state, after))
        slope = jax.grad(
            lambda v: losses.td_flow_loss(
                v, straight, v, target, discount=jnp.asarray(boot / (direct + boot))
            )
        )(own)
    np.testing.assert_allclose(slope, [0.0], atol=1e-13)


def expected_residuals(name, own, after, branches, time, count=1000):
    """E[phi(X) (v(X) - u)] over both terms for phi = 1, x, x^2: 0 at the fixed point of a loss.

    `own` is the field at the state, used online; `branches` holds probabilities, places and target
    fields of next states. Quadrature, not sampling: equal shares of the noise, Gauss-Hermite for
    the fresh noise.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    noise = np.repeat(normal_quantiles(count), len(nodes))[:, None]
    fresh = np.tile(nodes, count)[:, None]
    shares = np.tile(weights / weights.sum(), count) / count

    @jax.jit
    def residuals(noise, fresh, shares):
        times = jnp.full(len(shares), time)
        total = 0.0
        for probability, place, field in branches:
            direct = losses.linear_path(noise, jnp.full_like(noise, place), times)
            boot = bootstrap(name, field, noise, fresh, times, num_steps=30)
            for weight, (point, velocity) in ((1 - after, direct), (after, boot)):
                error = (own(point, times) - velocity)[:, 0] * shares
                features = jnp.stack([point[:, 0] ** k for k in range(3)])
                total += weight * probability * jnp.sum(features * error, axis=-1)
        return total

    with jax.enable_x64(True):
        return np.asarray(residuals(*(jnp.asarray(a) for a in (noise, fresh, shares))))


@pytest.mark.parametrize("time", [0.2, 0.6])
@pytest.mark.parametrize("name", ["td_cfm", "td2_cfm"])
def test_monte_carlo_field_is_a_fixed_point(name, time):
    fields = [mixture_field(row) for row in successor_measure(DISCOUNT)]
    found = expected_residuals(name, fields[0], DISCOUNT, [(1.0, PLACES[1], fields[1])], time)
    # The direct term alone is off by .1; this is the quadrature's error at a jump of psi_1.
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_coupled_fixed_point_is_another_field_where_the_flow_bends():
    # Straight lines from Y_0 to psi_1(Y_0) pass other points at time t than the flow does: the
    # field of Monte-Carlo flow matching is not the fixed point of TD-CFM(C), though its law is.
    fields = [mixture_field(row) for row in successor_measure(DISCOUNT)]
    found = expected_residuals(
        "coupled_td_cfm", fields[0], DISCOUNT, [(1.0, PLACES[1], fields[1])], 0.6
    )
    np.testing.assert_allclose(found, [-0.0664, 0.0319, 0.0673], atol=2e-3)


@every_bootstrap
@pytest.mark.parametrize("time", [0.2, 0.6])
def test_fixed_point_where_all_target_flows_are_straight(name, time):
    # From one state to two that absorb: the targets are point masses, their flows straight lines.
    probabilities, places = np.array([0.3, 0.7]), np.array([-1.0, 1.0])
    branches = [
        (p, place, mixture_field(np.ones(1), np.array([place])))
        for p, place in zip(probabilities, places, strict=True)
    ]
    own = mixture_field(probabilities, places)
    found = expected_residuals(name, own, DISCOUNT, branches, time, count=2000)
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_straight_target_makes_coupled_and_td2_one():
    rng = np.random.default_rng(0)
    noise, goal = rng.standard_normal((2, 5, 3))
    time = rng.uniform(size=5)
    with jax.enable_x64(True):

        def field(point, t):
            return (goal - point) / (1 - t[:, None])

        coupled, squared = (
            bootstrap(name, field, jnp.asarray(noise), None, jnp.asarray(time), num_steps=3)
            for name in ("coupled_td_cfm", "td2_cfm")
        )
    for first, second in zip(coupled, squared, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-10)
    np.testing.assert_allclose(coupled[1], goal - noise, rtol=1e-10)


def test_curved_path_is_an_option_of_the_path_bootstraps():
    # The target is a point mass, so that Y_1 is known: 2 s'.
    time = jnp.asarray(TIME, jnp.float32)
    angle = np.pi * TIME[:, None] / 2
    for name, start in (("td_cfm", FRESH), ("coupled_td_cfm", OTHER)):
        point, velocity = bootstrap(
            name,
            to_a_point,
            jnp.asarray(OTHER, jnp.float32),
            jnp.asarray(FRESH, jnp.float32),
            time,
            path=losses.curved_path,
        )
        expected = np.sin(angle) * 2 * NEXT + np.cos(angle) * start
        slope = np.pi / 2 * (np.cos(angle) * 2 * NEXT - np.sin(angle) * start)
        np.testing.assert_allclose(point, expected, atol=1e-5)
        np.testing.assert_allclose(velocity, slope, atol=1e-5)


VARIANCES = {
    # gamma: Var TD-CFM, Var TD2-CFM, their gap, gamma^2 E Cov; specification C8, where all four are
    # sampled, n = 4e5, good to 1%. By quadrature the last are .39486, 1.02818 and 1.40430.
    0.5: (0.560, 0.165, 0.3950, 0.3943),
    0.8: (1.0786, 0.0466, 1.0320, 1.0308),
    0.95: (1.4109, 0.00348, 1.4074, 1.4073),
}


def expected_covariance(discount, count=400):
    """E Var(u_{t|1}(x | X_1) | x) over t ~ U[0, .95] and x ~ m_t(. | s'), by quadrature."""
    law = successor_measure(discount)[1]
    times = 0.95 * (np.arange(count) + 0.5) / count
    points = np.linspace(-8, 8, 4001)
    total = 0.0
    for time in times:
        joint = law[:, None] * normal_density(points, time * PLACES[:, None], 1 - time)
        density = joint.sum(0)
        posterior = joint / np.where(density > 0, density, 1)
        mean = PLACES @ posterior
        spread = np.square(PLACES) @ posterior - mean**2
        total += np.sum(density * spread) * (points[1] - points[0]) / (1 - time) ** 2
    return total / count


@pytest.mark.parametrize("discount", VARIANCES)
def test_variance_identity(discount):
    # Specification C8: the gradient of one transition for a parameter added to the field, state 0.
    count = 20_000
    rng = np.random.default_rng(0)
    fields = [mixture_field(row) for row in successor_measure(discount)]
    noise, other, fresh = rng.standard_normal((3, count, 1))
    time = rng.uniform(0, 0.95, count)

    @jax.jit
    def gradients(noise, other, fresh, time):
        direct, direct_velocity = losses.linear_path(noise, jnp.full_like(noise, PLACES[1]), time)

        def slopes(name):
            point, velocity = bootstrap(name, fields[1], other, fresh, time, num_steps=20)
            rows = (fields[0](direct, time), direct_velocity, fields[0](point, time), velocity)

            def loss(shift, own, straight, boot, target):
                # Half of it has the gradient that the identity is about.
                return (
                    losses.td_flow_loss(
                        own + shift, straight, boot + shift, target, discount=discount
                    )
                    / 2
                )

            return jax.vmap(jax.grad(loss))(jnp.zeros_like(point), *rows)[:, 0]

        return slopes("td_cfm"), slopes("td2_cfm")

    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in (noise, other, fresh, time)]
        plain, squared = (np.asarray(g) for g in gradients(*arrays))
    first, second, gap, covariance = VARIANCES[discount]
    exact = discount**2 * expected_covariance(discount)
    np.testing.assert_allclose(exact, covariance, rtol=1e-2)

    def within(found, samples, expected):
        # Four standard errors of a mean of these samples, and of the specification's 4e5.
        error = 4 * samples.std() * np.sqrt(1 / count + 1 / 4e5) + 1e-6
        assert abs(found - expected) < error, (found, expected, error)

    # The mean gradients are 0 at the fixed point, so squares are what a variance averages.
    within(plain.mean(), plain, 0.0)
    within(squared.mean(), squared, 0.0)
    within(plain.var(), plain**2, first)
    within(squared.var(), squared**2, second)
    within(plain.var() - squared.var(), plain**2 - squared**2, gap)
    within(plain.var() - squared.var(), plain**2 - squared**2, exact)


@every_bootstrap
def test_no_gradient_reaches_the_target_network(name):
    rng = np.random.default_rng(0)
    noise, fresh = (jnp.asarray(a, jnp.float32) for a in rng.standard_normal((2, 4, 3)))
    time = jnp.asarray(rng.uniform(size=4), jnp.float32)

    def total(scale):
        point, velocity = bootstrap(name, lambda x, t: scale * jnp.sin(x), noise, fresh, time)
        # As targets, and as the point of a network that shares the parameter.
        return jnp.sum(
            losses.td_flow_loss(point, velocity, point, velocity, discount=0.5) + point[:, 0]
        )

    assert jax.grad(total)(1.3) == 0


@pytest.mark.parametrize("discount", [-0.1, 1.1, float("nan")])
def test_discount_out_of_range_is_refused(discount):
    zero = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="discount"):
        losses.td_flow_loss(zero, zero, zero, zero, discount=discount)


def test_wrong_arguments_are_named():
    error = (ValueError, pytest.importorskip("jaxtyping").TypeCheckError)
    zero, time = jnp.zeros((2, 3)), jnp.zeros(2)

    def field(point, time):
        return jnp.zeros(2)

    with pytest.raises(error, match="fresh_noise"):
        losses.td_cfm_bootstrap(jnp.add, zero, jnp.zeros((2, 4)), time)
    with pytest.raises(error, match="time"):
        losses.td2_cfm_bootstrap(jnp.add, zero, zero)
    with pytest.raises(ValueError, match="velocity_fn"):
        losses.td2_cfm_bootstrap(field, zero, time)
    with pytest.raises(error, match="bootstrap_velocity"):
        losses.td_flow_loss(zero, zero, zero, jnp.zeros(3), discount=0.5)
