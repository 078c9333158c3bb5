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


def row_weights(weight: Float[Array, " B"] | None, rows: int) -> Float[Array, " B"]:
    """Returns the weight of every row of a batch.

    Args:
      weight: what the batch says, or None. [B].
      rows: B.

    Returns:
      The weights; ones where the batch says nothing. [B].
    """
    return jnp.ones(rows) if weight is None else weight


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
    objective: Callable[[Params, Any], Sums],
    params: Params,
    opt_state: optax.OptState,
    *,
    batch: Any,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    accumulate_steps: int = 1,
) -> tuple[Params, optax.OptState, Metrics]:
    """Takes one optimiser step on the batch average of an objective.

    Args:
      objective: `(params, examples) -> Sums` over examples of this device. What they have in common
        with the rest of the batch is computed before and comes as a closure, see `map_parts`.
      params: parameters, the same on every device of `axis_name`.
      opt_state: the optimiser's state for `params`.
      batch: pytree of this device's examples on the first axis, for `objective`.
      optimizer: any optax transformation.
      axis_name: name of the `pmap` or `shard_map` axis over which the batch is spread; None where
        one program sees the whole batch.
      accumulate_steps: parts that `batch` is cut into, which are learnt from one after another.
        Their sums and gradients are added in float32 before anything is divided: the step is that
        of the whole batch, and holds the activations of a part.

    Returns:
      New parameters, new optimiser state, and float32 scalars: `loss`, `grad_norm` (before the
      optimiser clips anything), `updates/skipped` (how many steps a non-finite gradient has cost so
      far) and the averages of `Sums.metrics`.

    Raises:
      ValueError: `accumulate_steps` does not divide the examples.
    """
    # Marked as varying over the axis, the parameters get this device's gradient alone. Without it,
    # shard_map would add up the gradients by itself and the sum below would count every device
    # twice.
    local_params = _varying(axis_name, params)

    def loss_sum(parameters, examples):
        sums = objective(parameters, examples)
        return sums.loss, sums

    def sums_and_gradients(examples):
        found = jax.value_and_grad(loss_sum, has_aux=True)(local_params, examples)
        return found[0][1], found[1]

    if accumulate_steps == 1:
        found = sums_and_gradients(batch)
    else:
        cut = parts(batch, accumulate_steps)
        found = _accumulated(sums_and_gradients, cut, axis_name)
    sums, gradients = _sum_over(axis_name, found)
    count = jnp.where(sums.count > 0, sums.count, 1.0)
    gradients = jax.tree.map(lambda g, p: (g / count).astype(p.dtype), gradients, params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    metrics = {
        "loss": sums.loss / count,
        "grad_norm": optax.tree.norm(gradients),
        "updates/skipped": optimizers.skipped_updates(opt_state),
        **{name: value / count for name, value in sums.metrics.items()},
    }
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    return optax.apply_updates(params, updates), opt_state, metrics


def parts(batch: Any, accumulate_steps: int) -> Any:
    """Cuts a batch into parts of equal size.

    A part holds every N-th row, so that rows spread over devices stay where they are, as long as N
    divides those of each device; else the compiler brings them together first.

    Args:
      batch: pytree of arrays. [B, ...].
      accumulate_steps: number N of parts, which divides B.

    Returns:
      The parts. [N, B / N, ...].

    Raises:
      ValueError: `accumulate_steps` does not divide B.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if accumulate_steps < 1 or rows % accumulate_steps:
        raise ValueError(
            f"accumulate_steps must divide the {rows} rows of a device, got {accumulate_steps}."
        )

    def cut(leaf):
        return jnp.moveaxis(leaf.reshape(-1, accumulate_steps, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)


def map_parts(fn: Callable[[Any], Any], batch: Any, accumulate_steps: int) -> Any:
    """Applies a function of rows to a batch, one part after another.

    For what each row gives by itself and the whole batch must know: values before advantages are
    standardised, features that every other row meets. Where gradients flow back they are exact,
    and what a part has computed on the way is computed again, not kept; they are added in the dtype
    of what `fn` closes over.

    Args:
      fn: of rows; what it returns for a row must not depend on the others.
      batch: pytree of rows. [B, ...].
      accumulate_steps: number of parts.

    Returns:
      What `fn` returns for the whole batch. [B, ...].

    Raises:
      ValueError: `accumulate_steps` does not divide B.
    """
    if accumulate_steps == 1:
        return fn(batch)
    found = jax.lax.map(jax.checkpoint(fn), parts(batch, accumulate_steps))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), found)


def _varying(axis_name: str | None, tree):
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")


def _accumulated(run: Callable[[Any], Any], cut: Any, axis_name: str | None):
    """Adds `run` of each part, in float32 at least."""
    shapes = jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0], cut))
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, run(part)), None

    return jax.lax.scan(add, _varying(axis_name, zeros), cut)[0]


def mean_loss_step(
    loss_fn: Callable[[Params, Any], Float[Array, " B"]],
    params: Params,
    opt_state: optax.OptState,
    *,
    batch: Any,
    weight: Float[Array, " B"],
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    accumulate_steps: int = 1,
) -> tuple[Params, optax.OptState, Metrics]:
    """Takes one optimiser step on the weighted mean of a loss, with nothing else to watch.

    Args:
      loss_fn: `(params, examples) -> losses`, one of each example. [B].
      params: see `gradient_step`.
      opt_state: see `gradient_step`.
      batch: see `gradient_step`.
      weight: of each example, 0 for padding rows. [B].
      optimizer: any optax transformation.
      axis_name: see `gradient_step`.
      accumulate_steps: see `gradient_step`.

    Returns:
      As `gradient_step`.

    Raises:
      ValueError: as `gradient_step`.
    """

    def objective(params, examples):
        rows, counts = examples
        return weighted_sums(loss_fn(params, rows), counts)

    return gradient_step(
        objective,
        params,
        opt_state,
        batch=(batch, weight),
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )


def copy_tree(tree: Params) -> Params:
    """Copies every array, so that no two leaves of a state share a buffer.

    Args:
      tree: any pytree of arrays.

    Returns:
      The same tree with fresh buffers. A state that held one buffer twice could not be donated.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
