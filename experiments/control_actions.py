"""Continuous actions in one unit: every environment takes numbers in [-1, 1]."""

import math

import jax.numpy as jnp

from bellmax.envs import ArraySpec, Environment


def unit_actions(environment: Environment) -> Environment:
    """Returns an environment whose continuous actions are in [-1, 1]; numbers beyond are limited.

    Args:
      environment: any environment that does not reset itself yet; one of discrete actions is
        returned as it is.

    Returns:
      The environment; -1 and 1 are the least and the greatest action of the given one.

    Raises:
      ValueError: continuous actions have no limits.
    """
    spec = environment.action_spec
    if not isinstance(spec, ArraySpec) or (spec.low, spec.high) == (-1, 1):
        return environment
    if not (math.isfinite(spec.low) and math.isfinite(spec.high)):
        raise ValueError(
            f"name must be of an environment whose actions have limits, got {spec.low} to "
            f"{spec.high}."
        )

    def step(key, state, action, params):
        share = (jnp.clip(action, -1, 1) + 1) / 2
        taken = spec.low + (spec.high - spec.low) * share
        return environment.step(key, state, taken.astype(spec.dtype), params)

    unit = ArraySpec(spec.shape, spec.dtype, low=-1.0, high=1.0)
    return environment._replace(step=step, action_spec=unit)
