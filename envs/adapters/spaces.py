"""What other libraries' spaces of actions are in ours."""

from typing import Any

import numpy as np

from bellmax.envs.environment import ArraySpec, DiscreteSpec


def action_spec(space: Any) -> DiscreteSpec | ArraySpec | None:
    """Returns a space of actions as ours.

    Args:
      space: of Gymnasium, Gymnax or a library with the same attributes.

    Returns:
      The specification; None where actions are neither choices from 0 nor an array within one
      finite range.
    """
    if getattr(space, "n", None) is not None and getattr(space, "start", 0) == 0:
        return DiscreteSpec(int(space.n))
    ends = tuple(np.unique(getattr(space, end, ())) for end in ("low", "high"))
    if not all(len(end) == 1 and np.isfinite(end).all() for end in ends):
        return None
    low, high = (float(end[0]) for end in ends)
    return ArraySpec(tuple(space.shape), low=low, high=high)
