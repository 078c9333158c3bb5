r"""Convex functions of a margin: what tells the members of the GPO family apart.

Each function f maps z = beta * rho to a loss, elementwise, with f'(0) < 0 so that a smaller loss
means a larger margin. Near z = 0 the ratio |f''(0) / f'(0)| is the strength with which the same
beta pulls towards the reference:

    | function            | f(z)              | f(0)  | f'(0) | ratio | known as         |
    |---------------------|-------------------|-------|-------|-------|------------------|
    | logistic            | log(1 + exp(-z))  | log 2 | -1/2  | 1/2   | DPO              |
    | hinge               | max(0, 1 - z)     | 1     | -1    | 0     | SLiC             |
    | squared             | (z - 1)^2         | 1     | -2    | 1     | IPO              |
    | exponential         | exp(-z)           | 1     | -1    | 1     |                  |
    | truncated_quadratic | max(0, 1 - z)^2   | 1     | -2    | 1     |                  |
    | savage              | 1 / (1 + e^z)^2   | 1/4   | -1/4  | 1/2   | (not convex)     |

Any other elementwise callable may take their place; nothing has to be registered.
Source: Tang et al., Generalized Preference Optimization, 2024, https://arxiv.org/abs/2402.05749,
Table 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks

ConvexFn = Callable[[Float[Array, "..."]], Float[Array, "..."]]

# Where exp(-z) is continued by its tangent: far beyond any margin that training should visit, and
# far below the overflow of float32 at 88.
_EXPONENTIAL_KNEE = 40.0


def logistic(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns log(1 + exp(-z)), which makes GPO the loss of DPO.

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values, > 0. [...].

    References:
      Rafailov et al., Direct Preference Optimization, 2023. https://arxiv.org/abs/2305.18290
    """
    margin = _checks.as_float("margin", margin)
    return jax.nn.softplus(-margin)


def hinge(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns max(0, 1 - z), which makes GPO the loss of SLiC with a reference.

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values, >= 0; the gradient is -1 below z = 1 and 0 from there on. [...].

    References:
      Zhao et al., SLiC-HF, 2023. https://arxiv.org/abs/2305.10425
    """
    margin = _checks.as_float("margin", margin)
    return jnp.where(margin < 1, 1 - margin, jnp.zeros_like(margin))


def squared(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns (z - 1)^2, which makes GPO the loss of IPO (see `ipo_loss` for the scale).

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values, >= 0. [...].

    References:
      Azar et al., A General Theoretical Paradigm, 2023. https://arxiv.org/abs/2310.12036
    """
    margin = _checks.as_float("margin", margin)
    return jnp.square(margin - 1)


def exponential(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns exp(-z), continued by its tangent below z = -40.

    The continuation keeps value and gradient finite in float32 (exp overflows at 88) and the
    function convex and once differentiable; at z = -40 the loss is already 2e17.

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values, > 0. [...].

    References:
      Tang et al., Generalized Preference Optimization, 2024. https://arxiv.org/abs/2402.05749
    """
    margin = _checks.as_float("margin", margin)
    bounded = jnp.maximum(margin, -_EXPONENTIAL_KNEE)
    excess = bounded - margin
    return jnp.exp(-bounded) * (1 + excess)


def truncated_quadratic(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns max(0, 1 - z)^2: squared below the margin of 1, nothing beyond it.

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values, >= 0. [...].

    References:
      Tang et al., Generalized Preference Optimization, 2024. https://arxiv.org/abs/2402.05749
    """
    margin = _checks.as_float("margin", margin)
    return jnp.square(hinge(margin))


def savage(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns 1 / (1 + exp(z))^2, bounded by 1, so that outliers cannot dominate.

    It is not convex: the second derivative is negative for z < -log 2, and gradients vanish on
    pairs that are badly misordered.

    Args:
      margin: z = beta * rho, dimensionless. [...].

    Returns:
      Values in (0, 1). [...].

    References:
      Tang et al., Generalized Preference Optimization, 2024. https://arxiv.org/abs/2402.05749
    """
    margin = _checks.as_float("margin", margin)
    return jnp.square(jax.nn.sigmoid(-margin))
