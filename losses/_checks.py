"""Checks and promotions that every loss shares: shapes and dtypes, named by argument."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A hyper-parameter: a number, or an array that may be traced.
Knob = int | float | Array


def is_float(name: str, value: Any) -> None:
    """Refuses an array that is not floating point.

    Args:
      name: the argument's name, for the error.
      value: an array or a number.

    Raises:
      TypeError: the array is not floating point.
    """
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got dtype {dtype}.")


def as_float(name: str, value: Any) -> Float[Array, "..."]:
    """Returns an array in the dtype that losses compute in.

    Args:
      name: the argument's name, for the error.
      value: a floating-point array, or a Python number.

    Returns:
      The array: float16 and bfloat16 as float32, float32 and float64 as they are.

    Raises:
      TypeError: the array is not floating point.
    """
    is_float(name, value)
    array = jnp.asarray(value)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_integer(name: str, value: Any) -> Array:
    """Returns an array of integers.

    Args:
      name: the argument's name, for the error.
      value: an integer array.

    Returns:
      The array.

    Raises:
      TypeError: the array is not of integers.
    """
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}.")
    return array


def same_shape(**arrays: Any) -> None:
    """Refuses arrays of different shapes: broadcasting would pair rows that do not belong together.

    Args:
      **arrays: arrays by argument name.

    Raises:
      ValueError: two shapes differ.
    """
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(shapes)} must have one shape, got {listed}.")


def floats(**arrays: Any) -> tuple[Float[Array, "..."], ...]:
    """Checks that arrays are floating point and of one shape, and promotes them.

    Args:
      **arrays: arrays by argument name.

    Returns:
      The arrays in the order given, in the dtype that losses compute in.

    Raises:
      TypeError: an array is not floating point.
      ValueError: two shapes differ.
    """
    same_shape(**arrays)
    return tuple(as_float(name, array) for name, array in arrays.items())


def knob(name: str, value: Any, like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a hyper-parameter in the dtype of the examples that it meets.

    Args:
      name: the argument's name, for the error.
      value: a number, a scalar array, or an array of `like`'s shape; traced or not.
      like: the examples. [...].

    Returns:
      The value, in the dtype of `like`: a hyper-parameter never widens a loss. [] or [...].

    Raises:
      ValueError: the shape is neither `()` nor that of `like`.
    """
    array = jnp.asarray(value)
    if array.shape not in ((), like.shape):
        raise ValueError(f"{name} must be a scalar or have shape {like.shape}, got {array.shape}.")
    return array.astype(like.dtype)


def positive(name: str, value: Any) -> None:
    """Refuses a hyper-parameter that is known to be wrong; traced values cannot be looked at.

    Args:
      name: the argument's name, for the error.
      value: a number or an array.

    Raises:
      ValueError: `value` is a Python number that is not above 0.
    """
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def in_range(
    name: str, value: Any, low: int | float, high: int | float, *, closed: bool = True
) -> None:
    """Refuses a hyper-parameter outside [low, high], or [low, high) if not `closed`.

    Args:
      name: the argument's name, for the error.
      value: a number or an array; only a Python number is looked at.
      low: the lowest value allowed.
      high: the highest.
      closed: whether `high` itself is allowed.

    Raises:
      ValueError: `value` is a Python number outside the range.
    """
    if not isinstance(value, int | float):
        return
    if not (low <= value <= high) or (value == high and not closed):
        bracket = "]" if closed else ")"
        raise ValueError(f"{name} must be in [{low:g}, {high:g}{bracket}, got {value}.")


def keep(values: Float[Array, "..."], mask: Array) -> Float[Array, "..."]:
    """Replaces masked entries by 0, in value and in gradient, whatever they hold.

    Args:
      values: any values. [...].
      mask: non-zero where an entry counts; a fraction weighs it. [...].

    Returns:
      `values * mask` with masked entries read as 0. [...].

    Raises:
      ValueError: the shapes differ.
    """
    same_shape(values=values, mask=mask)
    counted = jnp.asarray(mask) != 0
    # A select and not a product: NaN times 0 is NaN, and so is its gradient.
    return jnp.where(counted, values, 0) * jnp.asarray(mask).astype(values.dtype)


def stop(*values: Any) -> tuple[Any, ...]:
    """Stops the gradient of several values.

    Args:
      *values: arrays or pytrees.

    Returns:
      The values, constant for differentiation.
    """
    return tuple(jax.lax.stop_gradient(value) for value in values)
