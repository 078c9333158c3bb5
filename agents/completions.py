"""What the loss of a group may read: several completions of a prompt, and what they earned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax import losses
from bellmax.agents import critics, language, updates
from bellmax.agents.agent import CompletionBatch, Metrics, Params


class CompletionLogProbs(NamedTuple):
    """Completions of each prompt; token log-probabilities are in nats and count by a mask.

    Attributes:
      log_probs: of the tokens under the policy. [B, G, T].
      behaviour_log_probs: under the policy that sampled them; constant. [B, G, T].
      reference_log_probs: under the reference; constant. [B, G, T].
      mask: 1 on the tokens of the completion. [B, G, T].
      rewards: of each completion; 0 where the batch has none. [B, G].
      values: of the prefix before each token, by the critic; None without one. [B, G, T].
      behaviour_values: the same when the batch was made; None for `values`. [B, G, T].
      greedy_rewards: of the most likely completion, or None. [B].
      answers: number of each completion's answer, or None. [B, G].
      correct_answers: number of the right one, or None. [B].
      answer_mask: 1 on the tokens of a known answer after the completion, or None. [B, G, T].
    """

    log_probs: Float[Array, "B G T"]
    behaviour_log_probs: Float[Array, "B G T"]
    reference_log_probs: Float[Array, "B G T"]
    mask: Float[Array, "B G T"]
    rewards: Float[Array, "B G"]
    values: Float[Array, "B G T"] | None = None
    behaviour_values: Float[Array, "B G T"] | None = None
    greedy_rewards: Float[Array, " B"] | None = None
    answers: Int[Array, "B G"] | None = None
    correct_answers: Int[Array, " B"] | None = None
    answer_mask: Float[Array, "B G T"] | None = None

    def sums(self, name: str) -> Float[Array, "B G"]:
        """Returns the log-probabilities of whole completions under one of three.

        Args:
          name: whose: "policy", "behaviour" or "reference".

        Returns:
          Nats. [B, G].
        """
        field = "log_probs" if name == "policy" else f"{name}_log_probs"
        return losses.sequence_log_probs(getattr(self, field), self.mask)

    def log_ratios(self, name: str) -> Float[Array, "B G"]:
        """Returns log-ratios of the policy to "behaviour" or "reference" on whole completions.

        Args:
          name: to whom.

        Returns:
          Nats. [B, G].
        """
        return self.sums("policy") - self.sums(name)


def token_log_probs(
    model: language.LanguageModel,
    params: Params,
    batch: CompletionBatch,
    *,
    chunk_size: int | None = None,
) -> Float[Array, "B G T"]:
    """Returns the log-probability of every token of a batch, as the agent computes it.

    A driver that takes several steps on one batch computes the reference's once, with this.

    Args:
      model: the language model as functions.
      params: its parameters.
      batch: the completions.
      chunk_size: tokens per chunk of the head, or None.

    Returns:
      Nats; what lies outside of the masks means nothing. [B, G, T].
    """
    rows = _rows(batch)
    found = language.completion_log_probs(model, params, rows, chunk_size=chunk_size)
    return found.reshape(batch.tokens.shape)


def token_values(
    critic: critics.Critic, value_params: Params, batch: CompletionBatch
) -> Float[Array, "B G T"]:
    """Returns the critic's value of the prefix before every token of a batch.

    Args:
      critic: the critic.
      value_params: its parameters.
      batch: the completions.

    Returns:
      Values in the unit of the rewards; 0 at the first token, which nothing comes before.
      [B, G, T].
    """
    found = critic.apply(value_params, _rows(batch)[:, :-1])
    return jnp.pad(found, ((0, 0), (1, 0))).reshape(batch.tokens.shape)


def _rows(batch: CompletionBatch) -> Int[Array, "R T"]:
    """The completions one a row, such that any network can read them."""
    shape = batch.tokens.shape
    counted = jnp.asarray(batch.mask) != 0
    if batch.answer_mask is not None:
        counted = counted | (jnp.asarray(batch.answer_mask) != 0)
    weight = None if batch.weight is None else jnp.repeat(batch.weight, shape[1])
    return language.without_padding(
        batch.tokens.reshape(-1, shape[-1]), counted.reshape(-1, shape[-1]), weight
    )


def check(batch: CompletionBatch) -> None:
    """Refuses a batch whose arrays do not belong together.

    Args:
      batch: the completions.

    Raises:
      ValueError: a field's shape does not fit `tokens`.
    """
    shape = jnp.shape(batch.tokens)
    if len(shape) != 3:
        raise ValueError(f"batch.tokens must be [B, G, T], got shape {shape}.")
    per_token = ("mask", "behaviour_log_probs", "reference_log_probs", "behaviour_values")
    expected = {
        **dict.fromkeys((*per_token, "answer_mask"), shape),
        **dict.fromkeys(("rewards", "answers"), shape[:2]),
        **dict.fromkeys(("greedy_rewards", "correct_answers", "index", "weight"), shape[:1]),
    }
    for name, wanted in expected.items():
        value = getattr(batch, name)
        if value is not None and jnp.shape(value) != wanted:
            raise ValueError(f"batch.{name} must have shape {wanted}, got {jnp.shape(value)}.")


def log_probs(
    model: language.LanguageModel,
    critic: critics.Critic | None,
    params: Params,
    value_params: Params,
    reference_params: Params,
    batch: CompletionBatch,
    *,
    chunk_size: int | None = None,
) -> CompletionLogProbs:
    """Returns everything that the loss of a group may read.

    What a loss does not read is not computed once it is compiled.

    Args:
      model: policy and reference as functions of their parameters.
      critic: the critic, or None.
      params: the policy's parameters.
      value_params: the critic's.
      reference_params: the reference's; not read where the batch has its log-probabilities.
      batch: the completions.
      chunk_size: tokens per chunk of the head, or None.

    Returns:
      Log-probabilities and values; those of behaviour and reference are constant. A row of weight 0
      is all 0.
    """
    reference = batch.reference_log_probs
    if reference is None:
        reference = token_log_probs(model, reference_params, batch, chunk_size=chunk_size)
    values = None if critic is None else token_values(critic, value_params, batch)
    as_masks = [
        None if mask is None else (jnp.asarray(mask) != 0).astype(jnp.float32)
        for mask in (batch.mask, batch.answer_mask)
    ]
    assert as_masks[0] is not None
    counted = as_masks[0] > 0 if as_masks[1] is None else as_masks[0] + as_masks[1] > 0

    # Padding may hold anything, and a loss may take its exponential.
    def kept(array):
        return jnp.where(counted, array, 0.0)

    rewards = batch.rewards
    if rewards is None:
        rewards = jnp.zeros(batch.tokens.shape[:2], jnp.float32)
    group = CompletionLogProbs(
        log_probs=kept(token_log_probs(model, params, batch, chunk_size=chunk_size)),
        behaviour_log_probs=kept(jax.lax.stop_gradient(batch.behaviour_log_probs)),
        reference_log_probs=kept(jax.lax.stop_gradient(reference)),
        mask=as_masks[0],
        rewards=rewards,
        values=None if values is None else kept(values),
        behaviour_values=None if batch.behaviour_values is None else kept(batch.behaviour_values),
        greedy_rewards=batch.greedy_rewards,
        answers=batch.answers,
        correct_answers=batch.correct_answers,
        answer_mask=as_masks[1],
    )
    return group if batch.weight is None else updates.where_counted(group, batch.weight)


def diagnostics(group: CompletionLogProbs) -> Metrics:
    """Returns what users watch, one value a prompt.

    Args:
      group: the completions.

    Returns:
      Arrays [B] by name, means over the group: `rewards/mean`, `rewards/best`, `kl/reference` and
      `kl/behaviour` (log-ratios of whole completions, nats: estimates of the divergences where the
      policy has sampled them), `entropy` (minus the log-probability of a token, nats, likewise) and
      `lengths/mean` (tokens).
    """
    policy, behaviour, reference = (
        group.sums(name) for name in ("policy", "behaviour", "reference")
    )
    lengths = group.mask.sum(axis=-1)
    found = {
        "rewards/mean": group.rewards.mean(axis=-1),
        "rewards/best": group.rewards.max(axis=-1),
        "kl/reference": (policy - reference).mean(axis=-1),
        "kl/behaviour": (policy - behaviour).mean(axis=-1),
        "entropy": (-policy / jnp.maximum(lengths, 1)).mean(axis=-1),
        "lengths/mean": lengths.mean(axis=-1),
    }
    return jax.lax.stop_gradient(found)
