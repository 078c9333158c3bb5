"""The quantile regression loss of distributional reinforcement learning; targets may be signed."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def quantile_huber_loss(
    quantiles: Float[Array, "*B N"],
    targets: Float[Array, "*B M"],
    *,
    kappa: Knob = 1.0,
    weights: Float[Array, "*B M"] | None = None,
) -> Float[Array, "*B"]:
    r"""Returns the quantile Huber loss: summed over quantiles, averaged over targets.

    .. math:: \ell = \sum_{i=1}^N \sum_{j=1}^M w_j \, |\tau_i - 1[u_{ij} < 0]| \, L_\kappa(u_{ij}),
              \quad u_{ij} = y_j - \theta_i, \quad \tau_i = \frac{i - 1/2}{N}

    with :math:`L_\kappa(u) = u^2 / 2` up to kappa and :math:`\kappa (|u| - \kappa / 2)` beyond. It
    is not divided by kappa (some papers do). At kappa 0 it is the plain quantile loss, L(u) = |u|:
    the limit of the loss over kappa, not of the loss. Without weights w is 1 / M. Signed weights
    give the loss of a signed target: linear in it, so its expectation is the loss of the expected
    target, but not convex. Targets and weights are stopped here; gradients flow to `quantiles`.

    Args:
      quantiles: theta, the law's estimates at the levels tau. [..., N].
      targets: y, what the return may be. [..., M].
      kappa: >= 0, where the loss turns linear, in the unit of the quantiles; infinity: nowhere. A
        scalar or [...]; may be traced.
      weights: w, of any sign, of total 1: `quantile_multistep_target`. A target of weight 0 may
        hold anything. [..., M]; None weighs all alike.

    Returns:
      Losses; squared units of the quantiles, at kappa 0 the unit itself. [...].

    Raises:
      ValueError: the shapes do not fit, or `kappa` is negative.
      TypeError: an array is not floating point.

    References:
      Dabney et al., Distributional Reinforcement Learning with Quantile Regression, 2017.
      https://arxiv.org/abs/1710.10044
      Tang et al., The Nature of Temporal Difference Errors in Multi-step Distributional
      Reinforcement Learning, 2022. https://arxiv.org/abs/2207.07570
    """
    estimate = _checks.as_float("quantiles", quantiles)
    target = _checks.as_float("targets", targets)
    if estimate.ndim < 1 or target.ndim < 1 or estimate.shape[:-1] != target.shape[:-1]:
        raise ValueError(
            "quantiles and targets must have an axis of atoms each and one leading shape, got "
            f"{estimate.shape} and {target.shape}."
        )
    if 0 in (estimate.shape[-1], target.shape[-1]):
        raise ValueError(
            "quantiles and targets must have at least one atom each, got shapes "
            f"{estimate.shape} and {target.shape}."
        )
    _checks.in_range("kappa", kappa, 0, float("inf"))
    if weights is None:
        weight = jnp.full_like(target, 1 / target.shape[-1])
    else:
        _checks.same_shape(targets=targets, weights=weights)
        weight = _checks.as_float("weights", weights)
        target = jnp.where(weight != 0, target, 0)
    target, weight = _checks.stop(target, weight)
    threshold = _checks.knob("kappa", kappa, estimate[..., 0])
    threshold = jnp.broadcast_to(threshold, estimate.shape[:-1])[..., None, None]
    count = estimate.shape[-1]
    levels = (jnp.arange(count, dtype=estimate.dtype) + 0.5) / count
    levels = jnp.broadcast_to(levels, estimate.shape)[..., None]
    error = target[..., None, :] - estimate[..., :, None]
    slope = jnp.where(error < 0, 1 - levels, levels)
    size = jnp.abs(error)
    # Both pieces at once, finite at any threshold: a select would pass NaN back from infinity.
    bent = jnp.minimum(size, threshold)
    huber = bent * (size - bent / 2)
    cost = slope * jnp.where(threshold > 0, huber, size)
    return jnp.sum(weight[..., None, :] * cost, axis=(-2, -1))
