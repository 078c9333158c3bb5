"""What models of future states are measured by, in the units of their source."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import Params, horizon
from bellmax.experiments import sample_distances
from bellmax.experiments.data import transitions
from bellmax.experiments.horizon_config import TrainConfig
from bellmax.experiments.horizon_methods import Model
from bellmax.experiments.horizon_truth import Source, Truth


class Scale(NamedTuple):
    """Units that models learn in.

    Attributes:
      mean: of each feature of a state. [D].
      deviation: likewise, 1 where a feature does not vary. [D].
    """

    mean: Float[np.ndarray, " D"]
    deviation: Float[np.ndarray, " D"]

    def to_model(self, states: Array) -> Array:
        """Returns states in the model's units. [..., D]."""
        return (states - self.mean) / self.deviation

    def from_model(self, states: Array) -> Array:
        """Returns states in the source's units. [..., D]."""
        return states * self.deviation + self.mean


def scale_of(source: Source, *, standardise: bool) -> Scale:
    """Returns the units that models of a source learn in.

    Args:
      source: the source.
      standardise: False for the source's own.

    Returns:
      Mean and deviation of its states.
    """
    rows = source.transitions
    size = rows.observations.shape[-1]
    if not standardise:
        return Scale(np.zeros(size, np.float32), np.ones(size, np.float32))
    table = transitions.TransitionTable(
        np.asarray(rows.observations), np.asarray(rows.actions), np.asarray(rows.next_observations)
    )
    return Scale(*transitions.standardisation(table))


def range_of(source: Source, scale: Scale) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Returns the least and the greatest of the states that models of a source learn from.

    Args:
      source: the source.
      scale: the units that models learn in.

    Returns:
      Both ends, in those units. [D] each.
    """
    states = source.transitions.next_observations
    return scale.to_model(states.min(axis=0)), scale.to_model(states.max(axis=0))


class Evaluation:
    """Compares a model with the truth at fixed states, with fixed noise.

    Args:
      model: the model.
      source: the source.
      truth: of its states.
      scale: the units that the model learns in.
      discount: gamma.
      train: sizes.
      key: randomness of the noise.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        truth: Truth,
        scale: Scale,
        discount: float,
        train: TrainConfig,
        key: PRNGKeyArray,
    ):
        self._truth, self._reward_fn, self._discount = truth, source.reward_fn, discount
        count, samples, size = truth.samples.shape
        condition = horizon.condition(scale.to_model(source.states), source.actions)

        def repeated(times):
            shape = (count, times, condition.shape[-1])
            return jnp.broadcast_to(condition[:, None], shape)

        noise = jax.random.normal(key, (count, samples, model.noise_size))
        some = jnp.asarray(truth.samples[:, : train.likelihood_samples])
        units = float(np.log(scale.deviation).sum())

        @jax.jit
        def sample(params: Params) -> Array:
            return scale.from_model(model.sample(params, noise, repeated(samples)))

        self.sample: Callable[[Params], Array] = sample
        self._density = None
        if model.log_likelihood is not None:
            density = model.log_likelihood

            def negative(params: Params) -> Array:
                found = density(params, scale.to_model(some), repeated(some.shape[1]))
                return (units - found.mean()) / size

            self._density = jax.jit(negative)

    def __call__(self, params: Params) -> Mapping[str, float]:
        """Returns the measures of a model.

        Args:
          params: that evaluations are made of, the target's.

        Returns:
          Averages over the states: `evaluation/emd`, the earth mover's distance;
          `evaluation/energy_distance`; `evaluation/value_mse` of the source's reward; and
          `evaluation/nll`, nats a feature, where the model has a density.
        """
        found = self.sample(params)
        values = horizon.value(found, self._reward_fn, discount=self._discount)
        samples = np.asarray(found, np.float64)
        measures = {
            "evaluation/value_mse": float(np.mean((np.asarray(values) - self._truth.values) ** 2))
        }
        # A model that has gone astray must not stop the run that would show it.
        finite = np.isfinite(samples).all()
        measures |= _distances(samples if finite else None, self._truth.samples)
        if self._density is not None:
            measures["evaluation/nll"] = float(self._density(params))
        return measures


def floor(source: Source, truth: Truth, discount: float, key: PRNGKeyArray) -> dict[str, float]:
    """Returns what a model that is the truth would be measured by: the distances of fresh samples.

    Args:
      source: the source.
      truth: its samples.
      discount: gamma.
      key: randomness of the fresh samples; consumed.

    Returns:
      Measures by name, as `Evaluation` gives them.
    """
    fresh = source.truth(discount, truth.samples.shape[1], key)
    value = functools.partial(horizon.value, reward_fn=source.reward_fn, discount=discount)
    found = np.asarray(value(jnp.asarray(fresh.samples)))
    return {
        "evaluation/value_mse": float(np.mean((found - truth.values) ** 2)),
        **_distances(fresh.samples, truth.samples),
    }


def _distances(found: np.ndarray | None, truth: np.ndarray) -> dict[str, float]:
    """Returns means over states; NaN without samples. [E, M, D] each."""
    return {
        f"evaluation/{name}": float("nan")
        if found is None
        else float(np.mean([distance(*pair) for pair in zip(found, truth, strict=True)]))
        for name, distance in (
            ("emd", sample_distances.earth_movers_distance),
            ("energy_distance", sample_distances.energy_distance),
        )
    }
