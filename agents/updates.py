"""One optimiser step that every gradient agent shares, right on any layout of devices.

A batch average is a quotient of two sums, and both are taken over all devices before the division:
means of means would weigh a device with few counted examples as much as a full one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bellmax.agents import optimizers
from bellmax.agents.agent import Metrics, Params


class Sums(NamedTuple):
    """Sums over the examples of a batch on one device.

    Attributes:
      loss: weighted sum of the loss.
      count: sum of the weights, which every average divides by. It must not depend on the
        parameters.
      metrics: weighted sums of what else is watched, by metric name.
    """

    loss: Float[Array, ""]
    count: Float[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: Metrics


def weighted_sum(values: Float[Array, "*B"], weight: Float[Array, "*B"]) -> Float[Array, ""]:
    """Sums `values * weight` over the batch; a row of weight 0 may hold anything, NaN included.

    Args:
      values: one value per example. [...].
      weight: one weight per example, >= 0. [...].

    Returns:
      The sum, a float32 scalar.
    """
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight)


def weighted_sums(
    loss: Float[Array, "*B"], weight: Float[Array, "*B"], watched: Metrics | None = None
) -> Sums:
    """Returns the sums over a batch that `gradient_step` averages.

    Args:
      loss: of each example. [...].
      weight: of each example, >= 0. [...].
      watched: what else is averaged, by metric name, [...] each; it passes no gradient.

    Returns:
      The sums.
    """
    metrics = {name: weighted_sum(value, weight) for name, value in (watched or {}).items()}
    return Sums(weighted_sum(loss, weight), jnp.sum(weight), jax.lax.stop_gradient(metrics))


def where_counted(tree: Any, weight: Float[Array, "*B"]) -> Any:
    """Returns arrays that are 0 in examples of no weight, which may hold anything.

    Taken before the networks and before the loss, not after: the gradient of NaN times 0 is NaN.

    Args:
      tree: arrays whose leading axes are those of `weight`. [..., *].
      weight: of each example. [...].

    Returns:
      The arrays.
    """

    def keep(leaf):
        counts = weight.reshape(*weight.shape, *[1] * (jnp.ndim(leaf) - weight.ndim)) > 0
        return jnp.where(counts, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(keep, tree)


def _sum_over(axis_name: str | None, tree):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def gradient_step(
    objective: Callable[[Params], Sums],
    params: Params,
    opt_state: optax.OptState,
    *,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[Params, optax.OptState, Metrics]:
    """Takes one optimiser step on the batch average of an objective.

    Args:
      objective: the sums over this device's examples, as a function of the parameters.
      params: parameters, the same on every device of `axis_name`.
      opt_state: the optimiser's state for `params`.
      optimizer: any optax transformation.
      axis_name: name of the `pmap` or `shard_map` axis over which the batch is spread; None where
        one program sees the whole batch.

    Returns:
      New parameters, new optimiser state, and float32 scalars: `loss`, `grad_norm` (before the
      optimiser clips anything), `updates/skipped` (how many steps a non-finite gradient has cost so
      far) and the averages of `Sums.metrics`.
    """
    # Marked as varying over the axis, the parameters get this device's gradient alone. Without it,
    # shard_map would add up the gradients by itself and the sum below would count every device
    # twice.
    local_params = params if axis_name is None else jax.lax.pcast(params, axis_name, to="varying")

    def loss_sum(parameters):
        sums = objective(parameters)
        return sums.loss, sums

    (_, sums), gradients = jax.value_and_grad(loss_sum, has_aux=True)(local_params)
    sums, gradients = _sum_over(axis_name, (sums, gradients))
    count = jnp.where(sums.count > 0, sums.count, 1.0)
    gradients = jax.tree.map(lambda g: (g / count).astype(g.dtype), gradients)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    metrics = {
        "loss": sums.loss / count,
        "grad_norm": optax.tree.norm(gradients),
        "updates/skipped": optimizers.skipped_updates(opt_state),
        **{name: value / count for name, value in sums.metrics.items()},
    }
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    return optax.apply_updates(params, updates), opt_state, metrics


def mean_loss_step(
    loss_fn: Callable[[Params], Float[Array, " B"]],
    weight: Float[Array, " B"],
    params: Params,
    opt_state: optax.OptState,
    *,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[Params, optax.OptState, Metrics]:
    """Takes one optimiser step on the weighted mean of a loss, with nothing else to watch.

    Args:
      loss_fn: the loss of each of this device's examples, as a function of the parameters. [B].
      weight: of each, 0 for padding rows. [B].
      params: see `gradient_step`.
      opt_state: see `gradient_step`.
      optimizer: any optax transformation.
      axis_name: see `gradient_step`.

    Returns:
      As `gradient_step`.
    """
    return gradient_step(
        lambda params: weighted_sums(loss_fn(params), weight),
        params,
        opt_state,
        optimizer=optimizer,
        axis_name=axis_name,
    )


def copy_tree(tree: Params) -> Params:
    """Copies every array, so that no two leaves of a state share a buffer.

    Args:
      tree: any pytree of arrays.

    Returns:
      The same tree with fresh buffers. A state that held one buffer twice could not be donated.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
