"""Policies against each other: exact where every completion can be listed, sampled elsewhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents import Params, PromptBatch, language, sampling
from bellmax.envs import cyclic_bench, gold_bench
from bellmax.experiments import gold, step_program
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.data import embedded
from bellmax.experiments.judging import Judge


class WinMatrix(NamedTuple):
    """Who beats whom, averaged over prompts.

    Attributes:
      mean: P(row beats column); 1/2 on the diagonal. [K, K].
      stderr: standard error over prompts. [K, K].
      exploitability: for each policy, the win rate over 1/2 of the best completion against it,
        found prompt by prompt; NaN where completions are sampled. [K].
    """

    mean: Float[np.ndarray, "K K"]
    stderr: Float[np.ndarray, "K K"]
    exploitability: Float[np.ndarray, " K"]


class Arena(Protocol):
    """Where policies meet."""

    def against_reference(self, params: Params) -> Mapping[str, float]:
        """Returns `win_rate` and its standard error over prompts, `kl/reference`, and more."""
        ...

    def matrix(self, policies: Sequence[Params]) -> WinMatrix:
        """Returns who beats whom."""
        ...


def _mean_and_stderr(values: Float[np.ndarray, "M ..."]) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


class ExactArena:
    """All completions of a bench's evaluation prompts, weighed by their probability.

    Args:
      bench: the bench.
      evaluator: lists its completions.
      reference: the reference's parameters.
    """

    def __init__(
        self, bench: embedded.EmbeddedData, evaluator: gold.GoldEvaluator, reference: Params
    ):
        self._evaluator = evaluator
        tokens, mask = jnp.asarray(evaluator.tokens), jnp.asarray(evaluator.mask)
        prompts = jnp.asarray(evaluator.prompts)
        # As a CPU does: an accelerator would round the inputs of its products.
        exactly = functools.partial(jnp.matmul, precision="highest")

        def table(prompt: Array, rewards: Array) -> Array:
            if bench.cyclic is not None:
                return cyclic_bench.preference_matrix(bench.cyclic, prompt, tokens, mask)
            return gold_bench.preference_probs(*jnp.meshgrid(rewards, rewards, indexing="ij"))

        def meet(laws: Array) -> tuple[Array, Array]:
            # One prompt's table at a time: it is the largest array of the run.
            def one(arrays):
                prompt, rewards, laws = arrays
                wins = exactly(table(prompt, rewards), laws.T)
                return exactly(laws, wins), jnp.max(wins, axis=0) - 0.5

            return jax.lax.map(one, (prompts, evaluator.rewards, laws))

        def wins_against(law: Array) -> Array:
            def one(arrays):
                prompt, rewards, law = arrays
                return exactly(table(prompt, rewards), law)

            return jax.lax.map(one, (prompts, evaluator.rewards, law))

        self._meet = jax.jit(meet)
        self._reference = evaluator.completion_log_probs(reference)
        self._wins = jax.jit(wins_against)(jnp.exp(self._reference))

    def against_reference(self, params: Params) -> Mapping[str, float]:
        """Returns exact figures: win rate, KL divergence, and the gold reward ("quality")."""
        log_probs = self._evaluator.completion_log_probs(params)
        exact = gold.score(self._evaluator, log_probs, self._reference)
        wins = np.asarray(jnp.sum(jnp.exp(log_probs) * self._wins, axis=-1), np.float64)
        mean, stderr = _mean_and_stderr(wins)
        return {
            "win_rate": float(mean),
            "win_rate_stderr": float(stderr),
            "kl/reference": exact.kl,
            "quality": exact.reward,
        }

    def matrix(self, policies: Sequence[Params]) -> WinMatrix:
        """Returns exact win rates; the standard errors are over prompts alone."""
        laws = [jnp.exp(self._evaluator.completion_log_probs(params)) for params in policies]
        wins, exploitability = jax.device_get(self._meet(jnp.stack(laws, axis=1)))
        mean, stderr = _mean_and_stderr(wins.astype(np.float64))
        return WinMatrix(mean, stderr, exploitability.mean(axis=0))


class SampledArena:
    """One completion of each held-out prompt and policy, decided by a judge.

    All policies sample with the same randomness, so that their differences are less noisy.

    Args:
      model: the policies as functions.
      batches: held-out prompts.
      judge: who decides.
      reference: the reference's parameters.
      generate: `(params, prompts, key) -> Completion`.
      key: randomness of all samples.
      mesh: the devices.
    """

    def __init__(
        self,
        model: language.LanguageModel,
        batches: Sequence[PromptBatch],
        judge: Judge,
        reference: Params,
        generate: Callable[..., sampling.Completion],
        key: Array,
        mesh: Mesh,
    ):
        self._batches, self._judge, self._model = batches, judge, model
        self._generate, self._keys = generate, jax.random.split(key)
        self._reference = reference
        self._decide = step_program.jit_rows(judge.preferences, mesh)
        self._log_probs = step_program.jit_rows(self._completion_log_probs, mesh)
        self._reference_completions = self._complete(reference, second=True)

    def _completion_log_probs(self, params, prompts, completion):
        tokens, mask = sampling.join(prompts.tokens, completion, prompt_mask=prompts.mask)
        token_log_probs = language.completion_log_probs(self._model, params, tokens)
        return losses.sequence_log_probs(token_log_probs, mask)

    def _complete(self, params: Params, *, second: bool = False) -> list[sampling.Completion]:
        key = self._keys[int(second)]
        return [self._generate(params, prompts, key) for prompts in self._batches]

    def _rows(self, function, *columns) -> Float[np.ndarray, " M"]:
        parts = []
        for prompts, *row in zip(self._batches, *columns, strict=True):
            values, weight = mesh_lib.gather((function(prompts, *row), prompts.weight))
            parts.append(values.astype(np.float64)[weight > 0])
        return np.concatenate(parts)

    def _wins(self, first, second) -> Float[np.ndarray, " M"]:
        return self._rows(
            lambda prompts, y, other: self._decide(self._judge.params, prompts, y, other),
            first,
            second,
        )

    def against_reference(self, params: Params) -> Mapping[str, float]:
        """Returns estimates from one completion a prompt: win rate, KL divergence, tokens."""
        completions = self._complete(params)
        mean, stderr = _mean_and_stderr(self._wins(completions, self._reference_completions))
        ratios = self._rows(
            lambda prompts, y: (
                self._log_probs(params, prompts, y) - self._log_probs(self._reference, prompts, y)
            ),
            completions,
        )
        lengths = self._rows(lambda prompts, y: y.mask.sum(axis=-1), completions)
        return {
            "win_rate": float(mean),
            "win_rate_stderr": float(stderr),
            "kl/reference": float(ratios.mean()),
            "length": float(lengths.mean()),
        }

    def matrix(self, policies: Sequence[Params]) -> WinMatrix:
        """Returns estimated win rates; the columns' completions are independent of the rows'."""
        rows = [self._complete(params) for params in policies]
        columns = [self._complete(params, second=True) for params in policies]
        size = len(policies)
        mean, stderr = np.full((size, size), 0.5), np.zeros((size, size))
        for i in range(size):
            for j in range(i + 1, size):
                # Both ways round: the two are one number, estimated twice.
                wins = (self._wins(rows[i], columns[j]) + 1 - self._wins(rows[j], columns[i])) / 2
                mean[i, j], stderr[i, j] = _mean_and_stderr(wins)
                mean[j, i], stderr[j, i] = 1 - mean[i, j], stderr[i, j]
        return WinMatrix(mean, stderr, np.full(size, np.nan))
