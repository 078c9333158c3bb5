"""Velocity networks: their shapes, what they read, and that both kinds can be fitted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import losses
from bellmax.agents.networks import flow, num_parameters

SMALL = {
    "point_size": 2,
    "condition_size": 3,
    "hidden_sizes": (16, 8),
    "time_features": 6,
    "time_sizes": (5,),
    "condition_sizes": (7, 4),
}
CONFIGS = {
    "u_shaped": flow.FlowNetworkConfig(**SMALL),
    "plain": flow.FlowNetworkConfig(**SMALL, u_shaped=False),
}


def inputs(shape, seed=0):
    rng = np.random.default_rng(seed)
    sizes = ((*shape, 2), shape, (*shape, 3))
    return tuple(jnp.asarray(rng.uniform(size=size), jnp.float32) for size in sizes)


@pytest.fixture(scope="module", params=CONFIGS)
def network(request):
    """Parameters that are all away from where they start, and the network."""
    config = CONFIGS[request.param]
    params = flow.init(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved), jax.jit(functools.partial(flow.apply, config))


def test_every_point_is_moved_by_itself(network):
    params, apply = network
    point, time, condition = inputs((4, 3))
    found = apply(params, point, time, condition)
    assert found.shape == (4, 3, 2)
    assert found.dtype == jnp.float32
    alone = apply(params, point[1, 2], time[1, 2], condition[1, 2])
    np.testing.assert_allclose(alone, found[1, 2], rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(apply, in_axes=(None, 0, 0, 0))(params, point, time, condition)
    np.testing.assert_allclose(mapped, found, rtol=1e-5, atol=1e-6)


def test_point_time_and_condition_are_read(network):
    params, apply = network
    given = inputs((5,))
    slopes = jax.jit(jax.jacobian(lambda *values: apply(params, *values).sum(), argnums=(0, 1, 2)))
    for slope in slopes(*given):
        assert (np.abs(slope) > 1e-6).all()


def test_the_number_of_parameters_is_that_of_the_layers():
    dense = lambda rows, columns: (rows + 1) * columns  # noqa: E731
    context = 5 + 4
    stage = lambda width, size: (  # noqa: E731
        dense(width, size)
        + dense(context, 2 * size)
        + dense(size, size)
        + (width * size if width != size else 0)
    )
    readers = dense(6, 5) + dense(3, 7) + dense(7, 4)
    stages = stage(16, 16) + stage(16, 8) + stage(16, 8) + stage(8 + 16, 16)
    expected = readers + dense(2, 16) + stages + dense(16, 2)
    params = flow.init(CONFIGS["u_shaped"], jax.random.key(0))
    assert num_parameters(params) == expected
    plain = flow.init(CONFIGS["plain"], jax.random.key(0))
    assert num_parameters(plain) == dense(2 + 6 + 3, 16) + dense(16, 8) + dense(8, 2)


def test_the_paper_s_network_is_the_default():
    config = flow.FlowNetworkConfig(point_size=4, condition_size=6)
    shapes = jax.eval_shape(functools.partial(flow.init, config), jax.random.key(0))
    assert sorted(name for name in shapes if name.startswith(("down", "up"))) == [
        *(f"down_{i}" for i in range(3)),
        *(f"up_{i}" for i in range(3)),
    ]
    assert shapes["up_1"]["input"]["kernel"].shape == (1024, 512)
    assert shapes["down_0"]["film"]["kernel"].shape == (256 + 512, 1024)
    assert shapes["time_0"]["kernel"].shape == (256, 256)


def test_a_time_is_embedded_by_geometric_frequencies():
    found = flow.time_embedding(
        jnp.array(0.5), num_features=6, min_frequency=1.0, max_frequency=100.0
    )
    angles = 0.5 * np.array([1.0, 10.0, 100.0])
    np.testing.assert_allclose(found, [*np.sin(angles), *np.cos(angles)], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_can_be_learnt(name):
    """The straight paths to two points, one for each condition: (c - x) / (1 - t)."""
    config = flow.FlowNetworkConfig(
        point_size=1,
        condition_size=1,
        hidden_sizes=(24, 24),
        u_shaped=name == "u_shaped",
        time_features=8,
        max_frequency=20.0,
        time_sizes=(16,),
        condition_sizes=(16,),
    )
    optimizer = optax.adam(5e-3)

    def loss_fn(params, key):
        keys = jax.random.split(key, 3)
        noise, time = jax.random.normal(keys[0], (128, 1)), jax.random.uniform(keys[1], (128,))
        condition = jax.random.bernoulli(keys[2], 0.5, (128, 1)).astype(jnp.float32)
        point, velocity = losses.linear_path(noise, 3 * condition - 1, time)
        found = flow.apply(config, params, point, time, condition)
        return losses.flow_matching_loss(found, velocity).mean()

    def step(carry, key):
        params, state = carry
        loss, slopes = jax.value_and_grad(loss_fn)(params, key)
        updates, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def train(params):
        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 600))

    (params, _), history = train(flow.init(config, jax.random.key(0)))
    # Data and condition decide each other: nothing is left to chance, and the least loss is 0.
    assert float(history[-50:].mean()) < 0.05 * float(history[:10].mean())
    condition = jnp.array([[0.0], [1.0]] * 8)
    field = functools.partial(flow.apply, config, params)
    start = jnp.linspace(-1, 1, 16)[:, None]
    ends = losses.integrate_midpoint(
        lambda point, time: field(point, time, condition), start, jnp.ones(16), num_steps=20
    )
    np.testing.assert_allclose(ends, 3 * condition - 1, atol=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point_size": 0}, "point_size must be at least 1, got 0"),
        ({"time_features": 3}, "time_features must be even, got 3"),
        ({"min_frequency": 0.0}, "min_frequency must be above 0"),
        ({"hidden_sizes": ()}, "hidden_sizes must hold sizes of at least 1"),
        ({"condition_sizes": (4, 0)}, "condition_sizes must hold sizes of at least 1"),
    ],
)
def test_shapes_that_make_no_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        flow.FlowNetworkConfig(**{**SMALL, **change})


def test_inputs_of_another_shape_are_refused(network):
    params, apply = network
    point, time, condition = inputs((4,))
    with pytest.raises(ValueError, match=r"point must be \[..., 2\] and time"):
        apply(params, point[:, :1], time, condition)
    with pytest.raises(ValueError, match=r"condition must be \(4, 3\)"):
        apply(params, point, time)


def test_mish_is_jax_s():
    values = jnp.concatenate([jnp.linspace(-60.0, 60.0, 4001), jnp.array([-1e30, 1e30])])
    for function in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
        np.testing.assert_allclose(
            function(flow.mish)(values), function(jax.nn.mish)(values), rtol=2e-5, atol=1e-6
        )
