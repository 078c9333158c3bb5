"""The replay of sequences: flashbax's buffers, uniform or prioritised, behind one face."""

from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import SequenceBatch


class Step(NamedTuple):
    """One transition of one environment, as the replay keeps it.

    Attributes:
      observation: x_t, in the dtype that the replay keeps.
      action: a_t.
      reward: of the transition.
      terminated: whether the transition ended the episode by itself.
      truncated: whether it was cut off there.
      probs: law of the action. [A].
      begins: whether this is no transition but the step that begins an episode.
    """

    observation: Array
    action: Int[Array, ""]
    reward: Float[Array, ""]
    terminated: Array
    truncated: Array
    probs: Float[Array, " A"]
    begins: Array


class Options(NamedTuple):
    """Sizes and laws of a replay.

    Attributes:
      num_environments: N, which add a step each at a time.
      batch_size: sequences of a sample.
      sequence_length: transitions T of a sequence.
      size: transitions that are kept, over all environments; the oldest make room.
      learning_starts: transitions before the first sample, rounded up to whole steps.
      priority_exponent: in [0, 1]; 0 samples uniformly, above, a sequence's chance grows with this
        power of the size of its last error. A new sequence counts as the largest so far, rounded
        down to a whole number but not below 1.
      importance_exponent: beta in [0, 1]; a sequence of probability P weighs P^-beta.
    """

    num_environments: int
    batch_size: int
    sequence_length: int
    size: int
    learning_starts: int
    priority_exponent: float
    importance_exponent: float


class Sample(NamedTuple):
    """Sequences, and where they came from.

    Attributes:
      batch: the sequences.
      indices: their places, for new priorities; None where there are none. [B].
    """

    batch: SequenceBatch
    indices: Int[Array, " B"] | None


# Added to every error: a sequence that is predicted perfectly comes again all the same.
_LEAST_PRIORITY = 1e-3


class Replay:
    """A buffer as pure functions of its state; the object holds sizes alone.

    Args:
      options: sizes and laws.

    References:
      Schaul et al., Prioritized Experience Replay, 2015. https://arxiv.org/abs/1511.05952
    """

    def __init__(self, options: Options):
        self._options = options
        sizes = {
            "add_batch_size": options.num_environments,
            "sample_batch_size": options.batch_size,
            "sample_sequence_length": options.sequence_length + 1,
            "period": 1,
            "min_length_time_axis": max(
                options.sequence_length + 1,
                -(-options.learning_starts // options.num_environments),
            ),
            "max_length_time_axis": options.size // options.num_environments,
        }
        self._prioritised = options.priority_exponent > 0
        self._buffer: Any = (
            flashbax.make_prioritised_trajectory_buffer(
                **sizes,
                priority_exponent=options.priority_exponent,
                device=jax.default_backend(),
            )
            if self._prioritised
            else flashbax.make_trajectory_buffer(**sizes)
        )

    def init(self, example: Step) -> Any:
        """Returns an empty replay.

        Args:
          example: one step of one environment.
        """
        return self._buffer.init(example)

    def add(self, state: Any, steps: Step) -> Any:
        """Returns the replay with one more step of every environment.

        Args:
          state: the replay; may be donated.
          steps: the steps. [N, ...].
        """
        return self._buffer.add(state, jax.tree.map(lambda leaf: leaf[:, None], steps))

    def can_sample(self, state: Any) -> Array:
        """Returns whether the replay holds enough."""
        return self._buffer.can_sample(state)

    def sample(self, state: Any, key: PRNGKeyArray) -> Sample:
        """Draws sequences; those that begin with no transition have weight 0.

        Args:
          state: the replay.
          key: randomness; consumed.

        Returns:
          The sequences, weighed by importance where priorities chose them.
        """
        drawn = self._buffer.sample(state, key)
        steps = drawn.experience
        transitions = jax.tree.map(lambda leaf: leaf[:, :-1], steps)
        weight = 1.0 - transitions.begins[:, 0].astype(jnp.float32)
        indices = None
        if self._prioritised:
            indices = drawn.indices
            # Sums of a tree are rounded, so that once in a while a place comes that has no chance:
            # one across the oldest and the newest step, or none at all.
            counts = (weight > 0) & (drawn.probabilities > 0)
            chances = jnp.where(counts, drawn.probabilities, 1.0)
            # Only ratios matter, an update divides by their sum; the largest of a batch is 1.
            rarity = (chances / chances.min()) ** -self._options.importance_exponent
            weight = jnp.where(counts, rarity, 0.0)
        batch = SequenceBatch(
            observations=steps.observation.astype(jnp.float32),
            actions=transitions.action,
            rewards=transitions.reward,
            terminated=transitions.terminated,
            truncated=transitions.truncated,
            behaviour_probs=transitions.probs,
            weight=weight,
            last_behaviour_probs=steps.probs[:, -1],
        )
        return Sample(batch, indices)

    def with_errors(self, state: Any, sample: Sample, errors: Float[Array, " B"]) -> Any:
        """Returns the replay with the priorities of sampled sequences set by their errors.

        Sequences of weight 0 are not drawn again; an error that is not finite counts as none.

        Args:
          state: the replay.
          sample: what was drawn from it.
          errors: temporal-difference errors, of any sign. [B].
        """
        weight = sample.batch.weight
        if sample.indices is None or weight is None:
            return state
        sizes = jnp.where(jnp.isfinite(errors), jnp.abs(errors), 0.0) + _LEAST_PRIORITY
        priorities = jnp.where(weight > 0, sizes, 0.0)
        return self._buffer.set_priorities(state, sample.indices, priorities)

    def priorities(self, state: Any) -> Any:
        """Returns all that `with_errors` changes: a tree of priorities, or nothing.

        Args:
          state: the replay.
        """
        return state.sum_tree_state if self._prioritised else ()

    def with_priorities(self, state: Any, priorities: Any) -> Any:
        """Returns the replay with other priorities.

        Args:
          state: the replay.
          priorities: from `priorities`.
        """
        return state.replace(sum_tree_state=priorities) if self._prioritised else state

    @property
    def is_prioritised(self) -> bool:
        """Whether priorities choose the sequences."""
        return self._prioritised
