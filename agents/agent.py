"""What every agent is: three pure functions, and the batches that they read.

An agent is used as an optax `GradientTransformation` is: `make` of its module binds what never
changes, and everything that does change is in the state that the three functions pass along.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Params = Any
Metrics = dict[str, Array]


class Agent(NamedTuple):
    """The functions of an agent, closed over what never changes.

    Attributes:
      init: `(key, example_batch, *, params=None, reference_params=None) -> State`. Given parameters
        are copied, so that no two leaves of a state share a buffer and `update` can donate it.
      act: `(state, observation, key) -> action`, or None where the agent has no policy to run.
      update: `(state, batch, key) -> (state, metrics)`: one optimiser step. Correct under `jax.jit`
        on one device, under `jax.jit` with sharded inputs on a mesh, and under `jax.pmap` or
        `jax.shard_map` with the `axis_name` that `make` was given.
    """

    init: Callable[..., Any]
    act: Callable[..., Any] | None
    update: Callable[..., tuple[Any, Metrics]]


class PreferenceBatch(NamedTuple):
    """Pairs of completions; each row holds prompt and completion, padded on the right.

    Attributes:
      chosen_tokens: prompt and chosen completion. [B, T], integers.
      rejected_tokens: prompt and rejected completion. [B, T], integers.
      chosen_mask: 1 on the tokens of the completion, its end token included; 0 on prompt and
        padding. [B, T], boolean, integer or float.
      rejected_mask: the same for `rejected_tokens`. [B, T].
      chosen_reference_log_probs: log-probability of the whole chosen completion under the
        reference, in nats, summed over its tokens; None where the agent computes it. [B].
      rejected_reference_log_probs: the same for the rejected completion. [B].
      index: row of the pair in its data set, the same on every device layout; None for 0..B-1. [B].
      weight: weight of the pair in every average, 0 for a padding row; None for ones. [B].
    """

    chosen_tokens: Int[Array, "B T"]
    rejected_tokens: Int[Array, "B T"]
    chosen_mask: Array
    rejected_mask: Array
    chosen_reference_log_probs: Float[Array, " B"] | None = None
    rejected_reference_log_probs: Float[Array, " B"] | None = None
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class SupervisedBatch(NamedTuple):
    """Completions to imitate; each row holds prompt and completion, padded on the right.

    Attributes:
      tokens: prompt and completion. [B, T], integers.
      mask: 1 on the tokens to imitate (the completion and its end token). [B, T].
      index: row of the example in its data set; None for 0..B-1. [B].
      weight: weight of the example in every average, 0 for a padding row; None for ones. [B].
    """

    tokens: Int[Array, "B T"]
    mask: Array
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class PromptBatch(NamedTuple):
    """Prompts to complete.

    Attributes:
      tokens: the prompts; anything where `mask` is 0. [B, P], integers.
      mask: 1 on the prompt's tokens, 0 on padding, on either side. [B, P].
      index: row of the prompt in its data set; None for 0..B-1. [B].
      weight: weight of the prompt in every average, 0 for a padding row; None for ones. [B].
    """

    tokens: Int[Array, "B P"]
    mask: Array
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


def as_prompts(prompts: PromptBatch | Int[Array, "B P"]) -> PromptBatch:
    """Returns prompts as a batch; an array of tokens has no padding.

    Args:
      prompts: a batch, or token ids [B, P].
    """
    if isinstance(prompts, PromptBatch):
        return prompts
    tokens = jnp.asarray(prompts)
    return PromptBatch(tokens, jnp.ones(tokens.shape, bool))


class DuelBatch(NamedTuple):
    """Two completions of each prompt and what a judge says of them; see `sampling.join` for rows.

    Attributes:
      first_tokens: prompt and first completion, padded on the right. [B, T], integers.
      second_tokens: the same for the second completion. [B, T].
      first_mask: 1 on the tokens of the completion, its end token included. [B, T].
      second_mask: the same for `second_tokens`. [B, T].
      preferences: P(first beats second). [B].
      first_win_rates: P(first beats the opponent), from more samples than the second alone; None
        for `preferences`. [B].
      second_win_rates: P(second beats the opponent); None for 1 - `preferences`. [B].
      index: row of the prompt in its data set; None for 0..B-1. [B].
      weight: weight of the prompt in every average, 0 for a padding row; None for ones. [B].
    """

    first_tokens: Int[Array, "B T"]
    second_tokens: Int[Array, "B T"]
    first_mask: Array
    second_mask: Array
    preferences: Float[Array, " B"]
    first_win_rates: Float[Array, " B"] | None = None
    second_win_rates: Float[Array, " B"] | None = None
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class CompletionBatch(NamedTuple):
    """Several completions of each prompt and what they earned; see `sampling.join` for rows.

    Attributes:
      tokens: prompt and completion, padded on the right. [B, G, T], integers.
      mask: 1 on the tokens of the completion, its end token included; 0 on prompt and padding.
        [B, G, T].
      behaviour_log_probs: of each token under the policy that sampled it, in nats. [B, G, T].
      reference_log_probs: of each token under the reference; None where the agent computes them.
        [B, G, T].
      rewards: of each completion; None where the loss reads none. [B, G].
      behaviour_values: of the prefix before each token, by the critic that the batch met first;
        None for the current critic's. [B, G, T].
      greedy_rewards: of the most likely completion, a baseline; None where the loss reads none.
        [B].
      answers: number of each completion's answer, -1 where it gives none; None where the loss reads
        none. [B, G], integers.
      correct_answers: number of the right answer; None likewise. [B], integers.
      answer_mask: 1 on the tokens of a known answer that follows the completion in `tokens`, which
        `mask` does not count; None where there is none. [B, G, T].
      index: row of the prompt in its data set; None for 0..B-1. [B].
      weight: weight of the prompt in every average, 0 for a padding row; None for ones. [B].
    """

    tokens: Int[Array, "B G T"]
    mask: Array
    behaviour_log_probs: Float[Array, "B G T"]
    reference_log_probs: Float[Array, "B G T"] | None = None
    rewards: Float[Array, "B G"] | None = None
    behaviour_values: Float[Array, "B G T"] | None = None
    greedy_rewards: Float[Array, " B"] | None = None
    answers: Int[Array, "B G"] | None = None
    correct_answers: Int[Array, " B"] | None = None
    answer_mask: Array | None = None
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class SequenceBatch(NamedTuple):
    """Sequences of T transitions of any behaviour.

    A transition after one that terminated or was truncated begins the next episode: its action was
    not taken and its reward is 0, as `envs.wrappers.auto_reset` hands them over. A sequence whose
    first transition is such a one has weight 0.

    Attributes:
      observations: x_0 .. x_T; the last one of an episode is its own, not the next one's first.
        [B, T + 1, ...].
      actions: a_0 .. a_{T - 1}. [B, T], integers.
      rewards: of each transition. [B, T].
      terminated: whether the transition ended the episode by itself. [B, T].
      truncated: whether it was cut off there. [B, T].
      behaviour_probs: law of the actions at x_0 .. x_{T - 1} when they were taken. [B, T, A].
      index: number of the sequence in its replay; None for 0..B-1. [B].
      weight: weight of the sequence in every average; None for ones. [B].
      last_behaviour_probs: law of the action at x_T, which the target policy is mixed with there;
        None where it is not known. [B, A].
    """

    observations: Float[Array, "B T+1 ..."]
    actions: Int[Array, "B T"]
    rewards: Float[Array, "B T"]
    terminated: Array
    truncated: Array
    behaviour_probs: Float[Array, "B T A"]
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None
    last_behaviour_probs: Float[Array, "B A"] | None = None


class RolloutBatch(NamedTuple):
    """What the policy itself has played: T steps in a row in each of B environments.

    Steps are those of `envs.wrappers.auto_reset`: the one after an end begins the next episode; its
    action was not taken, its reward is 0, and it counts in no average.

    Attributes:
      observations: x_0 .. x_T; the last one of an episode is its own, not the next one's first.
        [B, T + 1, ...].
      actions: choices of the policy's law, see `agents.action_laws`. [B, T, ...].
      rewards: of each transition. [B, T].
      terminated: whether the transition ended the episode by itself. [B, T].
      truncated: whether it was cut off there. [B, T].
      begins: whether this is no transition but the step that begins an episode. [B, T].
      behaviour_log_probs: of the actions when they were chosen, in nats. [B, T].
      behaviour_values: of x_0 .. x_{T - 1} when the advantages were estimated; None, like the next
        two, where `update` estimates them itself, from the current values. [B, T].
      advantages: of the actions. [B, T].
      value_targets: what the values should be. [B, T].
      index: number of the row; None for 0..B-1. [B].
      weight: weight of the row in every average, 0 for a padding row; None for ones. [B].
    """

    observations: Float[Array, "B T+1 ..."]
    actions: Array
    rewards: Float[Array, "B T"]
    terminated: Array
    truncated: Array
    begins: Array
    behaviour_log_probs: Float[Array, "B T"]
    behaviour_values: Float[Array, "B T"] | None = None
    advantages: Float[Array, "B T"] | None = None
    value_targets: Float[Array, "B T"] | None = None
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None


class TransitionBatch(NamedTuple):
    """Transitions of any behaviour, and what a policy under evaluation would do next.

    Attributes:
      observations: s. [B, D].
      actions: a, the action that was taken at s; of size 0 where there is none to take. [B, A].
      next_observations: s'. [B, D].
      next_actions: the evaluated policy's action at s'; None where the agent computes it. [B, A].
      rewards: of the transition; None where the agent reads none. [B].
      terminated: whether the transition ended the episode by itself; None for never. [B].
      tasks: which policy of a family is evaluated, as a vector; None where there is one. [B, W].
      index: row of the transition in its data set; None for 0..B-1. [B].
      weight: weight of the transition in every average, 0 for a padding row; None for ones. [B].
    """

    observations: Float[Array, "B D"]
    actions: Float[Array, "B A"]
    next_observations: Float[Array, "B D"]
    next_actions: Float[Array, "B A"] | None = None
    rewards: Float[Array, " B"] | None = None
    terminated: Array | None = None
    tasks: Float[Array, "B W"] | None = None
    # The field's name is fixed for every batch; nobody looks for a value in a batch by tuple.index.
    index: Int[Array, " B"] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"] | None = None
