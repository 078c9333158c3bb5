"""What policies on token tasks are measured by: success, alone and of several, votes, distance."""

import functools
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import (
    CompletionBatch,
    Params,
    completion_losses,
    completions,
    language,
    sampling,
)
from bellmax.envs.token_longform import LongFormTask
from bellmax.envs.token_tasks import TokenProblem, TokenTask
from bellmax.experiments import resharding, step_program, task_data, task_rollouts
from bellmax.experiments.task_config import TrainConfig
from bellmax.experiments.text_tasks import TextTask


class Evaluation(Protocol):
    """Measures policies."""

    def __call__(self, params: Params, reference: Params) -> Mapping[str, float]:
        """Returns the measures of a policy.

        Args:
          params: the policy's.
          reference: of the policy that distance is taken from.
        """
        ...

    def completions(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the first completion of each problem.

        Args:
          params: the policy's.

        Returns:
          Tokens and mask, [M, N] each, and how right it is, [M].
        """
        ...


def make(
    model: language.LanguageModel,
    task: task_data.AnyTask,
    problems: TokenProblem,
    train: TrainConfig,
    key: PRNGKeyArray,
    mesh: Mesh,
    *,
    chunk_size: int | None = None,
) -> Evaluation:
    """Returns the evaluation that a task allows.

    Args:
      model: the policy as functions.
      task: the task.
      problems: that nobody trains on. [M, ...].
      train: sizes.
      key: randomness of the samples; the same at every evaluation.
      mesh: the devices.
      chunk_size: tokens per chunk of the head, where answers are checked; None for all at once.
    """
    if isinstance(task, LongFormTask):
        return LikelihoodEvaluation(model, task, problems, train, key, mesh)
    return CheckedEvaluation(model, task, problems, train, key, mesh, chunk_size=chunk_size)


class CheckedEvaluation:
    """Samples completions of the same held-out problems, with the same randomness every time.

    Args:
      model: the policy as functions.
      task: the task.
      problems: that nobody trains on. [M, ...].
      train: sizes.
      key: randomness of the samples.
      mesh: the devices; every process gets all measures.
      chunk_size: tokens per chunk of the head, or None.
    """

    def __init__(
        self,
        model: language.LanguageModel,
        task: TokenTask | TextTask,
        problems: TokenProblem,
        train: TrainConfig,
        key: PRNGKeyArray,
        mesh: Mesh,
        *,
        chunk_size: int | None = None,
    ):
        self._problems, self._size = problems, train.evaluation_samples
        self._correct = np.asarray(jax.vmap(task.correct_answer)(problems))
        index = jnp.arange(len(problems.prompt))
        sample = functools.partial(
            task_rollouts.generate,
            model,
            key=key,
            group_size=train.evaluation_samples,
            max_new_tokens=task.max_new_tokens,
            stop_token=task.end_token,
            temperature=train.temperature,
        )

        everywhere = NamedSharding(mesh, PartitionSpec())

        @functools.partial(step_program.jit_rows, mesh=mesh, out_shardings=everywhere)
        def measure(params: Params, reference: Params):
            rows, numbers = resharding.spread_rows(mesh, (problems, index))
            completion = sample(
                resharding.to_generation(mesh, params), problems=rows, index=numbers
            )
            checked = task_rollouts.check(task, problems, completion)
            batch = task_rollouts.as_batch(
                problems,
                completion,
                group_size=train.evaluation_samples,
                index=index,
                weight=jnp.ones(len(index)),
            )
            others = completions.token_log_probs(model, reference, batch, chunk_size=chunk_size)
            ratios = batch.behaviour_log_probs - others
            divergences = losses.sequence_log_probs(ratios, batch.mask)
            lengths = jnp.sum(batch.mask, axis=-1)
            entropy = -losses.sequence_log_probs(
                batch.behaviour_log_probs, batch.mask, normalise=True
            )
            return checked.rewards, checked.answers, divergences, lengths, entropy, completion

        self._measure = measure

    def __call__(self, params: Params, reference: Params) -> Mapping[str, float]:
        """Returns the measures of a policy.

        Args:
          params: the policy's.
          reference: of the policy that distance is taken from.

        Returns:
          Means over problems: `pass@k` for k = 1, 2, 4 .. the number of samples (unbiased, with the
          standard error of pass@1 over problems), `majority@K` (ties at random), `answers` (share
          of completions that give an answer at all), `diversity` (different answers by sample that
          gives one), `kl/reference` (nats a completion), `lengths/mean` (tokens) and `entropy`
          (nats a token).
        """
        found = jax.device_get(self._measure(params, reference)[:5])
        rewards, answers, divergences, lengths, entropy = (np.asarray(leaf) for leaf in found)
        count, size = rewards.shape
        measures = {
            f"pass@{k}": float(np.mean(losses.pass_at_k(size, _solved(rewards), k)))
            for k in (2**power for power in range(size.bit_length()))
        }
        measures["pass@1/stderr"] = float(rewards.mean(axis=1).std(ddof=1) / np.sqrt(count))
        votes = completion_losses.as_votes(jnp.asarray(answers))
        right = losses.majority_at_k(votes, jnp.asarray(self._correct), k=size, ties="uniform")
        measures[f"majority@{size}"] = float(jnp.mean(right))
        given = answers >= 0
        distinct = [len(np.unique(row[there])) for row, there in zip(answers, given, strict=True)]
        measures["answers"] = float(given.mean())
        measures["diversity"] = float(np.sum(distinct) / max(given.sum(), 1))
        measures["kl/reference"] = float(divergences.mean())
        measures["lengths/mean"] = float(lengths.mean())
        measures["entropy"] = float(entropy.mean())
        return measures

    def completions(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the first completion of each problem.

        Args:
          params: the policy's.

        Returns:
          Tokens and mask, [M, N] each, and rewards, [M].
        """
        found = self._measure(params, params)
        return *_first(found[-1], self._size), np.asarray(found[0])[:, 0]


def _first(completion: sampling.Completion, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of the first completion of each problem, of so many. [M, N] each."""
    tokens, mask = (
        np.asarray(leaf).reshape(-1, size, leaf.shape[-1])[:, 0]
        for leaf in (completion.tokens, completion.mask)
    )
    return tokens, mask


def _solved(rewards: Float[np.ndarray, "M K"]) -> Int[Array, " M"]:
    return jnp.asarray((rewards > 0.5).sum(axis=1), jnp.int32)


class LikelihoodEvaluation:
    """How likely known answers are, at once and after the policy's own chains.

    Args:
      model: the policy as functions.
      task: the task.
      problems: that nobody trains on. [M, ...].
      train: sizes.
      key: randomness of the chains.
      mesh: the devices; every process gets all measures.
    """

    def __init__(
        self,
        model: language.LanguageModel,
        task: LongFormTask,
        problems: TokenProblem,
        train: TrainConfig,
        key: PRNGKeyArray,
        mesh: Mesh,
    ):
        self._size, self._entropy = train.evaluation_samples, task.entropy
        index, weight = jnp.arange(len(problems.prompt)), jnp.ones(len(problems.prompt))
        sample = functools.partial(
            task_rollouts.generate,
            model,
            key=key,
            group_size=train.evaluation_samples,
            max_new_tokens=task.max_chain,
            stop_token=task.marker,
            temperature=train.temperature,
        )

        def likelihood(params: Params, batch: CompletionBatch) -> Array:
            found = completions.token_log_probs(model, params, batch)
            assert batch.answer_mask is not None
            return losses.sequence_log_probs(found, batch.answer_mask)

        everywhere = NamedSharding(mesh, PartitionSpec())

        @functools.partial(step_program.jit_rows, mesh=mesh, out_shardings=everywhere)
        def measure(params: Params, reference: Params):
            rows, numbers = resharding.spread_rows(mesh, (problems, index))
            chains = sample(resharding.to_generation(mesh, params), problems=rows, index=numbers)
            batch = task_rollouts.as_batch(
                problems, chains, group_size=self._size, index=index, weight=weight
            )
            answered = task_rollouts.with_answers(task, problems, batch)
            others = completions.token_log_probs(model, reference, batch)
            ratios = losses.sequence_log_probs(batch.behaviour_log_probs - others, batch.mask)
            is_right = task_rollouts.each(task.chain_is_right, problems, chains)
            at_once = task_rollouts.with_answers(
                task, problems, task_rollouts.no_chains(problems, index=index, weight=weight)
            )
            found = (
                likelihood(params, answered),
                likelihood(params, at_once),
                is_right,
                answered.rewards,
                ratios,
                jnp.sum(batch.mask, axis=-1),
            )
            return found, chains

        self._measure = measure

    def __call__(self, params: Params, reference: Params) -> Mapping[str, float]:
        """Returns the measures of a policy.

        Args:
          params: the policy's.
          reference: of the policy that distance is taken from.

        Returns:
          Means over problems, in nats an answer: `answers/bound@1` (the log-likelihood after one
          chain), `answers/bound@K` (the bound of K chains together) with its standard error over
          problems, `answers/at_once` (without a chain) and `answers/best` (what no policy exceeds);
          `chains/right` (share that end in what the answer depends on), `chains/ended` (with the
          marker), `kl/reference` (nats a chain) and `lengths/mean` (tokens of a chain).
        """
        found = jax.device_get(self._measure(params, reference)[0])
        after, at_once, is_right, ended, divergences, lengths = found
        bound = np.asarray(losses.jepo_bound(jnp.asarray(after), multi_sample=True))
        return {
            "answers/bound@1": float(after.mean()),
            f"answers/bound@{self._size}": float(bound.mean()),
            "answers/stderr": float(bound.std(ddof=1) / np.sqrt(len(bound))),
            "answers/at_once": float(at_once.mean()),
            "answers/best": -self._entropy,
            "chains/right": float(is_right.mean()),
            "chains/ended": float(1 + ended.mean()),
            "kl/reference": float(divergences.mean()),
            "lengths/mean": float(lengths.mean()),
        }

    def completions(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the first chain of each problem.

        Args:
          params: the policy's.

        Returns:
          Tokens and mask, [M, N] each, and whether the chain is right, [M].
        """
        found, chains = self._measure(params, params)
        return *_first(chains, self._size), np.asarray(found[2])[:, 0]
