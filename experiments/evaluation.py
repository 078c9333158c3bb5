"""Held-out evaluation of a preference policy: pairs, likelihood, distance to the reference."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents import Params, PreferenceBatch, language, preference, updates
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments import step_program
from bellmax.experiments.data import pipeline


def reference_log_probs(
    model: language.LanguageModel,
    params: Params,
    batches: Sequence[PreferenceBatch],
    num_pairs: int,
    *,
    mesh: Mesh,
    chunk_size: int | None = None,
) -> pipeline.ReferenceLogProbs:
    """Computes the log-probabilities of all completions once.

    Args:
      model: the reference as functions.
      params: its parameters, on the mesh.
      batches: one ordered pass over the pairs, this process's rows.
      num_pairs: pairs N of the set.
      mesh: the devices.
      chunk_size: tokens per chunk of the head, or None.

    Returns:
      Log-probabilities of chosen and of rejected completions, nats, by row. [N] each.
    """

    @functools.partial(step_program.jit_rows, mesh=mesh)
    def of_batch(params, batch):
        return preference.sequence_log_probs(model, params, batch, chunk_size=chunk_size)

    results = np.full((2, num_pairs), np.nan, np.float32)
    for batch in batches:
        placed = mesh_lib.place_batch(mesh, batch)
        values = of_batch(params, placed)
        # Every process keeps the whole table: it is two numbers a pair.
        index, weight, values = mesh_lib.gather((placed.index, placed.weight, jnp.stack(values)))
        counted = weight > 0
        results[:, index[counted]] = values[:, counted]
    return results[0], results[1]


class PairScore(NamedTuple):
    """Averages over held-out pairs.

    Attributes:
      accuracy: share of pairs that the implicit reward orders as labelled; ties count one half.
      accuracy_stderr: its standard error over pairs.
      margin: mean margin of implicit rewards (scaled by the loss's beta).
      log_prob_accuracy: share of pairs that the policy's own log-probability orders as labelled.
      token_log_prob_accuracy: the same with log-probabilities averaged over tokens.
      nll_per_token: negative log-likelihood of chosen completions, nats a token.
      kl_per_completion: KL(policy, reference) of next-token laws, summed over the tokens of
        completions of the data: exact at each prefix, and along the data's prefixes,
        not the policy's. Nats.
    """

    accuracy: float
    accuracy_stderr: float
    margin: float
    log_prob_accuracy: float
    token_log_prob_accuracy: float
    nll_per_token: float
    kl_per_completion: float


def make_pair_evaluation(
    model: language.LanguageModel, *, mesh: Mesh, chunk_size: int | None
) -> Callable[[Params, Params, Sequence[PreferenceBatch], float], PairScore]:
    """Returns a function that scores a policy on held-out pairs; compiled once a shape.

    Args:
      model: policy and reference as functions.
      mesh: the devices.
      chunk_size: tokens per chunk of the head; where it is set, the KL is not computed (it needs
        all logits) and is NaN.

    Returns:
      `(params, reference_params, batches, beta) -> PairScore`.
    """

    @functools.partial(step_program.jit_rows, mesh=mesh)
    def sums(params, reference_params, batch: PreferenceBatch, beta):
        pair = preference.pair_log_probs(
            model, params, reference_params, batch, chunk_size=chunk_size
        )
        watched = preference.diagnostics(pair, reward_scale=beta)
        weight = updates.row_weights(batch.weight, batch.chosen_tokens.shape[0])
        if chunk_size is None:
            kl = _prefix_kl(model, params, reference_params, batch)
        else:
            kl = jnp.full_like(pair.chosen_log_probs, jnp.nan)
        rows = {
            "accuracy": watched["rewards/accuracy"],
            "accuracy_squared": jnp.square(watched["rewards/accuracy"]),
            "margin": watched["rewards/margin"],
            "log_prob_accuracy": losses.preference_accuracy(
                pair.chosen_log_probs, pair.rejected_log_probs
            ),
            "token_log_prob_accuracy": losses.preference_accuracy(
                pair.chosen_log_probs / pair.chosen_lengths,
                pair.rejected_log_probs / pair.rejected_lengths,
            ),
            "nll": -pair.chosen_log_probs,
            "tokens": pair.chosen_lengths,
            "kl": kl,
            "count": jnp.ones_like(kl),
        }
        return {k: jnp.sum(jnp.where(weight > 0, v, 0.0) * weight) for k, v in rows.items()}

    def evaluate(params, reference_params, batches, beta):
        total: dict[str, float] = {}
        for batch in batches:
            placed = mesh_lib.place_batch(mesh, batch)
            for name, value in jax.device_get(sums(params, reference_params, placed, beta)).items():
                total[name] = total.get(name, 0.0) + float(value)
        count = total["count"]
        mean = {name: value / count for name, value in total.items()}
        variance = max(mean["accuracy_squared"] - mean["accuracy"] ** 2, 0.0)
        return PairScore(
            accuracy=mean["accuracy"],
            accuracy_stderr=float(np.sqrt(variance / count)),
            margin=mean["margin"],
            log_prob_accuracy=mean["log_prob_accuracy"],
            token_log_prob_accuracy=mean["token_log_prob_accuracy"],
            nll_per_token=total["nll"] / total["tokens"],
            kl_per_completion=mean["kl"],
        )

    return evaluate


def _prefix_kl(
    model: language.LanguageModel, params: Params, reference_params: Params, batch: PreferenceBatch
) -> Float[Array, " B"]:
    """Mean over the two completions of the summed KL of next-token laws. [B]."""
    tokens = jnp.concatenate([batch.chosen_tokens, batch.rejected_tokens])[:, :-1]
    mask = jnp.concatenate([batch.chosen_mask, batch.rejected_mask])[:, 1:]
    log_probs = jax.nn.log_softmax(model.apply(params, tokens))
    reference = jax.nn.log_softmax(model.apply(reference_params, tokens))
    per_token = jnp.sum(jnp.exp(log_probs) * (log_probs - reference), axis=-1)
    chosen, rejected = jnp.split(losses.sequence_log_probs(per_token, mask), 2)
    return (chosen + rejected) / 2
