"""The autoencoder and the adversarial network as horizon models, on networks of one number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents
from bellmax.agents import followers, horizon_gan, horizon_vae

RATE = 0.1


def make_batch(next_states, **changes):
    rows = len(next_states)
    nothing = jnp.zeros((rows, 0))
    batch = agents.TransitionBatch(
        jnp.zeros((rows, 1)), nothing, jnp.asarray(next_states)[:, None], nothing
    )
    return batch._replace(**changes)


def make_vae(discount):
    """A decoder of unit width around one number; the encoder says nothing."""

    def encode(params, points, condition):
        return jnp.zeros_like(points), jnp.zeros_like(points)

    def decode(params, latents, condition):
        return jnp.broadcast_to(params, latents.shape), jnp.zeros(latents.shape)

    return horizon_vae.make(
        encode,
        decode,
        optax.sgd(RATE),
        latent_size=1,
        discount=discount,
        init_params=lambda key: jnp.array([0.5]),
        target_rule=followers.average(0.5),
    )


def make_gan(discount):
    """A generator of one place, and a linear discriminator that starts at 0."""
    return horizon_gan.make(
        lambda params, latents, condition: jnp.broadcast_to(params, latents.shape),
        lambda params, points, condition: points[..., 0] * params,
        optax.sgd(RATE),
        latent_size=1,
        discount=discount,
        init_params=lambda key: (jnp.array([0.5]), jnp.array(0.0)),
        penalty_weight=lambda step: jnp.where(step == 0, 0.0, 1.0),
        target_rule=followers.average(0.5),
    )


def test_vae_step_by_hand():
    """-log N(x; m, 1) has the slope m - x: a step goes a tenth of the way to the mean."""
    agent = make_vae(0.0)
    state = agent.init(jax.random.key(0))
    after, metrics = agent.update(state, make_batch([1.0, 2.0, 6.0]), jax.random.key(1))
    np.testing.assert_allclose(after.params, 0.5 + RATE * (3 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(after.target_params, (0.5 + 0.75) / 2, rtol=1e-6)
    squares = np.mean((np.array([1.0, 2.0, 6.0]) - 0.5) ** 2) / 2
    np.testing.assert_allclose(metrics["loss"], squares + np.log(2 * np.pi) / 2, rtol=1e-6)


@pytest.mark.parametrize("discount", [0.25, 0.75])
def test_vae_learns_from_its_target_as_often_as_the_discount_says(discount):
    """A target of mean .5 pulls towards .5: on average (1 - gamma) of the way is left."""
    rows = 40_000
    agent = make_vae(discount)
    state = agent.init(jax.random.key(0))
    after, _ = agent.update(state, make_batch(np.full(rows, 3.0, np.float32)), jax.random.key(1))
    # The samples have a variance below 1 + 2.5^2 / 4; five standard errors.
    expected = (1 - discount) * 2.5
    np.testing.assert_allclose((after.params[0] - 0.5) / RATE, expected, atol=5 * 1.7 / rows**0.5)


def test_gan_step_by_hand():
    """With real r = 2 and fake f = .5: w = .1 (r - f) / 2, then the generator follows w."""
    agent = make_gan(0.0)
    state = agent.init(jax.random.key(0))
    after, metrics = agent.update(state, make_batch([2.0, 2.0]), jax.random.key(1))
    weight = RATE * (2 - 0.5) / 2
    np.testing.assert_allclose(after.discriminator_params, weight, rtol=1e-6)
    # -log sigmoid(w (f - r)) has the slope -sigmoid(w (r - f)) w.
    step = RATE * weight / (1 + np.exp(-weight * 1.5))
    np.testing.assert_allclose(after.params, 0.5 + step, rtol=1e-6)
    np.testing.assert_allclose(metrics["discriminator/loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.log1p(np.exp(weight * 1.5)), rtol=1e-6)


def test_gan_penalty_is_the_squared_slope_on_both_sides():
    """From the second step the weight is 1: the slope of w^2 joins, 2 w."""
    agent = make_gan(0.0)
    batch, key = make_batch([2.0, 2.0]), jax.random.key(1)
    first, _ = agent.update(agent.init(key), batch, key)
    second, _ = agent.update(first, batch, key)
    weight, margin = float(first.discriminator_params), 2 - float(first.params[0])
    slope = -margin / (1 + np.exp(weight * margin)) + 2 * weight
    np.testing.assert_allclose(second.discriminator_params, weight - RATE * slope, rtol=1e-5)


@pytest.mark.parametrize("make", [make_vae, make_gan])
def test_rows_of_weight_zero_change_nothing_and_ended_episodes_do_not_bootstrap(make):
    agent, key = make(0.9), jax.random.key(1)
    plain = make(0.0)
    state = agent.init(jax.random.key(0))
    clean = make_batch([1.0, 2.0])
    spoilt = make_batch(
        np.array([1.0, 2.0, np.nan], np.float32),
        weight=jnp.array([1.0, 1.0, 0.0]),
        terminated=jnp.array([True, True, False]),
        index=jnp.arange(3),
    )
    expected = plain.update(state, clean, key)[0]
    found = agent.update(state, spoilt, key)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_refusals():
    network: Any = None
    vae: Any = {"latent_size": 1, "discount": 0.9, "init_params": lambda key: ()}
    for change, match in (({"beta": -1.0}, "beta"), ({"discount": 1.0}, "discount")):
        with pytest.raises(ValueError, match=match):
            horizon_vae.make(network, network, optax.sgd(0.1), **{**vae, **change})
    with pytest.raises(ValueError, match="latent_size must be at least 1, got 0"):
        horizon_gan.make(
            network,
            network,
            optax.sgd(0.1),
            penalty_weight=lambda s: s,
            **{**vae, "latent_size": 0},
        )
