"""The chain that a config describes: schedule, clipping, decay mask, guard and messages."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import networks
from bellmax.agents import optimizers as agent_optimizers
from bellmax.experiments import errors, optimizers

CONFIG = optimizers.OptimizerConfig(
    name="adan",
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    end_fraction=0.1,
    weight_decay=0.0,
    max_grad_norm=0.0,
    b1=0.9,
    b2=0.92,
    b3=0.99,
    eps=1e-8,
)


def make(num_steps=10, **options) -> Any:
    # optax types updates and states as unions that no test could index.
    return optimizers.make_optimizer(dataclasses.replace(CONFIG, **options), num_steps)


def rates(num_steps, **options):
    config = dataclasses.replace(CONFIG, **options)
    schedule = jax.jit(optimizers.learning_rate_schedule(config, num_steps))
    return np.array([schedule(step) for step in range(num_steps + 2)])


def test_every_key_is_required():
    fields = dataclasses.fields(optimizers.OptimizerConfig)
    assert all(field.default is dataclasses.MISSING for field in fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(CONFIG, "name", "sgd")  # noqa: B010


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_schedule_ends(schedule):
    found = rates(21, schedule=schedule, warmup_steps=5)
    np.testing.assert_allclose(found[:5], 0.1 * np.array([0.2, 0.4, 0.6, 0.8, 1.0]), rtol=1e-6)
    # Step 20 is the last; later ones keep its rate.
    last = 0.1 if schedule == "constant" else 0.01
    np.testing.assert_allclose(found[20:], last, rtol=1e-5)
    assert (np.diff(found[4:]) <= 1e-9).all()


def test_schedule_middles():
    # From the peak at step 0 to a tenth of it at step 20: at step 10 halfway in both shapes, at
    # step 5 a quarter of the way in a line and (1 - cos(pi / 4)) / 2 of it in a cosine.
    linear, cosine = rates(21, schedule="linear"), rates(21, schedule="cosine")
    np.testing.assert_allclose([linear[0], linear[5], linear[10]], [0.1, 0.0775, 0.055], rtol=1e-6)
    at_5 = 0.1 - 0.09 * (1 - math.cos(math.pi / 4)) / 2
    np.testing.assert_allclose([cosine[0], cosine[5], cosine[10]], [0.1, at_5, 0.055], rtol=1e-6)


def test_schedules_of_one_step():
    for schedule in optimizers.SCHEDULES:
        for warmup_steps in (0, 1):
            found = rates(1, schedule=schedule, warmup_steps=warmup_steps)
            np.testing.assert_allclose(found[0], 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["adan", "adam", "adamw", "lion"])
def test_first_step_is_as_long_as_the_rate(name):
    # Each of these divides the gradient by its own size at the first step.
    params = {"x": jnp.array([3.0, -0.02])}
    optimizer = make(name=name)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], [-0.1, 0.1], rtol=1e-5)


def test_sgd_has_momentum_and_decoupled_decay():
    params, gradient = {"x": jnp.array([[2.0]])}, {"x": jnp.array([[1.0]])}
    optimizer = make(name="sgd", weight_decay=0.5)
    state = optimizer.init(params)
    first, state = optimizer.update(gradient, state, params)
    second, _ = optimizer.update(gradient, state, params)
    # -0.1 (g + 0.5 * 2), then -0.1 (1.9 g + 0.5 * 2): the momentum holds no decay.
    np.testing.assert_allclose([first["x"].item(), second["x"].item()], [-0.2, -0.29], rtol=1e-6)
    plain = make(name="sgd", b1=0.0)
    updates, _ = plain.update(gradient, plain.init(params), params)
    np.testing.assert_allclose(updates["x"], -0.1, rtol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decay_spares_norms_in_both_layouts(scan_layers):
    config = networks.TransformerConfig(
        vocab_size=5,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        embed_dim=4,
        mlp_dim=6,
        scan_layers=scan_layers,
    )
    shapes = jax.eval_shape(lambda: networks.init(config, jax.random.key(0)))
    mask = jax.tree_util.tree_leaves_with_path(optimizers.decay_mask(shapes))
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): value for p, value in mask}
    assert len(named) == 2 + 9 * (1 if scan_layers else 2)
    for path, decays in named.items():
        assert decays == path.endswith(("kernel", "embedding")), path


@pytest.mark.parametrize("name", ["adan", "adamw", "lion", "sgd"])
def test_only_matrices_decay(name):
    params = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones((2, 2)),
        "scale": jnp.ones((3, 2)),
        "offset": jnp.ones(2),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make(name=name, weight_decay=0.5)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    # Adan's proximal decay divides by 1.05; the others multiply by 0.95.
    np.testing.assert_allclose(
        updates["kernel"], 1 / 1.05 - 1 if name == "adan" else -0.05, rtol=1e-5
    )
    for path in ("bias", "scale", "offset"):
        np.testing.assert_array_equal(updates[path], 0)


def test_clipping_is_by_the_global_norm():
    # The gradient (3, 4) has norm 5; sgd shows what reaches the optimiser.
    params = {"x": jnp.array(3.0), "y": jnp.array(4.0)}
    for limit, factor in ((1.0, 0.2), (10.0, 1.0), (0.0, 1.0)):
        optimizer = make(name="sgd", b1=0.0, max_grad_norm=limit)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        expected = [-0.1 * 3 * factor, -0.1 * 4 * factor]
        np.testing.assert_allclose([updates["x"], updates["y"]], expected, rtol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_non_finite_gradients_are_skipped_and_counted(name):
    params = {"x": jnp.ones((2, 2))}
    optimizer = make(name=name, max_grad_norm=1.0, schedule="cosine", warmup_steps=3)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    updates, state = update({"x": jnp.full((2, 2), jnp.nan)}, state, params)
    np.testing.assert_array_equal(updates["x"], 0)
    assert int(agent_optimizers.skipped_updates(state)) == 1
    updates, state = update(params, state, params)
    assert int(agent_optimizers.skipped_updates(state)) == 1
    assert (np.abs(updates["x"]) > 0).all()


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_descends(name):
    # f(x) = |x|^2 / 2 from norm 2, gradient x, 40 steps of at most 0.1.
    params = {"x": jnp.array([[1.2, -1.6]])}
    optimizer = make(40, name=name, schedule="linear", end_fraction=0.0, max_grad_norm=1.0)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    assert jnp.linalg.norm(params["x"]) < 1.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "adm", "'adm'.*Did you mean 'ad.*adan, adam, adamw, lion, sgd"),
        ("name", "zzz", "'zzz'.*There are: adan"),
        ("schedule", "cosin", "'cosin'.*Did you mean 'cosine'"),
        ("learning_rate", 0.0, "positive, got 0.0"),
        ("learning_rate", float("nan"), "positive, got nan"),
        ("warmup_steps", 11, "number of steps, 10, got 11"),
        ("end_fraction", 1.5, r"in \[0, 1\], got 1.5"),
        ("weight_decay", -0.1, "at least 0"),
        ("max_grad_norm", -1.0, "at least 0"),
        ("b1", 1.0, r"in \[0, 1\), got 1.0"),
        ("b3", -0.1, r"in \[0, 1\)"),
        ("eps", 0.0, "positive"),
    ],
)
def test_bad_values_name_the_key(key, value, message):
    with pytest.raises(errors.UserError, match=rf"config\.optimizer\.{key} .*{message}"):
        make(**{key: value})


def test_adam_has_no_decay_to_offer():
    with pytest.raises(errors.UserError, match="adamw"):
        make(name="adam", weight_decay=0.1)
    with pytest.raises(errors.UserError, match="steps must be at least 1, got 0"):
        make(num_steps=0)
