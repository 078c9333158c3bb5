"""Closed forms of successor measures: moments, densities and weights of `horizon_chains`.

Each is of the normalised measure that starts at the next state, the law of a chain after K steps
with P(K = k) = (1 - gamma) gamma^{k-1}. All are functions of arrays, and jittable.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# A number, or an array that may be traced.
Number = int | float | Float[Array, "..."]


def ring_weights(num_states: int, discount: Number) -> Float[Array, " N"]:
    """Returns m of the ring: (1 - gamma) gamma^{k-1} / (1 - gamma^N) on the state k = 1 .. N ahead.

    The ring comes back to the state k ahead at k, k + N, k + 2 N and so on; entry N is the state
    itself.

    Args:
      num_states: N, at least 1.
      discount: gamma, in [0, 1). May be traced.

    Returns:
      The probabilities of the states 1 to N ahead, which sum to 1. [N].

    Raises:
      ValueError: a number is out of range.
    """
    if num_states < 1:
        raise ValueError(f"num_states must be at least 1, got {num_states}.")
    check_discount(discount)
    gamma = jnp.asarray(discount, float)
    powers = gamma ** jnp.arange(num_states)
    # 1 - gamma^N = (1 - gamma)(1 + gamma + ... + gamma^{N-1}), without the cancellation.
    return powers / powers.sum()


def noisy_circle_moment(
    angle: Float[Array, "*B"],
    harmonic: int | Int[Array, "..."],
    discount: Number,
    *,
    step: Number = math.pi / 10,
    noise: Number = 0.1,
) -> Float[Array, "*B 2"]:
    r"""Returns the means of cos(n X) and sin(n X) under m of the noisy circle, X the angle.

    .. math:: E[e^{inX} \mid \phi] = e^{in\phi} \frac{(1 - \gamma) z_n}{1 - \gamma z_n}, \quad
              z_n = e^{in \Delta - n^2 \sigma^2 / 2}

    Args:
      angle: phi, of the state, in radians. [*B].
      harmonic: n, an integer; must broadcast to [*B].
      discount: gamma, in [0, 1). May be traced; must broadcast to [*B].
      step: Delta, the angle of a step, in radians.
      noise: sigma, the standard deviation of a step, in radians, at least 0.

    Returns:
      The real and the imaginary part of the characteristic function. [*B, 2].

    Raises:
      ValueError: a number is out of range.
    """
    check_discount(discount)
    check_noise(noise)
    gamma, n = jnp.asarray(discount, float), jnp.asarray(harmonic, float)
    modulus = jnp.exp(-0.5 * jnp.square(n * noise))
    real, imaginary = modulus * jnp.cos(n * step), modulus * jnp.sin(n * step)
    # z / (1 - gamma z) = (z - gamma |z|^2) / |1 - gamma z|^2.
    size = jnp.square(1 - gamma * real) + jnp.square(gamma * imaginary)
    real = (1 - gamma) * (real - gamma * jnp.square(modulus)) / size
    imaginary = (1 - gamma) * imaginary / size
    cosine, sine = jnp.cos(n * angle), jnp.sin(n * angle)
    return jnp.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], axis=-1)


def noisy_circle_density(
    next_angle: Float[Array, "..."],
    angle: Float[Array, "..."],
    discount: Number,
    *,
    step: Number = math.pi / 10,
    noise: Number = 0.1,
    num_harmonics: int = 64,
) -> Float[Array, "..."]:
    """Returns the density of m over the angle, per radian, by its Fourier series.

    The state lies on a circle, so that m has no density in the plane: this one is with respect to
    the length of the arc. Harmonics beyond H are left out, which errs by at most
    erfc(H sigma / sqrt(2)) / (sigma sqrt(2 pi)): 6e-10 at sigma = 0.1 and H = 64. Rounding errs by
    some 1e-7 in float32, so that the logarithm of a tiny density is not to be had there.

    Args:
      next_angle: where the density is asked for, in radians. [*B].
      angle: phi, of the state, in radians. [*B], or what broadcasts with it.
      discount: gamma, in [0, 1). May be traced; a scalar.
      step: the angle of a step, in radians.
      noise: sigma, the standard deviation of a step, in radians, > 0: without noise there are
        atoms and no density.
      num_harmonics: H, at least 1.

    Returns:
      The density, which integrates to 1 over a turn. [*B].

    Raises:
      ValueError: a number is out of range.
    """
    if isinstance(noise, int | float) and not noise > 0:
        raise ValueError(f"noise must be positive for a density, got {noise}.")
    check_count("num_harmonics", num_harmonics)
    away = jnp.asarray(next_angle - angle, float)[..., None]
    harmonics = jnp.arange(1, num_harmonics + 1)
    at_zero = jnp.zeros(num_harmonics)
    moments = noisy_circle_moment(at_zero, harmonics, discount, step=step, noise=noise)
    waves = moments[:, 0] * jnp.cos(harmonics * away) + moments[:, 1] * jnp.sin(harmonics * away)
    return (1 + 2 * waves.sum(-1)) / (2 * math.pi)


def linear_gaussian_moments(
    states: Float[Array, "*B"],
    discount: Number,
    *,
    coefficient: Number = 0.8,
    noise: Number = 0.5,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    r"""Returns the mean and the mean square of m of the linear-Gaussian chain, by coordinate.

    .. math:: E[X] = \frac{(1 - \gamma) a}{1 - \gamma a} s, \quad
              E[X^2] = c s^2 + (1 - c) \frac{\sigma^2}{1 - a^2}, \quad
              c = \frac{(1 - \gamma) a^2}{1 - \gamma a^2}

    Args:
      states: s, coordinates of states. [*B].
      discount: gamma, in [0, 1). May be traced.
      coefficient: a, in (-1, 1).
      noise: sigma, at least 0.

    Returns:
      E[X] and E[X^2]. [*B] each.

    Raises:
      ValueError: a number is out of range.
    """
    check_discount(discount)
    check_coefficient(coefficient)
    check_noise(noise)
    square = coefficient**2
    mean = (1 - discount) * coefficient / (1 - discount * coefficient) * states
    share = (1 - discount) * square / (1 - discount * square)
    return mean, share * jnp.square(states) + (1 - share) * noise**2 / (1 - square)


def linear_gaussian_cdf(
    points: Float[Array, "..."],
    states: Float[Array, "..."],
    discount: Number,
    *,
    coefficient: Number = 0.8,
    noise: Number = 0.5,
    num_terms: int = 256,
) -> Float[Array, "..."]:
    """Returns P(X <= x) under m of the linear-Gaussian chain, by coordinate.

    The first T laws are summed, and the rest, of weight gamma^T, is the chain's stationary law:
    that errs by at most gamma^T (|a|^T |s| / sigma_inf + a^{2T}) where a^{2T} <= 1/2, with
    sigma_inf the stationary standard deviation.

    Args:
      points: x. [*B].
      states: s. [*B], or what broadcasts with it.
      discount: gamma, in [0, 1). May be traced; a scalar.
      coefficient: a, in (-1, 1).
      noise: sigma, > 0.
      num_terms: T, at least 1.

    Returns:
      The probabilities. [*B].

    Raises:
      ValueError: a number is out of range.
    """
    log_weight, mean, deviation = _mixture(states, discount, coefficient, noise, num_terms)
    below = jax.scipy.special.ndtr((points[..., None] - mean) / deviation)
    return (jnp.exp(log_weight) * below).sum(-1)


def linear_gaussian_log_density(
    points: Float[Array, "... D"],
    states: Float[Array, "... D"],
    discount: Number,
    *,
    coefficient: Number = 0.8,
    noise: Number = 0.5,
    num_terms: int = 256,
) -> Float[Array, "..."]:
    """Returns log m(x | s) of the linear-Gaussian chain, all coordinates together, in nats.

    Summed as in `linear_gaussian_cdf`: T laws, and the stationary one for the rest.

    Args:
      points: x. [*B, D].
      states: s. [*B, D], or what broadcasts with it.
      discount: gamma, in [0, 1). May be traced; a scalar.
      coefficient: a, in (-1, 1).
      noise: sigma, > 0.
      num_terms: T, at least 1.

    Returns:
      The log-densities. [*B].

    Raises:
      ValueError: a number is out of range.
    """
    log_weight, mean, deviation = _mixture(states, discount, coefficient, noise, num_terms)
    terms = jax.scipy.stats.norm.logpdf(points[..., None], mean, deviation).sum(-2)
    return jax.scipy.special.logsumexp(log_weight + terms, axis=-1)


def _mixture(states, discount, coefficient, noise, num_terms):
    """Log-weights [T + 1], means [..., T + 1] and deviations [T + 1] of the laws that make m."""
    check_discount(discount)
    check_coefficient(coefficient)
    check_count("num_terms", num_terms)
    if isinstance(noise, int | float) and not noise > 0:
        raise ValueError(f"noise must be positive for a density, got {noise}.")
    gamma = jnp.asarray(discount, float)
    steps = jnp.arange(1, num_terms + 1)
    decay, deviation = after(steps, coefficient, noise)
    stationary = noise / jnp.sqrt(1 - jnp.square(jnp.asarray(coefficient, float)))
    decay = jnp.append(decay, 0.0)
    # gamma = 0: 0 log 0 is 0 for the first law, and the others have no weight.
    log_powers = jax.scipy.special.xlogy(jnp.arange(num_terms + 1).astype(float), gamma)
    last = jnp.arange(num_terms + 1) == num_terms
    log_weight = log_powers + jnp.where(last, 0.0, jnp.log1p(-gamma))
    return log_weight, states[..., None] * decay, jnp.append(deviation, stationary)


def after(
    steps: Int[Array, "..."], coefficient: Number, noise: Number
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the linear-Gaussian chain's law after some steps: the factor of the state, the noise.

    Args:
      steps: k, at least 1. [...].
      coefficient: a, in (-1, 1).
      noise: sigma, at least 0.

    Returns:
      a^k, and the standard deviation sigma sqrt((1 - a^{2k}) / (1 - a^2)). [...] each.
    """
    factor = jnp.asarray(coefficient, float)
    decay = jnp.power(factor, steps)
    return decay, noise * jnp.sqrt((1 - jnp.square(decay)) / (1 - jnp.square(factor)))


def check_discount(discount: Number) -> None:
    """Refuses a discount that is a number outside [0, 1).

    Args:
      discount: gamma; arrays, which may be traced, are not looked at.

    Raises:
      ValueError: it is out of range.
    """
    if isinstance(discount, int | float) and not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")


def check_noise(noise: Number) -> None:
    """Refuses a standard deviation that is a negative number.

    Args:
      noise: sigma; arrays, which may be traced, are not looked at.

    Raises:
      ValueError: it is out of range.
    """
    if isinstance(noise, int | float) and not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}.")


def check_coefficient(coefficient: Number) -> None:
    """Refuses a coefficient that is a number outside (-1, 1).

    Args:
      coefficient: a; arrays, which may be traced, are not looked at.

    Raises:
      ValueError: it is out of range.
    """
    if isinstance(coefficient, int | float) and not -1 < coefficient < 1:
        raise ValueError(f"coefficient must be in (-1, 1), got {coefficient}.")


def check_count(name: str, count: int) -> None:
    """Refuses a count below 1.

    Args:
      name: the argument's name, for the error.
      count: how many.

    Raises:
      ValueError: it is out of range.
    """
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
