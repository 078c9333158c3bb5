"""Returns from values of states: the specification, textbook sums, rlax, ends in the middle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

REWARDS, VALUES = jnp.array([1.0, 0.0, -1.0, 2.0]), jnp.array([0.5, 0.4, 0.3, 0.2, 0.1])
RATIOS = jnp.array([0.5, 2.0, 1.2, 0.8])


def trajectory(seed, steps=7):
    """Rewards, values, discounts (one of them 0) and ratios, in float64."""
    rng = np.random.default_rng(seed)
    discounts = rng.uniform(0.5, 1, steps)
    discounts[3] = 0
    rewards, values = rng.standard_normal(steps), rng.standard_normal(steps + 1)
    return rewards, values, discounts, rng.uniform(0.1, 3, steps)


def in_float64(function, *arrays, **hyper):
    with jax.enable_x64(True):
        found = jax.jit(lambda *a: function(*a, **hyper))(*map(jnp.asarray, arrays))
        return jax.tree.map(np.asarray, found)


def n_steps(rewards, values, discounts, t, count):
    """The sum of `count` discounted rewards from step t on, and the value after them."""
    total, scale = 0.0, 1.0
    for k in range(t, min(t + count, len(rewards))):
        total += scale * rewards[k]
        scale *= discounts[k]
    return total + scale * values[min(t + count, len(rewards))]


def advantages(rewards, values, discounts, trace_decay):
    return jax.jit(losses.generalised_advantages)(
        rewards, values, discounts, trace_decay=trace_decay
    )


@pytest.mark.parametrize(
    ("trace_decay", "expected"),
    [
        # TD errors: 1 + .9 * .4 - .5 and so on.
        (0.0, [0.86, -0.13, -1.12, 1.89]),
        (0.95, [1.111401849, 0.294037250, 0.495950000, 1.89]),
        # Returns minus values: 2 + .9 * .1 = 2.09, -1 + .9 * 2.09 = .881, .7929, 1.71361.
        (1.0, [1.21361, 0.3929, 0.581, 1.89]),
    ],
)
def test_values(trace_decay, expected):
    found = advantages(REWARDS, VALUES, jnp.full(4, 0.9), trace_decay)
    np.testing.assert_allclose(found, expected, rtol=3e-6)


def test_turns_of_a_conversation():
    # Rewards -alpha KL with a preference of .8 at the end: errors .049, .048, .1995, and
    # .048 + .95 * .1995 = .237525, .049 + .95 * .237525 = .27464875.
    values = jnp.array([0.5, 0.55, 0.6, 0.0])
    found = advantages(
        jnp.array([-0.001, -0.002, 0.7995]), values, jnp.array([1.0, 1.0, 0.0]), 0.95
    )
    np.testing.assert_allclose(found, [0.27464875, 0.237525, 0.1995], rtol=1e-5)
    np.testing.assert_allclose(found + values[:3], [0.77464875, 0.787525, 0.7995], rtol=1e-5)


def test_what_follows_an_end_does_not_count():
    discounts = jnp.array([0.9, 0.0, 0.9, 0.9])
    found = advantages(REWARDS, VALUES, discounts, 0.95)
    np.testing.assert_allclose(found, [0.518, -0.4, 0.49595, 1.89], rtol=3e-6)
    poisoned = advantages(REWARDS.at[2].set(jnp.nan), VALUES.at[2:].set(jnp.nan), discounts, 0.95)
    np.testing.assert_array_equal(poisoned[:2], found[:2])


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_sum_over_steps_by_definition(trace_decay):
    # A_t = sum over k of (product of the decays between) delta_k, in NumPy, two rows at once.
    rng = np.random.default_rng(0)
    rewards, discounts = rng.standard_normal((2, 6)), rng.uniform(size=(2, 6))
    values = rng.standard_normal((2, 7))
    errors = rewards + discounts * values[:, 1:] - values[:, :-1]
    expected = np.zeros((2, 6))
    for t in range(6):
        for k in range(t, 6):
            expected[:, t] += (discounts[:, t:k] * trace_decay).prod(axis=1) * errors[:, k]
    with jax.enable_x64(True):
        arrays = map(jnp.asarray, (rewards, values, discounts))
        found = losses.generalised_advantages(*arrays, trace_decay=trace_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_trace_decay_of_each_step():
    found = losses.generalised_advantages(
        REWARDS, VALUES, jnp.full(4, 0.9), trace_decay=jnp.array([1.0, 0.0, 1.0, 1.0])
    )
    # The second step sees its own error alone, the first one adds .9 of it.
    np.testing.assert_allclose(found, [0.86 - 0.9 * 0.13, -0.13, 0.581, 1.89], rtol=3e-6)


def test_everything_is_stopped():
    gradient = jax.grad(
        lambda *a: losses.generalised_advantages(*a[:3], trace_decay=a[3]).sum(),
        argnums=(0, 1, 2, 3),
    )(REWARDS, VALUES, jnp.full(4, 0.9), 0.5)
    for slope in gradient:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_no_steps():
    found = losses.generalised_advantages(
        jnp.zeros((3, 0)), jnp.ones((3, 1)), jnp.zeros((3, 0)), trace_decay=0.5
    )
    assert found.shape == (3, 0)


@pytest.mark.parametrize(
    ("values", "trace_decay", "named"), [(4, 0.5, "values"), (5, 1.5, "trace_decay")]
)
def test_refused(values, trace_decay, named):
    with pytest.raises(ValueError, match=named):
        losses.generalised_advantages(
            REWARDS, jnp.zeros(values), jnp.ones(4), trace_decay=trace_decay
        )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_n_step_returns_by_a_loop(count):
    rewards, values, discounts, _ = trajectory(0)
    expected = [n_steps(rewards, values, discounts, t, count) for t in range(7)]
    found = in_float64(losses.n_step_returns, rewards, values, discounts, num_steps=count)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_lambda_returns_are_the_mixture_of_n_step_returns(decay):
    # (1 - lambda) sum of lambda^{n-1} G^(n), what is left on the longest: the forward view.
    rewards, values, discounts, _ = trajectory(1)
    expected = np.zeros(7)
    for t in range(7):
        longest = 7 - t
        for count in range(1, longest + 1):
            weight = decay ** (count - 1) * (1 - decay if count < longest else 1)
            expected[t] += weight * n_steps(rewards, values, discounts, t, count)
    arrays = (rewards, values, discounts)
    found = in_float64(losses.lambda_returns, *arrays, trace_decay=decay)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    gae = in_float64(losses.generalised_advantages, *arrays, trace_decay=decay)
    np.testing.assert_allclose(found, gae + values[:-1], atol=1e-12)


def test_vtrace_of_the_specification():
    # H7.
    found = losses.vtrace_returns(REWARDS, VALUES, jnp.full(4, 0.9), RATIOS)
    np.testing.assert_allclose(found.targets, [0.969024, 0.48672, 0.5408, 1.712], rtol=1e-5)
    np.testing.assert_allclose(found.advantages, [0.469024, 0.08672, 0.2408, 1.512], rtol=1e-5)
    np.testing.assert_allclose(found.action_values, [1.438048, 0.48672, 0.5408, 2.09], rtol=1e-5)
    found = losses.vtrace_returns(REWARDS, VALUES, jnp.full(4, 0.9), jnp.ones(4))
    np.testing.assert_allclose(found.targets, [1.71361, 0.7929, 0.881, 2.09], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.0, 1.0), (2.0, 0.5), (np.inf, np.inf)])
def test_vtrace_by_the_sum_of_its_paper(decay, rho_clip, c_clip):
    # v_s = V_s + sum over t >= s of (product of gamma_i lambda c_i over s <= i < t) delta_t.
    rewards, values, discounts, ratios = trajectory(2)
    rho, c = np.minimum(ratios, rho_clip), np.minimum(ratios, c_clip)
    errors = rho * (rewards + discounts * values[1:] - values[:-1])
    targets = values[:-1].copy()
    for s in range(7):
        for t in range(s, 7):
            targets[s] += np.prod(discounts[s:t] * decay * c[s:t]) * errors[t]
    after = np.append(targets[1:], values[-1])
    action_values = rewards + discounts * (decay * after + (1 - decay) * values[1:])
    advantages = np.minimum(ratios, 1.5) * (action_values - values[:-1])
    found = in_float64(
        losses.vtrace_returns,
        *(rewards, values, discounts, ratios),
        **{"trace_decay": decay, "rho_clip": rho_clip, "c_clip": c_clip, "policy_rho_clip": 1.5},
    )
    for ours, theirs in zip(found, (targets, advantages, action_values), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_vtrace_on_policy_is_the_lambda_return():
    rewards, values, discounts, _ = trajectory(3)
    arrays = (rewards, values, discounts)
    found = in_float64(losses.vtrace_returns, *arrays, np.ones(7), trace_decay=0.8)
    expected = in_float64(losses.lambda_returns, *arrays, trace_decay=0.8)
    np.testing.assert_allclose(found.targets, expected, atol=1e-12)


def test_vtrace_thresholds_may_be_traced():
    def run(rho_clip, c_clip, policy_rho_clip, trace_decay):
        return losses.vtrace_returns(
            *(REWARDS, VALUES, jnp.full(4, 0.9), RATIOS),
            rho_clip=rho_clip,
            c_clip=c_clip,
            policy_rho_clip=policy_rho_clip,
            trace_decay=trace_decay,
        )

    knobs = (1.1, 0.7, 1.3, 0.9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(run)(*knobs), run(*knobs)
    )


RETURNS = {
    "generalised_advantages": lambda *a: losses.generalised_advantages(*a[:3], trace_decay=0.9),
    "lambda_returns": lambda *a: losses.lambda_returns(*a[:3], trace_decay=0.9),
    "n_step_returns": lambda *a: losses.n_step_returns(*a[:3], num_steps=3),
    "vtrace_returns": lambda *a: losses.vtrace_returns(*a, trace_decay=0.9),
}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("function", RETURNS.values(), ids=RETURNS)
def test_after_an_end_anything_may_stand(function, poison):
    rewards, values, discounts, ratios = trajectory(4)
    clean = in_float64(function, rewards, values, discounts, ratios)
    for array in (rewards, values, discounts, ratios):
        array[4:] = poison
    dirty = in_float64(function, rewards, values, discounts, ratios)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b[:4]), dirty, clean)


@pytest.mark.parametrize("function", RETURNS.values(), ids=RETURNS)
def test_rows_of_a_batch_do_not_meet(function):
    rows = [trajectory(seed) for seed in range(4)]
    stacked = [np.stack(arrays).reshape(2, 2, -1) for arrays in zip(*rows, strict=True)]
    found = in_float64(function, *stacked)
    for index, row in enumerate(rows):
        single = in_float64(function, *row)
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i // 2, i % 2], b, atol=1e-12),
            found,
            single,
        )


def test_returns_equal_those_of_rlax():
    rlax = pytest.importorskip("rlax")
    arrays = [jnp.asarray(array, jnp.float32) for array in trajectory(5)]
    rewards, values, discounts, ratios = arrays
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    found = losses.generalised_advantages(rewards, values, discounts, trace_decay=0.8)
    theirs = rlax.truncated_generalized_advantage_estimation(rewards, discounts, 0.8, values)
    close(found, theirs)
    found = losses.lambda_returns(rewards, values, discounts, trace_decay=0.8)
    close(found, rlax.lambda_returns(rewards, discounts, values[1:], 0.8))
    found = losses.n_step_returns(rewards, values, discounts, num_steps=3)
    theirs = rlax.n_step_bootstrapped_returns(rewards, discounts, values[1:], 3)
    close(found, theirs)
    found = losses.vtrace_returns(
        rewards, values, discounts, ratios, trace_decay=0.8, rho_clip=1.2, policy_rho_clip=0.9
    )
    theirs = rlax.vtrace_td_error_and_advantage(
        values[:-1], values[1:], rewards, discounts, ratios, 0.8, 1.2, 0.9
    )
    close(found.targets, theirs.errors + values[:-1])
    close(found.advantages, theirs.pg_advantage)
    close(found.action_values, theirs.q_estimate)


@pytest.mark.parametrize(
    ("name", "hyper", "named"),
    [
        ("lambda_returns", {"trace_decay": -0.1}, "trace_decay"),
        ("n_step_returns", {"num_steps": 0}, "num_steps"),
        ("vtrace_returns", {"rho_clip": 0.0}, "rho_clip"),
        ("vtrace_returns", {"c_clip": -1.0}, "c_clip"),
        ("vtrace_returns", {"policy_rho_clip": 0}, "policy_rho_clip"),
        ("vtrace_returns", {"trace_decay": 2}, "trace_decay"),
    ],
)
def test_wrong_numbers_are_named(name, hyper, named):
    arrays = [REWARDS, VALUES, jnp.ones(4), RATIOS]
    with pytest.raises(ValueError, match=named):
        getattr(losses, name)(*arrays[: 4 if name == "vtrace_returns" else 3], **hyper)
