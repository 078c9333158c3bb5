"""Nash learning: a policy that learns from duels with an opponent, by any loss of a duel.

Who sends the two completions is an `opponents.Law`; what is learnt from them is a loss of `duels`.
The methods of the papers are pairs of the two:

    Nash-MD-PG       nash_md_pg(tau=...)    first from `policy`, second from `mixture(..., weight)`
    self-play        self_play_pg(tau=...)  both from `policy`
    best response    nash_md_pg(tau=...)    first from `policy`, second from `reference`
    Nash-EMA-PG      nash_md_pg(tau=...)    second from `opponent`, kept by `average(decay)`
    online IPO       online_ipo(tau=...)    both from `policy`
    IPO-MD           online_ipo(tau=...)    both from `mixture(..., weight)`
    SPPO, DNO, INPO  sppo, dno, inpo        both from `opponent`, kept by `every(num_steps)`

`update` neither samples nor judges: the caller does, with `opponents.sample` and any judge.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import duels, followers, language, opponents, sampling, updates
from bellmax.agents.agent import Agent, DuelBatch, Metrics, Params, PromptBatch, as_prompts


class State(NamedTuple):
    """All that changes, and the frozen reference beside it.

    Attributes:
      params: the policy's parameters.
      reference_params: the reference's.
      opponent_params: an earlier or averaged policy's, or `()` where no method needs one.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    reference_params: Params
    opponent_params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def log_probs(
    model: language.LanguageModel,
    params: Params,
    reference_params: Params,
    opponent_params: Params,
    batch: DuelBatch,
    *,
    chunk_size: int | None = None,
) -> duels.DuelLogProbs:
    """Returns everything that the loss of a duel may read.

    What a loss does not read is not computed once it is compiled.

    Args:
      model: policy, reference and opponent as functions of their parameters.
      params: the policy's parameters.
      reference_params: the reference's.
      opponent_params: the opponent's, or `()` for the reference's.
      batch: the duels.
      chunk_size: tokens per chunk of the head, or None.

    Returns:
      Log-probabilities of both completions; those of reference and opponent are constant.
    """
    named = {
        "log_probs": params,
        "reference_log_probs": jax.lax.stop_gradient(reference_params),
        "opponent_log_probs": jax.lax.stop_gradient(
            opponent_params if jax.tree.leaves(opponent_params) else reference_params
        ),
    }
    sides = {
        "first": language.without_padding(batch.first_tokens, batch.first_mask, batch.weight),
        "second": language.without_padding(batch.second_tokens, batch.second_mask, batch.weight),
    }
    fields = {
        f"{side}_{field}": language.completion_log_probs(
            model, parameters, tokens, chunk_size=chunk_size
        )
        for side, tokens in sides.items()
        for field, parameters in named.items()
    }
    wins = batch.preferences
    first_wins = wins if batch.first_win_rates is None else batch.first_win_rates
    second_wins = 1 - wins if batch.second_win_rates is None else batch.second_win_rates
    return duels.DuelLogProbs(
        **fields,
        first_mask=jnp.asarray(batch.first_mask, jnp.float32),
        second_mask=jnp.asarray(batch.second_mask, jnp.float32),
        preferences=wins,
        first_win_rates=first_wins,
        second_win_rates=second_wins,
    )


def diagnostics(duel: duels.DuelLogProbs) -> Metrics:
    """Returns what users watch, one value per duel.

    Args:
      duel: the duel's log-probabilities.

    Returns:
      Arrays [B] by name: `preferences/first` (the first's win rate), `kl/reference` (log-ratio to
      the reference along y: an estimate of the KL divergence where y comes from the policy),
      `log_probs/first` (of the whole completion) and `lengths/first` (tokens).
    """
    first, reference = duel.sums("policy")[0], duel.sums("reference")[0]
    return jax.lax.stop_gradient(
        {
            "preferences/first": duel.first_win_rates,
            "kl/reference": first - reference,
            "log_probs/first": first,
            "lengths/first": duel.first_mask.sum(axis=-1),
        }
    )


def init(
    key: PRNGKeyArray,
    example_batch: DuelBatch | None = None,
    *,
    params: Params | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
    keeps_opponent: bool = False,
) -> State:
    """Starts from given parameters, or from fresh ones; the reference is a copy unless it is given.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the policy's parameters, copied; None for fresh ones.
      reference_params: the reference's, copied; None for a copy of the policy's.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation.
      keeps_opponent: whether the state holds an earlier or averaged policy, at first a copy.

    Returns:
      The first state.
    """
    del example_batch
    start: Params = init_params(key) if params is None else updates.copy_tree(params)
    return State(
        params=start,
        reference_params=updates.copy_tree(start if reference_params is None else reference_params),
        opponent_params=updates.copy_tree(start) if keeps_opponent else (),
        opt_state=optimizer.init(start),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    state: State,
    prompts: PromptBatch | Int[Array, "B P"],
    key: PRNGKeyArray,
    *,
    law: opponents.Law,
    **generation,
) -> sampling.Completion:
    """Samples a completion of each prompt from the policy.

    Args:
      state: the current state.
      prompts: the prompts; an array of tokens has no padding.
      key: randomness; consumed.
      law: the policy's law.
      **generation: arguments of `sampling.generate`.

    Returns:
      The completions.
    """
    return opponents.sample(law, state, as_prompts(prompts), key, **generation)


def update(
    state: State,
    batch: DuelBatch,
    key: PRNGKeyArray | None = None,
    *,
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    loss_fn: duels.DuelLoss,
    opponent_rule: followers.FollowRule | None = None,
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean of a loss of duels.

    Args:
      state: the current state; may be donated.
      batch: the duels, judged.
      key: not needed, and there for the signature that all agents share.
      model: policy, reference and opponent as functions.
      optimizer: any optax transformation.
      loss_fn: the loss of each duel, [B].
      opponent_rule: how the state's opponent follows the policy, or None where there is none.
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
        duel = log_probs(
            model,
            params,
            state.reference_params,
            state.opponent_params,
            batch,
            chunk_size=chunk_size,
        )
        weight = updates.row_weights(batch.weight, batch.preferences.shape[0])
        duel = updates.where_counted(duel, weight)
        watched = diagnostics(duel)
        return updates.weighted_sums(loss_fn(duel), weight, watched)

    params, opt_state, metrics = updates.gradient_step(
        objective,
        state.params,
        state.opt_state,
        optimizer=optimizer,
        axis_name=axis_name,
        batch=batch,
        accumulate_steps=accumulate_steps,
    )
    step = state.step + 1
    kept = state.opponent_params
    if opponent_rule is not None:
        kept = opponent_rule(kept, params, step)
    return State(params, state.reference_params, kept, opt_state, step), metrics


def make(
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    loss_fn: duels.DuelLoss,
    init_params: Callable[[PRNGKeyArray], Params],
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    temperature: float = 1.0,
    opponent_rule: followers.FollowRule | None = None,
    chunk_size: int | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of Nash learning.

    Args:
      model: policy, reference and opponent as functions (`agents.language.LanguageModel`).
      optimizer: any optax transformation.
      loss_fn: the loss of each duel, a function of `duels.DuelLogProbs`.
      init_params: makes fresh parameters from a key.
      max_new_tokens: most tokens of a completion that `act` samples.
      stop_tokens: ids that end a completion.
      temperature: of `act`; 0 for the most likely tokens.
      opponent_rule: keeps an earlier or averaged policy in the state (`followers.every`,
        `followers.average`); None where neither laws nor loss read one.
      chunk_size: tokens per chunk of the head, or None to hold all logits at once.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; its `act(state, prompts, key)` takes a `PromptBatch` and returns a
      `sampling.Completion`, its `update` takes a `DuelBatch`.

    Raises:
      ValueError: the model cannot serve `chunk_size`.
      TypeError: `loss_fn` is not callable.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
      Calandriello et al., Human Alignment of Large Language Models through Online Preference
      Optimisation, 2024. https://arxiv.org/abs/2403.08635
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of DuelLogProbs, got {loss_fn!r}.")
    language.check_chunking(model, chunk_size)
    return Agent(
        init=functools.partial(
            init,
            init_params=init_params,
            optimizer=optimizer,
            keeps_opponent=opponent_rule is not None,
        ),
        act=functools.partial(
            act,
            law=opponents.policy(model),
            max_new_tokens=max_new_tokens,
            stop_tokens=tuple(stop_tokens),
            temperature=temperature,
        ),
        update=functools.partial(
            update,
            model=model,
            optimizer=optimizer,
            loss_fn=loss_fn,
            opponent_rule=opponent_rule,
            chunk_size=chunk_size,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
