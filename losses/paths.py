r"""Probability paths: how a sample of noise becomes a sample of data as time runs from 0 to 1.

A path :math:`X_t = \alpha_t X_1 + \beta_t X_0` mixes noise :math:`X_0 \sim N(0, I)` and data
:math:`X_1`; its velocity is :math:`\dot\alpha_t X_1 + \dot\beta_t X_0`. Given the data alone,
:math:`X_t \sim N(\alpha_t X_1, \beta_t^2 I)`, and the velocity at :math:`X_t = x` is
:math:`(\dot\alpha_t - \alpha_t \dot\beta_t / \beta_t) X_1 + (\dot\beta_t / \beta_t) x`. The two are
one number on the sampled point, but only the first has no singularity at the data.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _vectors

# (noise, data, time) -> (point, velocity): each of the functions below.
PathFn = Callable[[Array, Array, Array], tuple[Array, Array]]


def linear_path(
    noise: Float[Array, "*B D"], data: Float[Array, "*B D"], time: Float[Array, "*B"]
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns a point of the straight line from noise to data, and the velocity there.

    .. math:: X_t = t X_1 + (1 - t) X_0, \qquad \dot X_t = X_1 - X_0

    Gradients flow to all arguments.

    Args:
      noise: X_0, a sample of N(0, I). [..., D].
      data: X_1, in the units of the data. [..., D].
      time: t in [0, 1]; 0 is noise, 1 is data. [...].

    Returns:
      The point and the velocity, a change of the point by unit of time. [..., D] each.

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Lipman et al., Flow Matching for Generative Modeling, 2023. https://arxiv.org/abs/2210.02747
    """
    time, start, end = _vectors.at_times("time", time, noise=noise, data=data)
    weight = time[..., None]
    return weight * end + (1 - weight) * start, end - start


def curved_path(
    noise: Float[Array, "*B D"], data: Float[Array, "*B D"], time: Float[Array, "*B"]
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    r"""Returns a point of the quarter of an ellipse from noise to data, and the velocity there.

    .. math:: X_t = \sin(\tfrac{\pi t}{2}) X_1 + \cos(\tfrac{\pi t}{2}) X_0, \qquad \dot X_t =
              \tfrac{\pi}{2} \left( \cos(\tfrac{\pi t}{2}) X_1 - \sin(\tfrac{\pi t}{2}) X_0 \right)

    It keeps the variance of white data at 1. Gradients flow to all arguments.

    Args:
      noise: X_0, a sample of N(0, I). [..., D].
      data: X_1, in the units of the data. [..., D].
      time: t in [0, 1]; 0 is noise, 1 is data. [...].

    Returns:
      The point and the velocity, a change of the point by unit of time. [..., D] each.

    Raises:
      ValueError: the shapes do not fit.
      TypeError: an array is not floating point.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, the curved path of Table 2.
      https://arxiv.org/abs/2503.09817
    """
    time, start, end = _vectors.at_times("time", time, noise=noise, data=data)
    angle = (jnp.pi / 2) * time[..., None]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return sine * end + cosine * start, (jnp.pi / 2) * (cosine * end - sine * start)
