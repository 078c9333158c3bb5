"""Supervised fine-tuning: maximum likelihood of completions given their prompts.

The warm start of every preference run, and a baseline in its own right.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import language, updates
from bellmax.agents.agent import Agent, Metrics, Params, SupervisedBatch


class State(NamedTuple):
    """All that changes.

    Attributes:
      params: the policy's parameters.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def init(
    key: PRNGKeyArray,
    example_batch: SupervisedBatch | None = None,
    *,
    params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from fresh ones.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: parameters to copy; None for fresh ones.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation.

    Returns:
      The first state.
    """
    del example_batch
    start: Params = init_params(key) if params is None else updates.copy_tree(params)
    return State(start, optimizer.init(start), jnp.zeros((), jnp.int32))


def update(
    state: State,
    batch: SupervisedBatch,
    key: PRNGKeyArray | None = None,
    *,
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the mean negative log-likelihood of the counted tokens.

    The mean is over tokens, not over completions: a long completion weighs as much as its length.

    Args:
      state: the current state; may be donated.
      batch: completions to imitate.
      key: not needed, and there for the signature that all agents share.
      model: the policy as functions.
      optimizer: any optax transformation.
      chunk_size: tokens per chunk of the head, or None; see `language.completion_log_probs`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss` (nats a token), `grad_norm`, `updates/skipped` and
      `log_probs/completion` (nats a token).
    """
    del key

    def objective(params, batch):
        tokens = language.without_padding(batch.tokens, batch.mask, batch.weight)
        token_log_probs = language.completion_log_probs(
            model, params, tokens, chunk_size=chunk_size
        )
        mask = jnp.asarray(batch.mask, jnp.float32)
        weight = updates.row_weights(batch.weight, mask.shape[0])
        log_likelihood = losses.sequence_log_probs(token_log_probs, mask)
        total = updates.weighted_sum(log_likelihood, weight)
        count = jnp.sum(weight * mask.sum(axis=-1))
        return updates.Sums(-total, count, {"log_probs/completion": total})

    params, opt_state, metrics = updates.gradient_step(
        objective,
        state.params,
        state.opt_state,
        optimizer=optimizer,
        axis_name=axis_name,
        batch=batch,
        accumulate_steps=accumulate_steps,
    )
    return State(params, opt_state, state.step + 1), metrics


def make(
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    init_params: Callable[[PRNGKeyArray], Params],
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of supervised fine-tuning.

    Args:
      model: the policy as functions.
      optimizer: any optax transformation.
      init_params: makes fresh parameters from a key.
      chunk_size: tokens per chunk of the head, or None to hold all logits at once.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; it has no `act`.

    Raises:
      ValueError: the model cannot serve `chunk_size`.
    """
    language.check_chunking(model, chunk_size)
    return Agent(
        init=functools.partial(init, init_params=init_params, optimizer=optimizer),
        act=None,
        update=functools.partial(
            update,
            model=model,
            optimizer=optimizer,
            chunk_size=chunk_size,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
