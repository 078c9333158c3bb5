"""Offline preference optimisation: a policy, a frozen reference, and any loss of a pair.

The loss is a function of `PairLogProbs`. Losses of the two log-ratios, such as every member of the
GPO family, are wrapped by `on_log_ratios`; a loss that reads more of the pair is a function of it:

    gpo = on_log_ratios(functools.partial(losses.gpo_loss, convex_fn=losses.hinge, beta=0.1))
    rpo = lambda pair: losses.rpo_loss(
        pair.chosen_log_ratios, pair.rejected_log_ratios, pair.chosen_log_probs, beta=0.1,
        eta=0.005)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import language, updates
from bellmax.agents.agent import Agent, Metrics, Params, PreferenceBatch


class State(NamedTuple):
    """All that changes, and the frozen reference beside it.

    Attributes:
      params: the policy's parameters.
      reference_params: the reference's, or `()` where its log-probabilities come in the batch.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    reference_params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class PairLogProbs(NamedTuple):
    """What a pairwise loss may read: log-probabilities of whole completions, nats, [B].

    Attributes:
      chosen_log_probs: of the chosen completion under the policy, summed over its tokens.
      rejected_log_probs: of the rejected completion under the policy.
      chosen_reference_log_probs: of the chosen completion under the reference; gradient-stopped.
      rejected_reference_log_probs: of the rejected completion under the reference;
        gradient-stopped.
      chosen_lengths: counted tokens of the chosen completion, at least 1.
      rejected_lengths: counted tokens of the rejected completion, at least 1.
    """

    chosen_log_probs: Float[Array, " B"]
    rejected_log_probs: Float[Array, " B"]
    chosen_reference_log_probs: Float[Array, " B"]
    rejected_reference_log_probs: Float[Array, " B"]
    chosen_lengths: Float[Array, " B"]
    rejected_lengths: Float[Array, " B"]

    @property
    def chosen_log_ratios(self) -> Float[Array, " B"]:
        """Log-ratio of policy to reference on the chosen completion."""
        return self.chosen_log_probs - self.chosen_reference_log_probs

    @property
    def rejected_log_ratios(self) -> Float[Array, " B"]:
        """Log-ratio of policy to reference on the rejected completion."""
        return self.rejected_log_probs - self.rejected_reference_log_probs


PairLoss = Callable[[PairLogProbs], Float[Array, " B"]]


def on_log_ratios(loss_fn: Callable[[Array, Array], Array]) -> PairLoss:
    """Makes a loss of two log-ratios, such as `losses.dpo_loss` with its `beta`, a loss of a pair.

    Args:
      loss_fn: `(chosen_log_ratios[B], rejected_log_ratios[B]) -> [B]`.

    Returns:
      The same loss as a function of `PairLogProbs`.
    """
    return lambda pair: loss_fn(pair.chosen_log_ratios, pair.rejected_log_ratios)


def sequence_log_probs(
    model: language.LanguageModel,
    params: Params,
    batch: PreferenceBatch,
    *,
    chunk_size: int | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns the log-probabilities of chosen and rejected completions, in one forward pass.

    This is also how reference log-probabilities are computed once per data set.

    Args:
      model: the language model.
      params: its parameters.
      batch: the pairs; only tokens, masks and weights are read.
      chunk_size: tokens per chunk of the head, or None to hold all logits at once.

    Returns:
      Two arrays [B], in nats, summed over each completion's tokens.
    """
    tokens = jnp.concatenate([batch.chosen_tokens, batch.rejected_tokens])
    mask = jnp.concatenate([batch.chosen_mask, batch.rejected_mask])
    weight = None if batch.weight is None else jnp.concatenate([batch.weight, batch.weight])
    tokens = language.without_padding(tokens, mask, weight)
    token_log_probs = language.completion_log_probs(model, params, tokens, chunk_size=chunk_size)
    chosen, rejected = jnp.split(losses.sequence_log_probs(token_log_probs, mask), 2)
    return chosen, rejected


def pair_log_probs(
    model: language.LanguageModel,
    params: Params,
    reference_params: Params,
    batch: PreferenceBatch,
    *,
    chunk_size: int | None = None,
) -> PairLogProbs:
    """Returns everything that a pairwise loss may read of a batch.

    Args:
      model: policy and reference as functions of their parameters.
      params: the policy's parameters.
      reference_params: the reference's, or `()` to take its log-probabilities from the batch.
      batch: the pairs.
      chunk_size: tokens per chunk of the head, or None.

    Returns:
      The pair's log-probabilities and lengths; those of the reference are gradient-stopped.

    Raises:
      ValueError: there are neither reference parameters nor reference log-probabilities.
    """
    chosen, rejected = sequence_log_probs(model, params, batch, chunk_size=chunk_size)
    if jax.tree.leaves(reference_params):
        reference = sequence_log_probs(model, reference_params, batch, chunk_size=chunk_size)
    elif batch.chosen_reference_log_probs is None or batch.rejected_reference_log_probs is None:
        raise ValueError(
            "batch must hold chosen_reference_log_probs and rejected_reference_log_probs when the "
            "state holds no reference parameters (live_reference=False)."
        )
    else:
        reference = (batch.chosen_reference_log_probs, batch.rejected_reference_log_probs)
    chosen_reference, rejected_reference = jax.lax.stop_gradient(reference)
    return PairLogProbs(
        chosen_log_probs=chosen,
        rejected_log_probs=rejected,
        chosen_reference_log_probs=chosen_reference,
        rejected_reference_log_probs=rejected_reference,
        chosen_lengths=_lengths(batch.chosen_mask),
        rejected_lengths=_lengths(batch.rejected_mask),
    )


def _lengths(mask: Array) -> Float[Array, " B"]:
    return jnp.maximum(jnp.sum(jnp.asarray(mask, jnp.float32), axis=-1), 1.0)


def diagnostics(pair: PairLogProbs, *, reward_scale: float) -> Metrics:
    """Returns what users watch, one value per pair: rewards, margin, accuracy, log-probabilities.

    Args:
      pair: the pair's log-probabilities.
      reward_scale: multiplies log-ratios into implicit rewards; the loss's beta.

    Returns:
      Arrays [B] by metric name.
    """
    ratios = (pair.chosen_log_ratios, pair.rejected_log_ratios)
    return jax.lax.stop_gradient(
        {
            "rewards/chosen": losses.implicit_rewards(ratios[0], beta=reward_scale),
            "rewards/rejected": losses.implicit_rewards(ratios[1], beta=reward_scale),
            "rewards/margin": losses.preference_margin(*ratios, beta=reward_scale),
            "rewards/accuracy": losses.preference_accuracy(*ratios),
            "log_probs/chosen": pair.chosen_log_probs,
            "log_probs/rejected": pair.rejected_log_probs,
        }
    )


def init(
    key: PRNGKeyArray,
    example_batch: PreferenceBatch | None = None,
    *,
    params: Params | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
    live_reference: bool,
) -> State:
    """Starts from given parameters, or from fresh ones; the reference is a copy unless it is given.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the policy's parameters, copied; None for fresh ones.
      reference_params: the reference's, copied; None for a copy of the policy's.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation.
      live_reference: whether the state holds the reference at all.

    Returns:
      The first state. `reference_params` is `()` where reference log-probabilities come in the
      batch.
    """
    del example_batch
    start: Params = init_params(key) if params is None else updates.copy_tree(params)
    if live_reference:
        reference = updates.copy_tree(start if reference_params is None else reference_params)
    else:
        reference = ()
    return State(start, reference, optimizer.init(start), jnp.zeros((), jnp.int32))


def update(
    state: State,
    batch: PreferenceBatch,
    key: PRNGKeyArray | None = None,
    *,
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    loss_fn: PairLoss,
    reward_scale: float = 1.0,
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean of a pairwise loss.

    Args:
      state: the current state; may be donated.
      batch: the pairs.
      key: not needed (the losses are deterministic), and there for the signature that all agents
        share.
      model: policy and reference as functions.
      optimizer: any optax transformation.
      loss_fn: the loss of each pair, [B].
      reward_scale: multiplies log-ratios into implicit rewards in the metrics; the loss's beta.
      chunk_size: tokens per chunk of the head, or None.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm`, `updates/skipped`, and the averages of
      `diagnostics`.
    """
    del key

    def objective(params, batch):
        pair = pair_log_probs(model, params, state.reference_params, batch, chunk_size=chunk_size)
        weight = updates.row_weights(batch.weight, batch.chosen_tokens.shape[0])
        # Before the loss, not after: the gradient of NaN times 0 is NaN.
        pair = jax.tree.map(lambda values: jnp.where(weight > 0, values, 1.0), pair)
        watched = diagnostics(pair, reward_scale=reward_scale)
        return updates.weighted_sums(loss_fn(pair), weight, watched)

    params, opt_state, metrics = updates.gradient_step(
        objective,
        state.params,
        state.opt_state,
        optimizer=optimizer,
        axis_name=axis_name,
        batch=batch,
        accumulate_steps=accumulate_steps,
    )
    return State(params, state.reference_params, opt_state, state.step + 1), metrics


def make(
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    loss_fn: PairLoss,
    init_params: Callable[[PRNGKeyArray], Params],
    live_reference: bool = True,
    reward_scale: float = 1.0,
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of offline preference optimisation.

    Args:
      model: policy and reference as functions (`agents.language.LanguageModel`).
      optimizer: any optax transformation.
      loss_fn: the loss of each pair, a function of `PairLogProbs`; see `on_log_ratios`.
      init_params: makes fresh parameters from a key.
      live_reference: True evaluates the reference at every step; False takes its log-probabilities
        from the batch, computed once per data set, which saves its forward pass and its memory.
      reward_scale: multiplies log-ratios into implicit rewards in the metrics; pass the loss's
        beta.
      chunk_size: tokens per chunk of the head, or None to hold all logits at once.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; it has no `act`.

    Raises:
      ValueError: the model cannot serve `chunk_size`.
      TypeError: `loss_fn` is not callable.

    References:
      Tang et al., Generalized Preference Optimization, 2024. https://arxiv.org/abs/2402.05749
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of PairLogProbs, got {loss_fn!r}.")
    language.check_chunking(model, chunk_size)
    return Agent(
        init=functools.partial(
            init, init_params=init_params, optimizer=optimizer, live_reference=live_reference
        ),
        act=None,
        update=functools.partial(
            update,
            model=model,
            optimizer=optimizer,
            loss_fn=loss_fn,
            reward_scale=reward_scale,
            chunk_size=chunk_size,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
