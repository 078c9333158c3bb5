"""Statistics of the samples of one prompt, on the last axis."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax.losses import _checks


def has_samples(name: str, value: Any, *, at_least: int = 1, why: str = "") -> None:
    """Refuses an array whose last axis does not hold enough samples.

    Args:
      name: the argument's name, for the error.
      value: one entry for each sample. [..., G].
      at_least: how many samples are needed.
      why: what they are needed for, for the error.

    Raises:
      ValueError: there is no axis of samples, or it is too short.
    """
    shape = jnp.shape(value)
    if not shape:
        raise ValueError(f"{name} must have an axis of samples, got a scalar.")
    if shape[-1] < at_least:
        purpose = f" for {why}" if why else ""
        raise ValueError(
            f"{name} must hold at least {at_least} samples of a prompt on its last axis{purpose}, "
            f"got shape {shape}."
        )


def per_group(name: str, value: Any, like: Float[Array, "*B G"]) -> Array:
    """Returns a hyper-parameter such that it meets every sample of its prompt.

    Args:
      name: the argument's name, for the error.
      value: a number, a scalar array, or one number for each prompt. [] or [...].
      like: the samples. [..., G].

    Returns:
      The value, in the dtype of `like`. [..., 1].

    Raises:
      ValueError: the shape is neither `()` nor that of the prompts.
    """
    number = _checks.knob(name, value, like[..., 0])
    return jnp.broadcast_to(number, like.shape[:-1])[..., None]


def size_of_subsets(k: int, name: str, value: Array) -> None:
    """Refuses a size that subsets of the samples cannot have.

    Args:
      k: the size, static.
      name: the name of the argument of samples, for the error.
      value: the samples. [..., G].

    Raises:
      ValueError: k is no integer, below 1, or above the number of samples.
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= value.shape[-1]:
        raise ValueError(
            f"k must be an integer from 1 to the number of samples, which is {value.shape[-1]} in "
            f"{name}, got {k!r}."
        )


def centre(values: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    """Returns deviations from the mean of the group, exactly 0 where all samples are equal.

    Args:
      values: one for each sample. [..., G].

    Returns:
      Deviations. [..., G].
    """
    # Relative to one of them first: the mean of equal numbers need not be that number, and an
    # advantage is often divided by how little it varies. A shift has no gradient.
    shifted = values - jax.lax.stop_gradient(values[..., :1])
    return shifted - jnp.mean(shifted, axis=-1, keepdims=True)


def leave_one_out(values: Float[Array, "*B G"]) -> Float[Array, "*B G"]:
    """Returns each sample's deviation from the mean of the others.

    Args:
      values: one for each of at least 2 samples. [..., G].

    Returns:
      Deviations. [..., G].
    """
    samples = values.shape[-1]
    return centre(values) * (samples / (samples - 1))


def covariance(first: Float[Array, "*B G"], second: Float[Array, "*B G"]) -> Float[Array, "*B"]:
    """Returns the unbiased covariance of two numbers of each sample.

    It is the mean, over pairs of samples, of half the product of their differences.

    Args:
      first: one for each of at least 2 samples. [..., G].
      second: the same. [..., G].

    Returns:
      Covariances, or variances where both are one. [...].
    """
    products = centre(first) * centre(second)
    return jnp.sum(products, axis=-1) / (first.shape[-1] - 1)
