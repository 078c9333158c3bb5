"""Checks of losses of vectors: shapes, the times that go with them, the fields that move them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks


def vectors(**arrays: Any) -> tuple[Float[Array, "..."], ...]:
    """Checks that arrays are floating-point vectors of one shape, and promotes them together.

    Args:
      **arrays: vectors by argument name. [..., D].

    Returns:
      The vectors in the order given, in one dtype. [..., D].

    Raises:
      TypeError: an array is not floating point.
      ValueError: two shapes differ, or there is no axis of features.
    """
    promoted = _checks.floats(**arrays)
    name = next(iter(arrays))
    if promoted[0].ndim < 1:
        raise ValueError(f"{name} must have an axis of features, got a scalar.")
    dtype = jnp.result_type(*promoted)
    return tuple(array.astype(dtype) for array in promoted)


def per_vector(name: str, value: Any, like: Float[Array, "*B D"]) -> Array:
    """Checks that an array has one number for each vector.

    Args:
      name: the argument's name, for the error.
      value: the array. [...].
      like: the vectors. [..., D].

    Returns:
      The array. [...].

    Raises:
      ValueError: the shape is not that of `like` without its last axis.
    """
    array = jnp.asarray(value)
    if array.shape != like.shape[:-1]:
        raise ValueError(
            f"{name} must have one entry for each vector, shape {like.shape[:-1]}, "
            f"got {array.shape}."
        )
    return array


def at_times(name: str, time: Any, **arrays: Any) -> tuple[Float[Array, "..."], ...]:
    """Checks vectors and the times that go with them.

    Args:
      name: the name of the argument of times, for the error.
      time: one floating-point number for each vector. [...].
      **arrays: vectors by argument name. [..., D].

    Returns:
      The times, then the vectors in the order given, in the dtype of the vectors. [...], [..., D].

    Raises:
      TypeError: an array is not floating point.
      ValueError: the shapes do not fit.
    """
    promoted = vectors(**arrays)
    times = per_vector(name, _checks.as_float(name, time), promoted[0])
    return times.astype(promoted[0].dtype), *promoted


def call(
    name: str, function: Callable[..., Array], point: Float[Array, "*B D"], *rest: Array
) -> Float[Array, "*B D"]:
    """Calls a field at points.

    Args:
      name: the function's name, for the error.
      function: maps points, and what follows them, to vectors of the same shape.
      point: where. [..., D].
      *rest: further arguments, such as the time of each point. [...].

    Returns:
      The vectors, in the dtype of `point`: a network may compute in another one. [..., D].

    Raises:
      ValueError: the function returned another shape.
    """
    value = jnp.asarray(function(point, *rest))
    if value.shape != point.shape:
        raise ValueError(
            f"{name} must return the shape of the points that it gets, {point.shape}, "
            f"got {value.shape}."
        )
    return value.astype(point.dtype)


def squared_distance(
    first: Float[Array, "*B D"], second: Float[Array, "*B D"]
) -> Float[Array, "*B"]:
    """Returns the squared Euclidean distance, a sum over features.

    Args:
      first: vectors. [..., D].
      second: vectors. [..., D].

    Returns:
      Distances. [...].
    """
    return jnp.sum(jnp.square(first - second), axis=-1)


def td_loss(
    discount: _checks.Knob, predictions: tuple[Array, Array], targets: tuple[Array, Array]
) -> Float[Array, "*B"]:
    """Returns the two-term regression of temporal differences; the targets are stopped.

    Args:
      discount: gamma in [0, 1]. A scalar or [...].
      predictions: of the direct and of the bootstrap term. [..., D].
      targets: of the direct and of the bootstrap term. [..., D].

    Returns:
      (1 - gamma) times the direct squared distance plus gamma times the other. [...].

    Raises:
      ValueError: `discount` is out of range or of another shape.
    """
    _checks.in_range("discount", discount, 0, 1)
    direct, bootstrap = (
        squared_distance(prediction, target)
        for prediction, target in zip(predictions, _checks.stop(*targets), strict=True)
    )
    weight = _checks.knob("discount", discount, direct)
    return (1 - weight) * direct + weight * bootstrap


def at_least_one(name: str, value: int) -> None:
    """Refuses a count that is no whole number above 0.

    Args:
      name: the argument's name, for the error.
      value: a static number of steps or levels.

    Raises:
      ValueError: it is not an integer of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
