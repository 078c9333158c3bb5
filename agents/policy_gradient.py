"""Policy gradients on groups of completions: the policy learns from what its samples earn.

What is learnt is a loss of `completion_losses`; REINFORCE, RLOO, ReMax, GRPO and its relatives,
PPO, the k-sample objectives, AGRO, CoPG and JEPO are losses, and the agent is one:

    rloo   completion_losses.policy_gradient(completion_losses.leave_one_out(), beta=0.05)
    grpo   completion_losses.clipped(completion_losses.group_normalised(), beta=0.04)
    agro   completion_losses.agro(beta=0.05)

`update` neither samples nor rewards: the caller does, with `sampling.generate` and a verifier or a
judge, and the batch says under which policy its completions were sampled. They may be the current
policy's, an older one's or anybody's: what a loss makes of that is the loss's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import (
    completion_losses,
    completions,
    critics,
    decoders,
    language,
    sampling,
    updates,
)
from bellmax.agents.agent import Agent, CompletionBatch, Metrics, Params, PromptBatch, as_prompts

AVERAGES = ("prompts", "tokens")


class State(NamedTuple):
    """All that changes, and the frozen reference beside it.

    Attributes:
      params: the policy's parameters.
      value_params: the critic's, or `()` where there is none.
      reference_params: the reference's.
      opt_state: the optimiser's state, of the pair `(params, value_params)`.
      step: optimiser steps taken so far.
    """

    params: Params
    value_params: Params
    reference_params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def init(
    key: PRNGKeyArray,
    example_batch: CompletionBatch | None = None,
    *,
    params: Params | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
    critic: critics.Critic | None = None,
) -> State:
    """Starts from given parameters, or from fresh ones; the reference is a copy unless it is given.

    Args:
      key: randomness of fresh parameters, the critic's among them; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the policy's parameters, copied; None for fresh ones.
      reference_params: the reference's, copied; None for a copy of the policy's.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation.
      critic: the critic, or None.

    Returns:
      The first state.
    """
    del example_batch
    policy_key, critic_key = jax.random.split(key)
    start: Params = init_params(policy_key) if params is None else updates.copy_tree(params)
    values = () if critic is None else critic.init(critic_key)
    return State(
        params=start,
        value_params=values,
        reference_params=updates.copy_tree(start if reference_params is None else reference_params),
        opt_state=optimizer.init((start, values)),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    state: State,
    prompts: PromptBatch | Int[Array, "B P"],
    key: PRNGKeyArray,
    *,
    decoder: decoders.Decoder,
    **generation,
) -> sampling.Completion:
    """Samples a completion of each prompt from the policy.

    Args:
      state: the current state.
      prompts: the prompts; an array of tokens has no padding.
      key: randomness; consumed.
      decoder: the policy.
      **generation: arguments of `sampling.generate`.

    Returns:
      The completions.
    """
    return sampling.complete(decoder, state.params, as_prompts(prompts), key, **generation)


def update(
    state: State,
    batch: CompletionBatch,
    key: PRNGKeyArray | None = None,
    *,
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    loss_fn: completion_losses.CompletionLoss,
    critic: critics.Critic | None = None,
    average: str = "prompts",
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean of a loss of groups.

    Args:
      state: the current state; may be donated.
      batch: the completions, rewarded.
      key: not needed, and there for the signature that all agents share.
      model: policy and reference as functions.
      optimizer: any optax transformation of `(params, value_params)`.
      loss_fn: the loss of each prompt, [B].
      critic: the critic, or None.
      average: what the sum of losses is divided by, see `make`.
      chunk_size: tokens per chunk of the head, or None.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm`, `updates/skipped`, and the averages of
      `completions.diagnostics` over prompts.

    Raises:
      ValueError: a field of the batch has a shape that does not fit its tokens.
    """
    del key
    completions.check(batch)
    scale = jnp.ones((), jnp.float32)
    if average == "tokens":
        tokens = (jnp.asarray(batch.mask) != 0).astype(jnp.float32).sum(axis=(1, 2))
        weight = updates.row_weights(batch.weight, batch.tokens.shape[0])
        counts = jnp.stack([jnp.sum(weight), updates.weighted_sum(tokens, weight)])
        counts = counts if axis_name is None else jax.lax.psum(counts, axis_name)
        scale = counts[0] / jnp.maximum(counts[1], 1)

    def objective(learnt, batch):
        params, value_params = learnt
        group = completions.log_probs(
            model,
            critic,
            params,
            value_params,
            state.reference_params,
            batch,
            chunk_size=chunk_size,
        )
        loss = scale * loss_fn(group)
        weight = updates.row_weights(batch.weight, batch.tokens.shape[0])
        return updates.weighted_sums(loss, weight, completions.diagnostics(group))

    (params, value_params), opt_state, metrics = updates.gradient_step(
        objective,
        (state.params, state.value_params),
        state.opt_state,
        optimizer=optimizer,
        axis_name=axis_name,
        batch=batch,
        accumulate_steps=accumulate_steps,
    )
    step = state.step + 1
    return State(params, value_params, state.reference_params, opt_state, step), metrics


def make(
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    loss_fn: completion_losses.CompletionLoss,
    init_params: Callable[[PRNGKeyArray], Params],
    max_new_tokens: int | None = None,
    stop_tokens: Sequence[int] = (),
    temperature: float = 1.0,
    critic: critics.Critic | None = None,
    average: str = "prompts",
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of policy gradients on completions.

    Args:
      model: policy and reference as functions (`agents.language.LanguageModel`).
      optimizer: any optax transformation, of the pair `(params, value_params)`.
      loss_fn: the loss of each prompt, a function of `completions.CompletionLogProbs`.
      init_params: makes fresh parameters from a key.
      max_new_tokens: most tokens of a completion that `act` samples; None for an agent without
        `act`.
      stop_tokens: ids that end a completion.
      temperature: of `act`; 0 for the most likely tokens.
      critic: what `completion_losses.ppo` reads values from (`critics.of_model`); None for no
        values.
      average: "prompts" for the mean of the loss over prompts; "tokens" for its sum over the
        number of counted completion tokens in the whole batch (the token-level average of DAPO,
        with a loss that sums over tokens and group).
      chunk_size: tokens per chunk of the head, or None to hold all logits at once.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; its `act(state, prompts, key)` takes a `PromptBatch` and returns a
      `sampling.Completion`, its `update` takes a `CompletionBatch`.

    Raises:
      ValueError: the model cannot serve `chunk_size`, or `average` is unknown.
      TypeError: `loss_fn` is not callable.

    References:
      Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization, 2024.
      https://arxiv.org/abs/2402.14740
      Tang et al., RL-finetuning LLMs from on- and off-policy data with a single algorithm, 2025.
      https://arxiv.org/abs/2503.19612
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of CompletionLogProbs, got {loss_fn!r}.")
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}.")
    language.check_chunking(model, chunk_size)
    sample = None
    if max_new_tokens is not None:
        sample = functools.partial(
            act,
            decoder=decoders.as_decoder(model),
            max_new_tokens=max_new_tokens,
            stop_tokens=tuple(stop_tokens),
            temperature=temperature,
        )
    return Agent(
        init=functools.partial(init, init_params=init_params, optimizer=optimizer, critic=critic),
        act=sample,
        update=functools.partial(
            update,
            model=model,
            optimizer=optimizer,
            loss_fn=loss_fn,
            critic=critic,
            average=average,
            chunk_size=chunk_size,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
