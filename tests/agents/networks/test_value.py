"""Value networks against XLA's convolutions, NumPy, and the moments of their noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents.networks import value


def make(shape=(4,), **options):
    return value.ValueNetworkConfig(shape, num_actions=3, num_outputs=2, **options)


def random_params(config):
    """Parameters that have no zeros among them, as NumPy arrays."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: value.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, observations, key=None):
    return value.apply(config, params, observations, key)


@pytest.mark.parametrize(("kernels", "strides"), [((), ()), ((4, 2), (2, 1)), ((3, 1), (1, 3))])
def test_convolutions_are_those_of_xla(kernels, strides):
    config = make(
        (10, 9, 2),
        hidden_sizes=(5,),
        conv_channels=(3, 4),
        conv_kernels=kernels,
        conv_strides=strides,
        observation_scale=0.5,
    )
    params = random_params(config)
    images = np.random.default_rng(1).normal(size=(6, 10, 9, 2)).astype(np.float32)
    hidden = 0.5 * images
    for place, stride in enumerate(strides or (1, 1)):
        layer = params[f"conv_{place}"]
        hidden = jax.lax.conv_general_dilated(
            jnp.asarray(hidden),
            layer["kernel"],
            window_strides=(stride, stride),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        hidden = np.maximum(np.asarray(hidden) + layer["bias"], 0)
    hidden = hidden.reshape(6, -1)
    hidden = np.maximum(hidden @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"], 0)
    expected = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    found = apply(config, params, images.reshape(2, 3, 10, 9, 2))
    assert found.shape == (2, 3, 3, 2)
    np.testing.assert_allclose(found.reshape(6, 6), expected, rtol=2e-4, atol=2e-4)


def test_dueling_adds_a_value_to_advantages_that_average_to_0():
    config = make(hidden_sizes=(5,), dueling=True)
    params = random_params(config)
    seen = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    hidden = np.maximum(seen @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"], 0)
    outputs = np.asarray(apply(config, params, seen))
    expected = hidden @ params["value"]["kernel"] + params["value"]["bias"]
    np.testing.assert_allclose(outputs.mean(axis=1), expected, rtol=1e-5, atol=1e-5)
    # What all actions share in the other head has no effect.
    both = np.array([1.0, -2.0], np.float32)
    output, base = params["output"], params["value"]
    shifted = params | {"output": {**output, "bias": output["bias"] + np.tile(both, 3)}}
    np.testing.assert_allclose(apply(config, shifted, seen), outputs, rtol=1e-5, atol=1e-5)
    moved = params | {"value": {**base, "bias": base["bias"] + both}}
    np.testing.assert_allclose(
        apply(config, moved, seen), outputs + np.array([1.0, -2.0]), rtol=1e-5, atol=1e-5
    )


def test_noise_has_the_moments_of_its_paper():
    """One layer: mean weights without a key, and factorised noise of the learnt scale with one."""
    config = make(hidden_sizes=(), noisy=True)
    params = value.init(config, jax.random.key(0))
    layer, width = params["output"], 4
    # Fortunato et al., section 3.2.
    np.testing.assert_allclose(layer["kernel_scale"], 0.5 / np.sqrt(width), rtol=1e-6)
    np.testing.assert_allclose(layer["bias_scale"], 0.5 / np.sqrt(width), rtol=1e-6)
    for leaf in (layer["kernel"], layer["bias"]):
        assert float(jnp.abs(leaf).max()) <= 1 / np.sqrt(width)
    seen = jnp.array([[1.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 3.0]])
    mean = np.asarray(seen @ layer["kernel"] + layer["bias"]).reshape(2, 3, 2)
    np.testing.assert_allclose(apply(config, params, seen), mean, rtol=1e-5, atol=1e-6)
    scales = np.random.default_rng(0).uniform(0.1, 1.0, (width + 1, 6)).astype(np.float32)
    layer = layer | {"kernel_scale": jnp.asarray(scales[:-1]), "bias_scale": scales[-1]}
    draw = jax.jit(jax.vmap(lambda key: value.apply(config, {"output": layer}, seen, key)))
    draws = np.asarray(draw(jax.random.split(jax.random.key(1), 20_000)), np.float64)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.05)
    # f(e) = sign(e) sqrt|e| has mean 0 and variance E|e| = sqrt(2 / pi). The noise of an output is
    # f(e_out) (sum_i x_i s_i f(e_i) + s_bias): variances of the two factors multiply.
    moment = np.sqrt(2 / np.pi)
    variance = moment * (moment * np.asarray(seen) ** 2 @ scales[:-1] ** 2 + scales[-1] ** 2)
    np.testing.assert_allclose(draws.var(axis=0), variance.reshape(2, 3, 2), rtol=0.08)
    # One draw serves all rows: the same input twice has the same output.
    twice = apply(config, {"output": layer}, seen[jnp.array([0, 0])], jax.random.key(2))
    np.testing.assert_array_equal(twice[0], twice[1])


def test_noise_flows_through_every_dense_layer_with_keys_of_its_own():
    config = make(hidden_sizes=(4,), noisy=True, dueling=True)
    params = random_params(config)
    seen = np.ones((1, 4), np.float32)

    def outputs(noisy, key):
        quiet = {
            name: layer
            if name == noisy
            else layer | {part: 0 * layer[part] for part in ("kernel_scale", "bias_scale")}
            for name, layer in params.items()
        }
        return apply(config, quiet, seen, key)

    still = apply(config, params, seen)
    for name in params:
        first, second = (outputs(name, jax.random.key(seed)) for seed in (3, 4))
        assert float(jnp.abs(first - second).max()) > 1e-4, name
    np.testing.assert_allclose(outputs(None, jax.random.key(3)), still, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_actions": 0}, "num_actions must be at least 1, got 0"),
        ({"num_outputs": -1}, "num_outputs must be at least 1, got -1"),
        ({"hidden_sizes": (3, 0)}, "hidden_sizes must hold sizes of at least 1"),
        ({"conv_channels": (2,)}, r"observation_shape must be \[height, width, channels\]"),
        ({"conv_kernels": (2,)}, "conv_kernels must hold one number for each of 0"),
        (
            {"observation_shape": (5, 4, 1), "conv_channels": (2, 2)},
            r"observation_shape must be large enough .* got \(5, 4, 1\)",
        ),
        (
            {
                "observation_shape": (9, 9, 1),
                "conv_channels": (2, 2),
                "conv_kernels": (3, 3),
                "conv_strides": (4, 1),
            },
            "observation_shape must be large enough",
        ),
    ],
)
def test_shapes_that_are_none_are_refused(options, message):
    sizes = {"observation_shape": (4,), "num_actions": 3, "num_outputs": 2}
    with pytest.raises(ValueError, match=message):
        value.ValueNetworkConfig(**(sizes | options))


def test_observations_of_another_shape_are_refused():
    config = make()
    params = random_params(config)
    with pytest.raises(ValueError, match=r"observations must end in \(4,\), got \(2, 3\)"):
        value.apply(config, params, jnp.zeros((2, 3)))
