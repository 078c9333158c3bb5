r"""Diffusion models of the horizon: noise prediction, DDIM, and their temporal differences.

A level i counts the steps of noise added to data: :math:`X_i = \sqrt{\bar\alpha_i} X +
\sqrt{1 - \bar\alpha_i} \epsilon` with :math:`\bar\alpha_i` falling from nearly 1 at i = 0 to nearly
0 at i = N - 1. Level -1 is the data themselves, :math:`\bar\alpha_{-1} = 1`. (Times run the other
way round than in flows.) A network predicts the noise, `noise_fn(point[..., D], level[...])`,
conditions bound.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.losses import _checks, _vectors
from bellmax.losses._checks import Knob

# (point[..., D], level[...]) -> noise[..., D].
NoiseFn = Callable[[Array, Array], Array]
# The least and the greatest that data may be.
DataRange = tuple[Float[Array, " D"] | float, Float[Array, " D"] | float]
_Bounds = tuple[Float[Array, "..."], Float[Array, "..."]]


def noise_schedule(
    beta_min: Float[Array, "*B"] | float = 0.1,
    beta_max: Float[Array, "*B"] | float = 20.0,
    *,
    num_levels: int = 1000,
) -> Float[Array, "*B N"]:
    r"""Returns how much of the data each level of a linear schedule keeps.

    .. math:: \beta_i = \frac1N \left( \beta_{min} + \frac{i}{N - 1} (\beta_{max} - \beta_{min})
              \right), \qquad \bar\alpha_i = \prod_{j \le i} (1 - \beta_j)

    The defaults are those of DDPM: betas from 1e-4 to 2e-2. Gradients flow to both ends.

    Args:
      beta_min: rate of noise at the data, per unit of time, > 0. A float or [...].
      beta_max: rate at level N - 1, below N. A float or [...].
      num_levels: N, at least 1; one level has the rate `beta_min`.

    Returns:
      alpha-bars in (0, 1), falling. [..., N].

    Raises:
      ValueError: the shapes differ, `num_levels` is no integer of at least 1, or a Python number is
        out of range.
      TypeError: a rate is not floating point.

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, 2020. https://arxiv.org/abs/2006.11239
    """
    _vectors.at_least_one("num_levels", num_levels)
    for name, value in (("beta_min", beta_min), ("beta_max", beta_max)):
        _checks.positive(name, value)
        _checks.in_range(name, value, 0, num_levels, closed=False)
    low, high = _checks.floats(beta_min=beta_min, beta_max=beta_max)
    place = jnp.linspace(0, 1, num_levels, dtype=jnp.result_type(low, high))
    place = jnp.expand_dims(place, tuple(range(low.ndim)))
    betas = (low[..., None] + place * (high - low)[..., None]) / num_levels
    # A sum of logarithms: a product of a thousand factors would lose digits near 1.
    return jnp.exp(jnp.cumsum(jnp.log1p(-betas), axis=-1))


def diffusion_point(
    data: Float[Array, "*B D"], noise: Float[Array, "*B D"], alpha_bar: Float[Array, "*B"]
) -> Float[Array, "*B D"]:
    r"""Returns data with noise added.

    .. math:: X_i = \sqrt{\bar\alpha_i} X + \sqrt{1 - \bar\alpha_i} \epsilon

    Gradients flow to all arguments.

    Args:
      data: X, in the units of the data. [..., D].
      noise: epsilon, a sample of N(0, I). [..., D].
      alpha_bar: the share of variance that is kept, in (0, 1): `noise_schedule()[level]`. [...].

    Returns:
      Points. [..., D].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, 2020. https://arxiv.org/abs/2006.11239
    """
    kept, clean, added = _vectors.at_times("alpha_bar", alpha_bar, data=data, noise=noise)
    share = kept[..., None]
    return jnp.sqrt(share) * clean + jnp.sqrt(1 - share) * added


def noise_prediction_loss(
    prediction: Float[Array, "*B D"], noise: Float[Array, "*B D"]
) -> Float[Array, "*B"]:
    r"""Returns the denoising loss of each example.

    .. math:: \ell = \lVert \epsilon - \epsilon_\theta(X_i, i) \rVert^2

    Gradients flow to `prediction`; the noise is stopped here.

    Args:
      prediction: the network at `diffusion_point(data, noise, ...)` and its level. [..., D].
      noise: epsilon, the noise that was added. [..., D].

    Returns:
      Squared distances, SUMMED over D. [...].

    Raises:
      ValueError: the shapes differ, or there is no axis of features.
      TypeError: an array is not floating point.

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, 2020. https://arxiv.org/abs/2006.11239
    """
    predicted, wanted = _vectors.vectors(prediction=prediction, noise=noise)
    return _vectors.squared_distance(predicted, *_checks.stop(wanted))


def ddim_sample(
    noise_fn: NoiseFn,
    start: Float[Array, "*B D"],
    start_level: Int[Array, "*B"],
    end_level: Int[Array, "*B"],
    alpha_bars: Float[Array, " N"],
    *,
    num_steps: int = 20,
    data_range: DataRange | None = None,
) -> Float[Array, "*B D"]:
    r"""Returns points denoised from one level down to another by DDIM without noise (eta 0).

    .. math:: \hat x = \frac{x - \sqrt{1 - \bar\alpha_a} \, \epsilon_\theta(x, a)}
              {\sqrt{\bar\alpha_a}}, \qquad
              x \leftarrow \sqrt{\bar\alpha_b} \hat x
              + \sqrt{1 - \bar\alpha_b} \, \epsilon_\theta(x, a)

    from level a to b, n times, over evenly spaced levels. Spaces are rounded up, so that `noise_fn`
    is not called at `end_level` but where a point starts there, and then stays. Where there are
    fewer levels than steps, some steps stand still. Gradients flow to `start` and what `noise_fn`
    closes over; those of the schedule and the range are stopped here.

    At N - 1 the error of a prediction is :math:`1 / \sqrt{\bar\alpha}` times as large in
    :math:`\hat x`, 157 times by DDPM's schedule, and a network that is not yet good throws points
    far away. With a `data_range` :math:`\hat x` is clipped to it, and the noise is what is left,
    :math:`(x - \sqrt{\bar\alpha_a} \hat x) / \sqrt{1 - \bar\alpha_a}`, as in DDPM's code.

    Args:
      noise_fn: the network. (point [..., D], level [...]) -> noise [..., D].
      start: points at `start_level`; samples of N(0, I) at N - 1. [..., D].
      start_level: a in [-1, N - 1]. [...].
      end_level: at most `start_level`; -1 gives data without noise. [...].
      alpha_bars: the share of variance that each level keeps, falling. [N].
      num_steps: n, at least 1, and one evaluation each.
      data_range: the least and the greatest that data may be, each a number or [D]; None does not
        clip, as in the formula.

    Returns:
      Points at `end_level`. [..., D].

    Raises:
      ValueError: the shapes do not fit, `num_steps` is no integer of at least 1, or `data_range`
        is empty or of another shape.
      TypeError: a level is no integer, or another array is not floating point.

    References:
      Song et al., Denoising Diffusion Implicit Models, 2021. https://arxiv.org/abs/2010.02502
    """
    (point,) = _vectors.vectors(start=start)
    _vectors.at_least_one("num_steps", num_steps)
    bounds = _bounds(data_range, point)
    first, last = (
        _level(name, level, point)
        for name, level in (("start_level", start_level), ("end_level", end_level))
    )
    kept = _table(alpha_bars).astype(point.dtype)

    def denoise(point: Array, left: Array) -> tuple[Array, None]:
        # -(-a // n) is a / n rounded up, so that the end comes last.
        level, lower = (last - (last - first) * rest // num_steps for rest in (left, left - 1))
        here, there = (_kept(kept, index)[..., None] for index in (level, lower))
        noise = _vectors.call("noise_fn", noise_fn, point, jnp.maximum(level, 0))
        noise = _within(bounds, point, noise, here)
        ratio = jnp.sqrt(there / here)
        share = jnp.sqrt(1 - there) - ratio * jnp.sqrt(1 - here)
        return ratio * point + share * noise, None

    # Under `shard_map` what a loop carries must vary over devices from the start.
    point = point + jnp.zeros_like(first, shape=point.shape, dtype=point.dtype)
    return jax.lax.scan(denoise, point, jnp.arange(num_steps, 0, -1, dtype=first.dtype))[0]


def td_diffusion_loss(
    direct_prediction: Float[Array, "*B D"],
    direct_noise: Float[Array, "*B D"],
    bootstrap_prediction: Float[Array, "*B D"],
    bootstrap_noise: Float[Array, "*B D"],
    *,
    discount: Knob,
) -> Float[Array, "*B"]:
    r"""Returns the temporal-difference denoising loss of each transition.

    .. math:: \ell = (1 - \gamma) \lVert \epsilon - \epsilon_\theta(X^d_i, i \mid s, a) \rVert^2
              + \gamma \lVert \epsilon^b - \epsilon_\theta(X^b_i, i \mid s, a) \rVert^2

    It is the expectation of `noise_prediction_loss` over the choice of the next state or the
    bootstrap, with probability gamma of the latter. Gradients flow to both predictions; both noises
    are stopped here.

    Args:
      direct_prediction: the network at the noised next state. [..., D].
      direct_noise: the noise added to the next state. [..., D].
      bootstrap_prediction: the network, at the transition's own state and action, at the
        bootstrapped point. [..., D].
      bootstrap_noise: as `td_dd_bootstrap` or `td2_dd_bootstrap` returns it. [..., D].
      discount: gamma in [0, 1], the weight of the bootstrap term. A scalar or [...]; may be traced.

    Returns:
      Weighted squared distances, each SUMMED over D. [...].

    Raises:
      ValueError: the shapes do not fit, or `discount` is out of range.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, appendix B.
      https://arxiv.org/abs/2503.09817
    """
    direct, direct_target, bootstrap, bootstrap_target = _vectors.vectors(
        direct_prediction=direct_prediction,
        direct_noise=direct_noise,
        bootstrap_prediction=bootstrap_prediction,
        bootstrap_noise=bootstrap_noise,
    )
    return _vectors.td_loss(discount, (direct, bootstrap), (direct_target, bootstrap_target))


def td_dd_bootstrap(
    target_noise_fn: NoiseFn,
    noise: Float[Array, "*B D"],
    fresh_noise: Float[Array, "*B D"],
    level: Int[Array, "*B"],
    alpha_bars: Float[Array, " N"],
    *,
    num_steps: int = 20,
    data_range: DataRange | None = None,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns the bootstrapped point and noise of TD-DD: a sample of the target, noised afresh.

    .. math:: Y = DDIM(Y_N \to -1), \quad
              X^b_i = \sqrt{\bar\alpha_i} Y + \sqrt{1 - \bar\alpha_i} Z, \quad \epsilon^b = Z

    Gradient-stopped here.

    Args:
      target_noise_fn: the target network at the next state and action. (point [..., D],
        level [...]) -> noise [..., D].
      noise: Y_N, samples of N(0, I), denoised to samples of the model. [..., D].
      fresh_noise: Z, samples of N(0, I) independent of `noise`. [..., D].
      level: i in [0, N - 1]. [...].
      alpha_bars: the share of variance that each level keeps, falling. [N].
      num_steps: steps of DDIM, one evaluation each.
      data_range: see `ddim_sample`; None for the paper's.

    Returns:
      The point and the noise. [..., D] each.

    Raises:
      ValueError: the shapes do not fit, `num_steps` is no integer of at least 1, or `data_range`
        is empty or of another shape.
      TypeError: a level is no integer, or another array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, appendix B.
      https://arxiv.org/abs/2503.09817
    """
    first, second = _checks.stop(*_vectors.vectors(noise=noise, fresh_noise=fresh_noise))
    index = _level("level", level, first)
    table = _table(alpha_bars)
    top = jnp.full_like(index, table.shape[0] - 1)
    data = jnp.full_like(index, -1)
    sample = ddim_sample(
        target_noise_fn, first, top, data, table, num_steps=num_steps, data_range=data_range
    )
    point = diffusion_point(sample, second, _kept(table, index))
    return jax.lax.stop_gradient(point), second


def td2_dd_bootstrap(
    target_noise_fn: NoiseFn,
    noise: Float[Array, "*B D"],
    level: Int[Array, "*B"],
    alpha_bars: Float[Array, " N"],
    *,
    num_steps: int = 20,
    data_range: DataRange | None = None,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns the bootstrapped point and noise of TD2-DD: the target's, from noise to level i.

    .. math:: X^b_i = DDIM(Y_N \to i), \qquad \epsilon^b = \bar\epsilon(X^b_i, i)

    With a `data_range` it is the noise that DDIM would go on with. Gradient-stopped here.

    Args:
      target_noise_fn: the target network at the next state and action. (point [..., D],
        level [...]) -> noise [..., D].
      noise: Y_N, samples of N(0, I). [..., D].
      level: i in [0, N - 1]. [...].
      alpha_bars: the share of variance that each level keeps, falling. [N].
      num_steps: steps of DDIM, one evaluation each.
      data_range: see `ddim_sample`; None for the paper's.

    Returns:
      The point and the noise. [..., D] each.

    Raises:
      ValueError: the shapes do not fit, `num_steps` is no integer of at least 1, or `data_range`
        is empty or of another shape.
      TypeError: a level is no integer, or another array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, appendix B.
      https://arxiv.org/abs/2503.09817
    """
    (start,) = _checks.stop(*_vectors.vectors(noise=noise))
    index = _level("level", level, start)
    table = _table(alpha_bars)
    top = jnp.full_like(index, table.shape[0] - 1)
    point = ddim_sample(
        target_noise_fn, start, top, index, table, num_steps=num_steps, data_range=data_range
    )
    predicted = _vectors.call("target_noise_fn", target_noise_fn, point, index)
    share = _kept(table, index)[..., None].astype(point.dtype)
    predicted = _within(_bounds(data_range, point), point, predicted, share)
    point, predicted = _checks.stop(point, predicted)
    return point, predicted


def probability_flow_velocity(
    point: Float[Array, "*B D"],
    predicted_noise: Float[Array, "*B D"],
    time: Float[Array, "*B"],
    *,
    beta_min: Knob = 0.1,
    beta_max: Knob = 20.0,
) -> Float[Array, "*B D"]:
    r"""Returns the velocity of the deterministic flow that a diffusion model defines.

    .. math:: v_t(x) = -\tfrac12 \beta(t) \left( x - \frac{\epsilon_\theta(x, t)}
              {\sqrt{1 - \bar\alpha_t}} \right), \quad
              \beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min}), \quad
              \bar\alpha_t = e^{-\int_0^t \beta}

    Time runs from 0, data, to 1, noise; level i of N is time (i + 1) / N. In the time s = 1 - t of
    flows the velocity changes its sign, so that `flow_log_likelihood` takes
    `lambda x, s: -probability_flow_velocity(x, noise_fn(x, ...), 1 - s)`. Gradients flow to all
    arguments.

    Args:
      point: x, at time t. [..., D].
      predicted_noise: the network there. [..., D].
      time: t in (0, 1]; the velocity is singular at 0. [...].
      beta_min: rate of noise at time 0, > 0. A scalar or [...]; may be traced.
      beta_max: rate of noise at time 1. A scalar or [...]; may be traced.

    Returns:
      Velocities, a change of the point by unit of time. [..., D].

    Raises:
      ValueError: the shapes do not fit, or a rate is not positive.
      TypeError: an array is not floating point.

    References:
      Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021.
      https://arxiv.org/abs/2011.13456
    """
    t, place, noise = _vectors.at_times("time", time, point=point, predicted_noise=predicted_noise)
    _checks.positive("beta_min", beta_min)
    _checks.positive("beta_max", beta_max)
    low, high = _checks.knob("beta_min", beta_min, t), _checks.knob("beta_max", beta_max, t)
    # 1 - alpha-bar by expm1, which keeps its digits next to the data.
    added = -jnp.expm1(-t * (low + t * (high - low) / 2))
    rate = (low + t * (high - low))[..., None]
    return -rate / 2 * (place - noise / jnp.sqrt(added)[..., None])


def _table(alpha_bars: Array) -> Float[Array, " N"]:
    """Returns the schedule, checked and constant for differentiation. [N]."""
    table = _checks.as_float("alpha_bars", alpha_bars)
    if table.ndim != 1 or not table.shape[0]:
        raise ValueError(f"alpha_bars must be [N] with N at least 1, got {table.shape}.")
    return jax.lax.stop_gradient(table)


def _level(name: str, level: Array, point: Float[Array, "*B D"]) -> Int[Array, "*B"]:
    """Returns levels, checked, in a dtype that holds negative numbers and products. [...]."""
    return _vectors.per_vector(name, _checks.as_integer(name, level), point).astype(jnp.int32)


def _kept(table: Float[Array, " N"], level: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns alpha-bar of each level, 1 at level -1. [...]."""
    return jnp.where(level < 0, 1, table[jnp.maximum(level, 0)])


def _bounds(data_range: DataRange | None, point: Float[Array, "*B D"]) -> _Bounds | None:
    """Returns a range of data, checked and constant for differentiation."""
    if data_range is None:
        return None
    low, high = data_range
    if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
        raise ValueError(f"data_range must rise from its least to its greatest, got {data_range}.")
    ends = jax.lax.stop_gradient((jnp.asarray(low, point.dtype), jnp.asarray(high, point.dtype)))
    for end in ends:
        if end.shape not in ((), point.shape[-1:]):
            raise ValueError(
                f"data_range must hold numbers or arrays of shape {point.shape[-1:]}, got "
                f"{end.shape}."
            )
    return ends


def _within(
    bounds: _Bounds | None,
    point: Float[Array, "*B D"],
    noise: Float[Array, "*B D"],
    kept: Float[Array, "*B 1"],
) -> Float[Array, "*B D"]:
    """Returns the noise that is left of a point when its data are clipped to a range."""
    if bounds is None:
        return noise
    data = (point - jnp.sqrt(1 - kept) * noise) / jnp.sqrt(kept)
    # Level -1 has no noise, and nothing to divide by.
    ratio = jnp.sqrt(kept / jnp.where(kept < 1, 1 - kept, 1.0))
    # What was within the range keeps its noise to the bit.
    return noise + ratio * (data - jnp.clip(data, *bounds))
