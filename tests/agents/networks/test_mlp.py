"""Plain networks against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents.networks import mlp


def random_params(config):
    """Parameters that have no zeros among them, as NumPy arrays."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: mlp.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def by_hand(params, inputs, activation):
    """Two hidden layers, the first with a norm where there are parameters of one."""
    hidden = inputs @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"]
    if "norm" in params:
        mean, spread = hidden.mean(axis=-1, keepdims=True), hidden.var(axis=-1, keepdims=True)
        hidden = (hidden - mean) / np.sqrt(spread + 1e-6)
        hidden = np.tanh(hidden * params["norm"]["scale"] + params["norm"]["bias"])
    else:
        hidden = activation(hidden)
    hidden = activation(hidden @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("output_tanh", [False, True])
def test_outputs_are_those_of_numpy(layer_norm, output_tanh):
    config = mlp.MLPConfig(3, 2, (5, 4), layer_norm=layer_norm, output_tanh=output_tanh)
    params = random_params(config)
    inputs = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)
    expected = by_hand(params, inputs, lambda x: np.maximum(x, 0))
    found = mlp.apply(config, params, jnp.asarray(inputs))
    assert found.shape == (2, 6, 2)
    np.testing.assert_allclose(
        found, np.tanh(expected) if output_tanh else expected, rtol=1e-4, atol=1e-5
    )


def test_other_activations():
    config = mlp.MLPConfig(3, 2, (5, 4), activation=jnp.sin)
    params = random_params(config)
    inputs = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    found = mlp.apply(config, params, jnp.asarray(inputs))
    np.testing.assert_allclose(found, by_hand(params, inputs, np.sin), rtol=1e-4, atol=1e-5)


def test_residual_blocks_add_to_what_they_read():
    config = mlp.MLPConfig(3, 2, (4, 4, 4), activation=jnp.sin, residual=True)
    params = random_params(config)
    inputs = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)

    def layer(name, hidden):
        return hidden @ params[name]["kernel"] + params[name]["bias"]

    hidden = np.sin(layer("hidden_0", inputs))
    for place in (1, 2):
        inner = np.sin(layer(f"hidden_{place}", hidden))
        hidden = np.sin(hidden + layer(f"change_{place}", inner))
    found = mlp.apply(config, params, jnp.asarray(inputs))
    np.testing.assert_allclose(found, layer("output", hidden), rtol=1e-4, atol=1e-5)
    fresh = mlp.init(config, jax.random.key(0))
    assert not np.any(fresh["change_1"]["kernel"])
    assert np.any(fresh["hidden_1"]["kernel"])


def test_without_hidden_layers_it_is_linear():
    config = mlp.MLPConfig(3, 2, ())
    params = random_params(config)
    found = mlp.apply(config, params, jnp.eye(3))
    layer = params["output"]
    np.testing.assert_allclose(found, layer["kernel"] + layer["bias"], rtol=1e-6)


def test_an_ensemble_is_its_networks_side_by_side():
    config = mlp.MLPConfig(3, 2, (4,))
    params = mlp.init_ensemble(config, jax.random.key(0), 3)
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 3))
    found = jax.jit(functools.partial(mlp.apply_ensemble, config))(params, inputs)
    assert found.shape == (2, 5, 3, 2)
    for member in range(3):
        own = jax.tree.map(lambda leaf, place=member: leaf[place], params)
        np.testing.assert_allclose(
            found[..., member, :], mlp.apply(config, own, inputs), rtol=1e-5, atol=1e-6
        )
    kernels = np.asarray(params["hidden_0"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_biases_begin_at_0_and_kernels_keep_the_scale():
    config = mlp.MLPConfig(100, 80, (90,))
    params = mlp.init(config, jax.random.key(0))
    for layer, width in (("hidden_0", 100), ("output", 90)):
        np.testing.assert_array_equal(params[layer]["bias"], 0.0)
        # LeCun: the variance is 1 / width.
        np.testing.assert_allclose(params[layer]["kernel"].std(), width**-0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
        ({"output_size": -1}, ValueError, "output_size must be at least 1, got -1"),
        ({"hidden_sizes": (4, 0)}, ValueError, r"hidden_sizes must hold .* got \(4, 0\)"),
        ({"residual": True, "hidden_sizes": (4, 5)}, ValueError, "hidden_sizes must be equal in a"),
        ({"hidden_sizes": (), "layer_norm": True}, ValueError, "layer_norm must be False"),
        ({"activation": "relu"}, TypeError, "activation must be a function, got 'relu'"),
    ],
)
def test_shapes_that_are_none_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        mlp.MLPConfig(**{"input_size": 3, "output_size": 2, **options})


def test_inputs_of_another_size_are_refused():
    config = mlp.MLPConfig(3, 2)
    with pytest.raises(ValueError, match=r"inputs must be \[..., 3\], got \(3, 4\)"):
        mlp.apply(config, {}, jnp.zeros((3, 4)))


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        mlp.init_ensemble(mlp.MLPConfig(3, 2), jax.random.key(0), 0)
