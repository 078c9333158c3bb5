"""Completions of problems, rewarded: the batches that a method learns from."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import CompletionBatch, Params, language, sampling
from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.experiments import task_data
from bellmax.experiments.text_tasks import TextTask


class Sampled(NamedTuple):
    """Several completions of each problem.

    Attributes:
      completion: rows of problem after problem, [B * G, N].
      rewards: [B, G].
      answers: numbers of their answers, -1 for none. [B, G].
    """

    completion: sampling.Completion
    rewards: Float[Array, "B G"]
    answers: Int[Array, "B G"]


def repeated(array: Array, group_size: int) -> Array:
    """Returns every row several times in a row. [B, ...] to [B * G, ...]."""
    return jnp.repeat(array, group_size, axis=0)


def generate(
    model: language.LanguageModel,
    params: Params,
    problems: TokenProblem,
    index: Int[Array, " B"],
    key: PRNGKeyArray,
    *,
    group_size: int,
    max_new_tokens: int,
    stop_token: int,
    temperature: float,
) -> sampling.Completion:
    """Samples completions of problems; a completion's number decides its randomness.

    Args:
      model: the policy as functions.
      params: its parameters.
      problems: [B, ...].
      index: number of each problem in the whole batch. [B].
      key: randomness; consumed.
      group_size: completions G of each.
      max_new_tokens: most tokens of a completion.
      stop_token: id that ends one.
      temperature: divides the logits; 0 for the most likely tokens.

    Returns:
      The completions, [B * G, N].
    """
    numbers = (index[:, None] * group_size + jnp.arange(group_size)).reshape(-1)
    return sampling.generate(
        model,
        params,
        repeated(problems.prompt, group_size),
        key,
        prompt_mask=repeated(problems.prompt_mask, group_size),
        index=numbers,
        max_new_tokens=max_new_tokens,
        stop_tokens=(stop_token,),
        temperature=temperature,
    )


def check(
    task: TokenTask | TextTask, problems: TokenProblem, completion: sampling.Completion
) -> Sampled:
    """Returns completions with their rewards and answers.

    Args:
      task: the task.
      problems: [B, ...].
      completion: [B * G, N].
    """
    if isinstance(task, TextTask):
        # Answers are numbered group by group, on the host.
        answers = task.answers(problems, *_of_each(problems, completion))
        return Sampled(completion, (answers == 0).astype(jnp.float32), answers)
    return Sampled(
        completion,
        each(task.verify, problems, completion),
        each(task.answer, problems, completion),
    )


def each(
    function: Callable[[TokenProblem, Array, Array], Array],
    problems: TokenProblem,
    completion: sampling.Completion,
) -> Array:
    """Returns what a function of a problem and a completion says of each completion.

    Args:
      function: `(problem, tokens, mask) -> number`.
      problems: [B, ...].
      completion: [B * G, N].

    Returns:
      Numbers. [B, G].
    """
    tokens, mask = _of_each(problems, completion)
    return jax.vmap(jax.vmap(function, in_axes=(None, 0, 0)))(problems, tokens, mask)


def _of_each(problems: TokenProblem, completion: sampling.Completion) -> tuple[Array, Array]:
    """Tokens and mask of each problem's completions. [B, G, N] each."""
    count = problems.prompt.shape[0]
    tokens, mask = (
        leaf.reshape(count, -1, leaf.shape[-1]) for leaf in (completion.tokens, completion.mask)
    )
    return tokens, mask


def _grouped(array: Array, group_size: int) -> Array:
    return array.reshape(-1, group_size, *array.shape[1:])


def as_batch(
    problems: TokenProblem,
    completion: sampling.Completion,
    *,
    group_size: int,
    index: Int[Array, " B"],
    weight: Float[Array, " B"],
) -> CompletionBatch:
    """Returns prompts and completions as the agent reads them, without rewards.

    The behaviour's log-probabilities are the sampled model's at temperature 1.

    Args:
      problems: [B, ...].
      completion: [B * G, N].
      group_size: G.
      index: number of each problem in the whole batch. [B].
      weight: of each problem. [B].
    """
    prompts, prompt_mask = (
        repeated(leaf, group_size) for leaf in (problems.prompt, problems.prompt_mask)
    )
    tokens, mask = sampling.join(prompts, completion, prompt_mask=prompt_mask)
    lengths = jnp.sum(prompt_mask != 0, axis=1, keepdims=True)
    places = jnp.clip(jnp.arange(tokens.shape[1]) - lengths, 0, completion.tokens.shape[1] - 1)
    log_probs = jnp.take_along_axis(completion.log_probs, places, axis=1) * mask
    return CompletionBatch(
        tokens=_grouped(tokens, group_size),
        mask=_grouped(mask, group_size),
        behaviour_log_probs=_grouped(log_probs, group_size),
        index=index,
        weight=weight,
    )


def with_answers(
    task: task_data.Task, problems: TokenProblem, batch: CompletionBatch
) -> CompletionBatch:
    """Returns chains with the known answer behind each.

    A chain that has not come to its marker is given one, which nothing is learnt from; its reward
    is -1, that of the others 0.

    Args:
      task: the task; it has a marker.
      problems: [B, ...].
      batch: chains, sampled until the marker.

    Returns:
      The batch, of rows that are longer by a marker and an answer.
    """
    assert task.marker is not None
    marker = task.marker
    answers, answer_masks = jax.vmap(task.reference)(problems)
    lengths = jnp.sum(problems.prompt_mask != 0, axis=1)

    def one(tokens, mask, log_probs, length, answer, answer_mask):
        size = tokens.shape[0]
        places = jnp.arange(size)
        last = jnp.max(jnp.where(mask != 0, places, -1))
        ended = (last >= 0) & (tokens[jnp.maximum(last, 0)] == marker)
        there = (places < length) | (mask != 0)
        row, kept = token_tasks.concatenate(
            [(tokens, there), (marker, ~ended), (answer, answer_mask != 0)],
            size + 1 + answer.shape[0],
        )
        behind = jnp.arange(row.shape[0]) >= jnp.sum(there) + jnp.where(ended, 0, 1)

        def padded(array):
            return jnp.pad(array, (0, row.shape[0] - size))

        reward = jnp.where(ended, 0.0, -1.0)
        return row, padded(mask), padded(log_probs), kept * behind, reward

    rows = jax.vmap(jax.vmap(one, in_axes=(0, 0, 0, None, None, None)))(
        batch.tokens, batch.mask, batch.behaviour_log_probs, lengths, answers, answer_masks
    )
    tokens, mask, log_probs, answer_mask, rewards = rows
    return batch._replace(
        tokens=tokens,
        mask=mask,
        behaviour_log_probs=log_probs,
        answer_mask=answer_mask,
        rewards=rewards,
    )


def no_chains(
    problems: TokenProblem, *, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> CompletionBatch:
    """Returns one empty chain for each problem, which the answer follows at once.

    Args:
      problems: [B, ...].
      index: number of each problem in the whole batch. [B].
      weight: of each problem. [B].

    Returns:
      The batch, of groups of one.
    """
    tokens = problems.prompt[:, None]
    nothing = jnp.zeros(tokens.shape, jnp.float32)
    return CompletionBatch(tokens, nothing, nothing, index=index, weight=weight)
