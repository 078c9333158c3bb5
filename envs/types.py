"""What every environment hands over."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float


class TimeStep(NamedTuple):
    """What an agent sees after `reset` and after each `step`; the two ends are never merged.

    Attributes:
      observation: an array or a pytree of arrays, the environment's to describe.
      reward: of the transition that led here; 0 after `reset`. [].
      terminated: whether the episode has come to its own end: nothing follows, so nothing is
        bootstrapped. [].
      truncated: whether it was cut off, by a limit of time for instance, at a state from which it
        could have gone on. [].
    """

    observation: Any
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
