"""An environment as two pure functions, with what it takes and shows."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array of real numbers.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      low: least value, -inf where there is none.
      high: greatest value.
    """

    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    low: float = float("-inf")
    high: float = float("inf")


@dataclasses.dataclass(frozen=True)
class DiscreteSpec:
    """A choice.

    Attributes:
      num_values: values 0 to num_values - 1.
    """

    num_values: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a value: a scalar's."""
        return ()

    @property
    def dtype(self) -> Any:
        """The dtype of a value: int32."""
        return jnp.int32


class Environment(NamedTuple):
    """An environment; all four functions of it are pure, jittable and vmappable.

    Attributes:
      reset: `(key, params) -> (state, TimeStep)`.
      step: `(key, state, action, params) -> (state, TimeStep)`; resets by itself only if
        `resets_itself`.
      params: a pytree of arrays and numbers: the physics, which `jax.vmap` may sweep.
      observation_spec: what is seen.
      action_spec: what is done.
      resets_itself: whether the step after an end begins another episode (`wrappers.auto_reset`).
    """

    reset: Callable[..., tuple[Any, Any]]
    step: Callable[..., tuple[Any, Any]]
    params: Any
    observation_spec: ArraySpec | DiscreteSpec
    action_spec: DiscreteSpec | ArraySpec
    resets_itself: bool = False
