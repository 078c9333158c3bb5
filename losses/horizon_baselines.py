r"""Horizon models that are no flow: a variational autoencoder and a generative adversarial network.

Both are fitted to samples X of the right-hand side of the Bellman equation,
:math:`X \sim (1 - \gamma) P + \gamma P^\pi \bar m`: the next state, or a sample of the target model
at the next state and action (`bellman_sample`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks, _vectors
from bellmax.losses._checks import Knob

# point[..., D] -> score[...].
ScoreFn = Callable[[Array], Array]


def bellman_sample(
    next_states: Float[Array, "*B D"],
    bootstrap_samples: Float[Array, "*B D"],
    uniforms: Float[Array, "*B"],
    *,
    discount: Knob,
) -> Float[Array, "*B D"]:
    r"""Returns samples of what the Bellman equation makes of a horizon model.

    .. math:: X = Y \text{ if } U < \gamma \text{ else } S', \qquad U \sim U[0, 1)

    Gradient-stopped here.

    Args:
      next_states: S'. [..., D].
      bootstrap_samples: Y, of the target model at the next state and action. [..., D].
      uniforms: U, independent of all else, in [0, 1). [...].
      discount: gamma in [0, 1], the probability of the bootstrap. A scalar or [...]; may be traced.

    Returns:
      Samples. [..., D].

    Raises:
      ValueError: the shapes do not fit, or `discount` is out of range.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    draw, direct, bootstrap = _vectors.at_times(
        "uniforms", uniforms, next_states=next_states, bootstrap_samples=bootstrap_samples
    )
    _checks.in_range("discount", discount, 0, 1)
    chosen = draw < _checks.knob("discount", discount, draw)
    return jax.lax.stop_gradient(jnp.where(chosen[..., None], bootstrap, direct))


def beta_vae_loss(
    data: Float[Array, "*B D"],
    decoder_mean: Float[Array, "*B D"],
    decoder_log_variance: Float[Array, "*B D"],
    latent_mean: Float[Array, "*B Z"],
    latent_log_variance: Float[Array, "*B Z"],
    *,
    beta: Knob = 0.5,
) -> Float[Array, "*B"]:
    r"""Returns the negative evidence lower bound of a Gaussian autoencoder, its KL weighted.

    .. math:: \ell = \tfrac12 \sum_d \left( \frac{(x_d - \mu_d)^2}{\sigma_d^2} + \log \sigma_d^2
              + \log 2 \pi \right) + \frac{\beta}{2} \sum_z \left( m_z^2 + s_z^2 - 1 - \log s_z^2
              \right)

    The decoder's moments are those at one sample of the encoder's law N(m, s^2), so the first sum
    estimates its expectation; the second is the KL divergence to N(0, I). Gradients flow to the
    four moments; the data's is stopped here.

    Args:
      data: x, see `bellman_sample`. [..., D].
      decoder_mean: mu. [..., D].
      decoder_log_variance: log sigma^2; a constant for a decoder of fixed width. [..., D].
      latent_mean: m, of the encoder. [..., Z].
      latent_log_variance: log s^2, of the encoder. [..., Z].
      beta: >= 0, the weight of the KL divergence; .5 in the paper, 1 for the evidence lower bound.
        A scalar or [...]; may be traced.

    Returns:
      Losses in nats, SUMMED over D and Z. [...].

    Raises:
      ValueError: the shapes do not fit, or `beta` is negative.
      TypeError: an array is not floating point.

    References:
      Kingma and Welling, Auto-Encoding Variational Bayes, 2013. https://arxiv.org/abs/1312.6114
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    observed, mean, log_variance = _vectors.vectors(
        data=data, decoder_mean=decoder_mean, decoder_log_variance=decoder_log_variance
    )
    code, log_spread = _vectors.vectors(
        latent_mean=latent_mean, latent_log_variance=latent_log_variance
    )
    _vectors.per_vector("latent_mean without its last axis", code[..., 0], observed)
    _checks.in_range("beta", beta, 0, float("inf"))
    error = jnp.square(jax.lax.stop_gradient(observed) - mean) * jnp.exp(-log_variance)
    reconstruction = jnp.sum(error + log_variance + math.log(2 * math.pi), axis=-1) / 2
    # s^2 - 1 by expm1, which keeps its digits where the encoder is close to the prior.
    divergence = jnp.sum(jnp.square(code) + jnp.expm1(log_spread) - log_spread, axis=-1) / 2
    return reconstruction + _checks.knob("beta", beta, reconstruction) * divergence


def relativistic_generator_loss(
    score_fn: ScoreFn, real: Float[Array, "*B D"], fake: Float[Array, "*B D"]
) -> Float[Array, "*B"]:
    r"""Returns the loss of a generator that is judged beside real samples.

    .. math:: \ell_G = -\log \sigma(D(x_{fake}) - D(x_{real}))

    Each fake sample meets one real sample of the same condition. Gradients flow to `fake`, and to
    what `score_fn` closes over, with which the caller's generator does not descend; those to `real`
    are stopped here.

    Args:
      score_fn: D, the discriminator without its sigmoid, conditions bound. point [..., D] ->
        score [...]; each score depends on its own point only.
      real: samples of the data, see `bellman_sample`. [..., D].
      fake: samples of the generator. [..., D].

    Returns:
      Losses in nats, log 2 where both have one score. [...].

    Raises:
      ValueError: the shapes differ, or `score_fn` returns another one.
      TypeError: an array is not floating point.

    References:
      Jolicoeur-Martineau, The relativistic discriminator, 2018. https://arxiv.org/abs/1807.00734
      Huang et al., The GAN is dead; long live the GAN! A Modern GAN Baseline, 2024.
      https://arxiv.org/abs/2501.05441
    """
    truth, made = _vectors.vectors(real=real, fake=fake)
    margin = _score(score_fn, made) - _score(score_fn, jax.lax.stop_gradient(truth))
    return jax.nn.softplus(-margin)


def relativistic_discriminator_loss(
    score_fn: ScoreFn,
    real: Float[Array, "*B D"],
    fake: Float[Array, "*B D"],
    *,
    penalty_weight: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the loss of a relativistic discriminator with zero-centred gradient penalties.

    .. math:: \ell_D = -\log \sigma(D(x_{real}) - D(x_{fake}))
              + \frac{w}{2} \left( \lVert \nabla D(x_{real}) \rVert^2
              + \lVert \nabla D(x_{fake}) \rVert^2 \right)

    The penalties are R1, on real samples, and R2, on fake ones. Gradients flow to what `score_fn`
    closes over; those to both samples are stopped here.

    Args:
      score_fn: D, the discriminator without its sigmoid, conditions bound. point [..., D] ->
        score [...]; each score depends on its own point only.
      real: samples of the data, see `bellman_sample`. [..., D].
      fake: samples of the generator, one for each real sample. [..., D].
      penalty_weight: w >= 0; the paper of TD flows takes it from .05 to .005 over training. A
        scalar or [...]; may be traced.

    Returns:
      Losses in nats. [...].

    Raises:
      ValueError: the shapes differ, `score_fn` returns another one, or `penalty_weight` is
        negative.
      TypeError: an array is not floating point.

    References:
      Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018.
      https://arxiv.org/abs/1801.04406
      Huang et al., The GAN is dead; long live the GAN! A Modern GAN Baseline, 2024.
      https://arxiv.org/abs/2501.05441
    """
    truth, made = _checks.stop(*_vectors.vectors(real=real, fake=fake))
    _checks.in_range("penalty_weight", penalty_weight, 0, float("inf"))
    margin = _score(score_fn, truth) - _score(score_fn, made)
    penalty = gradient_penalty(score_fn, truth) + gradient_penalty(score_fn, made)
    weight = _checks.knob("penalty_weight", penalty_weight, margin)
    return jax.nn.softplus(-margin) + weight / 2 * penalty


def gradient_penalty(score_fn: ScoreFn, points: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    r"""Returns the squared norm of a discriminator's slope: R1 on real points, R2 on fake ones.

    .. math:: R = \lVert \nabla_x D(x) \rVert^2

    Gradients flow to `points` and what `score_fn` closes over.

    Args:
      score_fn: D. point [..., D] -> score [...]; each score depends on its own point only.
      points: where to take the slope. [..., D].

    Returns:
      Penalties, SUMMED over D. [...].

    Raises:
      ValueError: there is no axis of features, or `score_fn` returns another shape.
      TypeError: `points` is not floating point.

    References:
      Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018.
      https://arxiv.org/abs/1801.04406
    """
    (place,) = _vectors.vectors(points=points)
    slope = jax.grad(lambda point: jnp.sum(_score(score_fn, point)))(place)
    return jnp.sum(jnp.square(slope), axis=-1)


def _score(score_fn: ScoreFn, point: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Returns the scores, checked and in the dtype of the points. [...]."""
    score = _checks.as_float("score_fn's result", score_fn(point))
    return _vectors.per_vector("score_fn's result", score, point).astype(point.dtype)
