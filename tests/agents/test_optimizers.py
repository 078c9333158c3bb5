"""Adan against the authors' trajectories, and the guard on non-finite gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import optimizers

# f(x) = x'Ax/2 - b'x from x0 = (1.5, -2), learning rate 0.1, five steps in float64. The points are
# those of the authors' implementation, to the digits given.
MATRIX = np.array([[3.0, 1.0], [1.0, 2.0]])
VECTOR = np.array([1.0, -1.0])
START = np.array([1.5, -2.0])
PLAIN = [
    (1.4000000, -1.9000000),
    (1.3013554, -1.8003710),
    (1.2038338, -1.7009972),
    (1.1078493, -1.6019325),
    (1.0140724, -1.5032794),
]
PROXIMAL = [
    (1.3972056, -1.8962076),
    (1.2960324, -1.7930240),
    (1.1962400, -1.6903246),
    (1.0982629, -1.5881685),
    (1.0028036, -1.4866681),
]
NO_PROX = [
    (1.3970000, -1.8960000),
    (1.2956306, -1.7926119),
    (1.1956509, -1.6897104),
    (1.0974990, -1.5873554),
    (1.0018831, -1.4856600),
]
CLIPPED = [
    (1.4000000, -1.9000000),
    (1.3001463, -1.7999887),
    (1.2004577, -1.6999787),
    (1.1010832, -1.5999846),
    (1.0023607, -1.5000256),
]
RESTARTED = [*PLAIN[:3], (1.1038338, -1.6009972), (1.0077545, -1.5015500), (0.9156131, -1.4025345)]


def take_step(optimizer, gradient, state, params=None) -> Any:
    """Updates and state; optax types them as unions that no test could index."""
    return optimizer.update(gradient, state, params)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def trajectory(optimizer, num_steps=5, restart_before=None, dtype: Any = np.float64):
    """Points after each step, with the update jitted."""
    params: Any = {"x": jnp.asarray(START, dtype)}
    state = optimizer.init(params)
    update: Any = jax.jit(optimizer.update)
    points = []
    for step in range(num_steps):
        if step == restart_before:
            state = optimizers.restart_adan(state)
        gradient = {"x": jnp.asarray(MATRIX, dtype) @ params["x"] - jnp.asarray(VECTOR, dtype)}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        points.append(np.asarray(params["x"]))
    return np.array(points)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: optimizers.adan(0.1), PLAIN),
        (lambda: optimizers.adan(0.1, weight_decay=0.02), PROXIMAL),
        (lambda: optimizers.adan(0.1, weight_decay=0.02, proximal=False), NO_PROX),
        (lambda: optax.chain(optax.clip_by_global_norm(1.0), optimizers.adan(0.1)), CLIPPED),
    ],
    ids=["plain", "proximal", "no_prox", "clipped"],
)
def test_adan_follows_the_official_trajectory(float64, make, expected):
    np.testing.assert_allclose(trajectory(make()), expected, rtol=0, atol=6e-8)


def test_adan_to_ten_digits(float64):
    last = trajectory(optimizers.adan(0.1))[-1]
    np.testing.assert_allclose(last, (1.0140723988, -1.5032793902), rtol=0, atol=6e-11)


def test_adan_in_float32_is_near():
    points = trajectory(optimizers.adan(0.1), dtype=np.float32)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, PLAIN, rtol=0, atol=2e-6)


@pytest.mark.parametrize("chained", [False, True])
def test_restart_follows_the_official_trajectory(float64, chained):
    optimizer: Any = optimizers.adan(0.1)
    if chained:
        optimizer = optimizers.skip_nonfinite(optax.chain(optax.identity(), optimizer))
    points = trajectory(optimizer, num_steps=6, restart_before=3)
    np.testing.assert_allclose(points, RESTARTED, rtol=0, atol=6e-8)


def test_optax_adan_is_another_algorithm(float64):
    # Negative control: these are the points of optax 0.2.8, far from the official ones.
    for optimizer, theirs, official in (
        (optax.adan(0.1), (1.0070262, -1.5016116), PLAIN),
        (optax.adan(0.1, eps_root=0.0, weight_decay=0.02), (0.9944524, -1.4838408), NO_PROX),
    ):
        last = trajectory(optimizer)[-1]
        np.testing.assert_allclose(last, theirs, rtol=0, atol=6e-8)
        assert np.abs(last - np.array(official[-1])).max() > 1e-3


def test_first_step_is_the_sign_of_the_gradient(float64):
    # m, v and n have one term each at the first step, and d = 0: m / sqrt(n) = g / |g|.
    gradient = {"x": jnp.array([3.0, -0.01, 0.0, 1e3])}
    optimizer: Any = optimizers.adan(0.1)
    updates, _ = take_step(optimizer, gradient, optimizer.init(gradient))
    np.testing.assert_allclose(updates["x"], [-0.1, 0.1, 0.0, -0.1], rtol=2e-6)


def test_without_differences_it_is_adam(float64):
    ours = trajectory(optimizers.adan(0.1, b2=0.0), num_steps=20)
    np.testing.assert_allclose(ours, trajectory(optax.adam(0.1, b1=0.98, b2=0.99), 20), rtol=1e-13)


def test_proximal_step_solves_its_problem(float64):
    # The new point minimises |x - (x0 - s)|^2 / (2 eta) + lambda |x|^2 / 2, where s is the step
    # without decay; its optimality condition is (x - x0 + s) / eta + lambda x = 0.
    eta, decay = 0.3, 0.7
    params, gradient = {"x": jnp.array([1.0, -2.0])}, {"x": jnp.array([0.4, 0.6])}
    without = optimizers.adan(eta)
    step = -take_step(without, gradient, without.init(params), params)[0]["x"]
    decayed = optimizers.adan(eta, weight_decay=decay)
    updates, _ = take_step(decayed, gradient, decayed.init(params), params)
    point = params["x"] + updates["x"]
    np.testing.assert_allclose((updates["x"] + step) / eta + decay * point, 0, atol=1e-14)


@pytest.mark.parametrize("clipped", [False, True])
def test_injected_hyperparameters(float64, clipped):
    def make(learning_rate, weight_decay):
        optimizer = optimizers.adan(learning_rate, weight_decay=weight_decay)
        return optax.chain(optax.clip_by_global_norm(1.0), optimizer) if clipped else optimizer

    injected = optax.inject_hyperparams(make)(learning_rate=0.1, weight_decay=0.02)
    expected = trajectory(make(learning_rate=0.1, weight_decay=0.02))
    np.testing.assert_allclose(trajectory(injected), expected, rtol=1e-12)
    # The whole signature, a schedule and the flag of the decay included.
    direct = optax.inject_hyperparams(optimizers.adan)(
        learning_rate=lambda step: 0.1, weight_decay=0.02, proximal=False
    )
    np.testing.assert_allclose(trajectory(direct), NO_PROX, rtol=0, atol=6e-8)


def test_schedule_is_read_at_the_step(float64):
    rates = jnp.array([0.1, 0.0, 0.05])
    points = trajectory(optimizers.adan(lambda step: rates[step]), num_steps=3)
    # Averages do not depend on the rate, but the gradients do: only the first two steps compare.
    np.testing.assert_allclose(points[0], PLAIN[0], atol=6e-8)
    np.testing.assert_array_equal(points[1], points[0])
    assert (points[2] != points[1]).all()


MASKS = {
    "tree": {"a": {"kernel": True, "scale": False}, "b": True},
    "prefix": {"a": False, "b": True},
    "function": lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_chooses_what_decays(name):
    params = {"a": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}, "b": jnp.ones(3)}
    decays = {"tree": (True, False, True), "prefix": (False, False, True)}
    expected = decays.get(name, (True, False, False))
    optimizer: Any = optimizers.adan(0.1, weight_decay=0.5, mask=MASKS[name])
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = take_step(optimizer, zeros, optimizer.init(params), params)
    # Without a gradient nothing but decay moves: 1 / (1 + 0.1 * 0.5) - 1.
    for update, decayed in zip(jax.tree.leaves(updates), expected, strict=True):
        np.testing.assert_allclose(update, 1 / 1.05 - 1 if decayed else 0.0, rtol=1e-6)


def test_low_precision_parameters_have_float32_averages():
    params = {"x": jnp.asarray(START, jnp.bfloat16), "y": jnp.zeros(3)}
    optimizer: Any = optimizers.adan(1e-3, weight_decay=0.1)
    state = optimizer.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state[1:])} == {jnp.dtype(jnp.float32)}
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = take_step(optimizer, gradient, state, params)
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state[1:])} == {jnp.dtype(jnp.float32)}
    # An average in bfloat16 could not hold 1 - b3 = 0.01 of a square beside the rest.
    assert state.count.dtype == jnp.int32


@pytest.mark.parametrize("jitted", [False, True])
def test_no_two_leaves_share_a_buffer(jitted):
    params = {"x": jnp.ones((4, 3)), "y": jnp.ones((4, 3))}
    optimizer: Any = optimizers.skip_nonfinite(optimizers.adan(0.1, weight_decay=0.1))
    state = (jax.jit(optimizer.init) if jitted else optimizer.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradient):
        updates, state = take_step(optimizer, gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        gradient = jax.tree.map(jnp.ones_like, params)
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
        assert len(set(pointers)) == len(pointers)
        # Donating one buffer twice is an error.
        params, state = step(params, state, gradient)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_adan_accepts_any_tree():
    for params in (jnp.ones(3), [jnp.ones(2), (jnp.ones(()),)], {"a": None, "b": jnp.ones(2)}):
        optimizer = optimizers.adan(0.1)
        state = optimizer.init(params)
        updates, after = take_step(optimizer, params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_adan_refuses_bad_arguments():
    with pytest.raises(ValueError, match="b2"):
        optimizers.adan(0.1, b2=1.0)
    optimizer: Any = optimizers.adan(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        take_step(optimizer, {"x": jnp.ones(2)}, optimizer.init({"x": jnp.ones(2)}))


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "inner",
    [optimizers.adan(0.1, weight_decay=0.1), optax.adamw(0.1), optax.sgd(0.1, momentum=0.9)],
    ids=["adan", "adamw", "sgd"],
)
def test_a_bad_gradient_takes_no_step(inner, bad):
    params = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0, jnp.bfloat16)}
    good = {"x": jnp.array([0.5, -1.0]), "y": jnp.array(0.3, jnp.bfloat16)}
    poisoned = {**good, "x": jnp.array([0.5, bad])}
    optimizer: Any = optimizers.skip_nonfinite(optax.chain(optax.clip_by_global_norm(1.0), inner))
    update: Any = jax.jit(optimizer.update)
    _, state = update(good, optimizer.init(params), params)
    assert int(optimizers.skipped_updates(state)) == 0
    before = jax.tree.map(np.asarray, state.inner)
    # However many in a row: optax.apply_if_finite lets the bad gradient through in the end.
    for count in range(1, 8):
        updates, state = update(poisoned, state, params)
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(updates))
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
        assert int(optimizers.skipped_updates(state)) == count
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.inner))
    # The next good step is the one that would have come at once.
    updates, _ = update(good, state, params)
    expected, _ = update(good, state._replace(inner=before), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(updates))


def test_a_good_gradient_passes_unchanged():
    inner = optimizers.adan(0.1, weight_decay=0.02)
    guarded = trajectory(optimizers.skip_nonfinite(inner), dtype=np.float32)
    np.testing.assert_array_equal(guarded, trajectory(inner, dtype=np.float32))


def test_skipped_updates_is_found_anywhere():
    params = {"x": jnp.ones(2)}
    guard = optimizers.skip_nonfinite(optax.sgd(0.1))
    nan = {"x": jnp.array([jnp.nan, 0.0])}
    for optimizer, expected in (
        (optax.chain(optax.identity(), guard), 1),
        (optax.inject_hyperparams(lambda rate: guard)(rate=0.1), 1),
        (optax.sgd(0.1), 0),
    ):
        _, state = take_step(optimizer, nan, optimizer.init(params), params)
        count = optimizers.skipped_updates(state)
        assert count.dtype == jnp.int32
        assert count.shape == ()
        assert int(count) == expected


def test_skipping_works_under_vmap_and_shard_map():
    optimizer: Any = optimizers.skip_nonfinite(optimizers.adan(0.1))
    gradients = {"x": jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])}
    states: Any = jax.vmap(optimizer.init)(gradients)
    updates, states = jax.vmap(optimizer.update)(gradients, states)
    np.testing.assert_array_equal(states.skipped, [0, 1])
    np.testing.assert_allclose(updates["x"], [[-0.1, -0.1], [0.0, 0.0]], rtol=1e-6)

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.PartitionSpec()

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec("data"), replicated),
        out_specs=replicated,
    )
    def step(gradients, state):
        averaged = jax.tree.map(lambda g: jax.lax.pmean(g[0], "data"), gradients)
        return take_step(optimizer, averaged, state)

    row = {"x": gradients["x"][1:]}
    updates, state = step(row, optimizer.init({"x": jnp.ones(2)}))
    assert int(state.skipped) == 1
    np.testing.assert_array_equal(updates["x"], 0)
