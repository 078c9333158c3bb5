r"""Multi-turn preference optimisation (MTPO): actor and critic on whole conversations.

A turn is one action. Its log-probability is the sum over its tokens, its value is one number, read
off the hidden state of the token before the turn, and credit flows between turns by generalised
advantage estimation:

.. math:: L = -\hat A(x, y) \log \pi(y \mid x) + \alpha KL(\pi, \pi_{ref})[x]
          + c (\hat V(x) - V(x))^2

The divergence is exact in each token: the sum over the vocabulary on the prefixes that were
visited. On the policy's own samples the expected gradient is that of the regularised preference,
also within a turn: what a token does to the divergence of later tokens of its turn comes through
the advantage, whose reward has the same estimate of the divergence.

One agent is several methods, by what the batch holds:

- MTPO: two conversations a context, drawn from the policy; preferences [B] of each over the other;
- MTPO-tau: the same, drawn from the geometric mixture of policy and reference (the caller's
  sampler), with the same loss;
- multi-turn RLHF: a reward model's scores of whole conversations in the preferences' place;
- the single-turn baseline: preferences [B, H], each turn judged alone: no credit across turns.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import conversations, decoders, language, sampling, updates
from bellmax.agents.agent import Agent, Metrics, Params, PromptBatch, as_prompts
from bellmax.agents.conversations import ConversationBatch, TurnLaws


class State(NamedTuple):
    """All that changes, and the frozen reference beside it.

    Attributes:
      params: `policy`, the language model's parameters, and `value`, a head of a `kernel` [D] and a
        `bias` on its hidden states.
      reference_params: the reference's parameters; it has no value head.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    reference_params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class _Options(NamedTuple):
    """What `make` has bound and checked."""

    alpha: float
    trace_decay: float
    value_coefficient: float
    value_gradient: float
    policy_delay: int
    normalise_advantages: bool


def advantages_and_targets(
    laws: TurnLaws,
    preferences: Float[Array, "B"] | Float[Array, "B H"],
    turn_mask: Array,
    *,
    alpha: float,
    trace_decay: float,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Returns advantages of the turns and targets of their values.

    Args:
      laws: of `conversations.turn_laws`; gradient-stopped.
      preferences: of whole conversations [B]: the reward comes at the last turn, and credit flows
        back undiscounted. Of turns [B, H]: each turn is a conversation of its own.
      turn_mask: 1 where there is a turn. [B, H].
      alpha: weight of the divergence in the rewards.
      trace_decay: lambda of generalised advantage estimation.

    Returns:
      Advantages and value targets, both gradient-stopped and 0 on turns that there are not. [B, H].

    Raises:
      ValueError: `preferences` are neither [B] nor [B, H].
    """
    _check_preferences(preferences, turn_mask)
    there = (jnp.asarray(turn_mask) != 0).astype(jnp.float32)
    laws = jax.lax.stop_gradient(laws)
    if preferences.ndim == 1:
        rewards = losses.mtpo_turn_rewards(laws.kl, preferences, there, alpha=alpha)
        discounts = jnp.pad(there[:, 1:], ((0, 0), (0, 1)))
    else:
        rewards = losses.mtpo_turn_rewards(
            laws.kl[..., None], preferences, there[..., None], alpha=alpha
        )[..., 0]
        discounts = jnp.zeros_like(there)
    values = jnp.pad(laws.values, ((0, 0), (0, 1)))
    advantages = losses.generalised_advantages(rewards, values, discounts, trace_decay=trace_decay)
    return there * advantages, there * (advantages + laws.values)


def _check_preferences(preferences: Array, turn_mask: Array) -> None:
    shape = jnp.shape(turn_mask)
    if preferences.shape not in (shape[:1], shape):
        raise ValueError(
            f"preferences must be [B] or [B, H] with [B, H] = {shape}, got {preferences.shape}."
        )


class _Turns(NamedTuple):
    """What the loss reads of each turn; the preferences as its row has them."""

    laws: TurnLaws
    advantages: Float[Array, "B H"]
    targets: Float[Array, "B H"]
    preferences: Float[Array, "B H"]
    weight: Float[Array, "B H"]


def _moments(values: Array, weight: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and standard deviation of the whole batch's counted values."""
    sums = (jnp.sum(weight * values), jnp.sum(weight * jnp.square(values)), jnp.sum(weight))
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    count = jnp.where(sums[2] > 0, sums[2], 1.0)
    mean = sums[0] / count
    return mean, _spread(mean, sums[1] / count)


def _spread(mean: Array, mean_square: Array) -> Array:
    return jnp.sqrt(jnp.maximum(mean_square - jnp.square(mean), 0.0))


def init(
    key: PRNGKeyArray,
    example_batch: ConversationBatch | None = None,
    *,
    params: Params | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from fresh ones; the value head starts at 0.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the policy's parameters, without a value head, copied; None for fresh ones.
      reference_params: the reference's, copied; None for a copy of the policy's.
      init_params: makes fresh parameters of the policy from a key.
      model: the policy as functions.
      optimizer: any optax transformation.

    Returns:
      The first state.
    """
    del example_batch
    assert model.unembedding is not None
    policy: Params = init_params(key) if params is None else updates.copy_tree(params)
    reference = updates.copy_tree(policy if reference_params is None else reference_params)
    width = jax.eval_shape(model.unembedding, policy).shape[0]
    value = {"kernel": jnp.zeros(width, jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    start = {"policy": policy, "value": value}
    return State(start, reference, optimizer.init(start), jnp.zeros((), jnp.int32))


def act(
    state: State,
    prompts: PromptBatch | Int[Array, "B P"],
    key: PRNGKeyArray,
    *,
    decoder: decoders.Decoder,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    **kwargs: Any,
) -> sampling.Completion:
    """Samples the next turn of conversations.

    Args:
      state: the current state.
      prompts: the conversations so far; an array of tokens has no padding.
      key: randomness; consumed.
      decoder: the policy, illegal tokens left out.
      max_new_tokens: most tokens of a turn.
      stop_tokens: ids that end a turn.
      **kwargs: further arguments of `sampling.generate`, such as `temperature`.

    Returns:
      The turns.
    """
    return sampling.complete(
        decoder,
        (state.params["policy"],),
        as_prompts(prompts),
        key,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        **kwargs,
    )


def update(
    state: State,
    batch: ConversationBatch,
    key: PRNGKeyArray | None = None,
    *,
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    options: Any,
    legal: Array | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean, over turns, of the policy's and the value's loss.

    Args:
      state: the current state; may be donated.
      batch: the conversations.
      key: not needed (nothing is sampled), and there for the signature that all agents share.
      model: policy and reference as functions.
      optimizer: any optax transformation.
      options: the hyper-parameters, from `make`.
      legal: true where the policy may say a token at all; None where all may. [V].
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics, averages over turns: `loss`, `grad_norm`, `updates/skipped`,
      `loss/policy`, `loss/value`, `kl/reference` (nats a turn), `rewards/preference`,
      `advantages/std`, `values/mean`.
    """
    del key
    _check_preferences(batch.preferences, batch.turn_mask)
    learns = (state.step >= options.policy_delay).astype(jnp.float32)

    def turns(params, batch):
        row_weight = updates.row_weights(batch.weight, batch.tokens.shape[0])
        there = (jnp.asarray(batch.turn_mask) != 0).astype(jnp.float32)
        weight = row_weight[:, None] * there
        # Before the losses, not after: the gradient of NaN times 0 is NaN.
        preferences = jnp.where(
            (row_weight if batch.preferences.ndim == 1 else weight) > 0, batch.preferences, 0.0
        )
        laws = conversations.turn_laws(
            model,
            params,
            state.reference_params,
            batch,
            legal=legal,
            value_gradient=options.value_gradient * learns,
        )
        laws = jax.tree.map(lambda values: jnp.where(weight > 0, values, 0.0), laws)
        advantages, targets = advantages_and_targets(
            laws, preferences, there, alpha=options.alpha, trace_decay=options.trace_decay
        )
        judged = preferences[:, None] if preferences.ndim == 1 else preferences
        return _Turns(laws, advantages, targets, jnp.broadcast_to(judged, weight.shape), weight)

    moments = None
    if options.normalise_advantages and accumulate_steps > 1:

        def counted(batch):
            found = turns(state.params, batch)
            return found.advantages, found.weight

        # A part does not know the others' advantages: one pass more, without gradients.
        values, weight = updates.map_parts(counted, batch, accumulate_steps)
        moments = _moments(values, weight, axis_name)

    def objective(params, batch):
        found = turns(params, batch)
        laws, advantages = found.laws, found.advantages
        alpha = jnp.asarray(options.alpha, jnp.float32)
        if options.normalise_advantages:
            mean, spread = moments or _moments(advantages, found.weight, axis_name)
            # The divergence is divided as well: what maximises the objective stays where it is.
            scale = jnp.maximum(spread, 1e-6)
            advantages, alpha = (advantages - mean) / scale, alpha / scale
        policy_loss = losses.mtpo_policy_loss(laws.log_probs, advantages, laws.kl, alpha=alpha)
        value_loss = losses.mtpo_value_loss(laws.values, found.targets)
        loss = learns * policy_loss + options.value_coefficient * value_loss
        watched = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "kl/reference": laws.kl,
            "rewards/preference": found.preferences,
            "advantages/mean": found.advantages,
            "advantages/square": jnp.square(found.advantages),
            "values/mean": laws.values,
        }
        return updates.weighted_sums(loss, found.weight, watched)

    params, opt_state, metrics = updates.gradient_step(
        objective,
        state.params,
        state.opt_state,
        batch=batch,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )
    metrics["advantages/std"] = _spread(
        metrics.pop("advantages/mean"), metrics.pop("advantages/square")
    )
    return State(params, state.reference_params, opt_state, state.step + 1), metrics


def make(
    model: language.LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    init_params: Callable[[PRNGKeyArray], Params],
    alpha: float,
    trace_decay: float = 0.95,
    value_coefficient: float = 1.0,
    value_gradient: float = 1.0,
    policy_delay: int = 0,
    normalise_advantages: bool = False,
    legal_tokens: Sequence[bool] | None = None,
    max_new_tokens: int | None = None,
    stop_tokens: Sequence[int] = (),
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of multi-turn preference optimisation.

    Args:
      model: policy and reference as functions (`agents.language.LanguageModel`); needs
        `hidden_states` and `unembedding`.
      optimizer: any optax transformation of `{"policy": ..., "value": ...}`.
      init_params: makes fresh parameters of the policy from a key.
      alpha: weight of the divergence from the reference, >= 0, 1/nats; the paper's runs have 0.005
        for MTPO, 0.0025 for MTPO-tau, 0.01 for multi-turn RLHF.
      trace_decay: lambda of generalised advantage estimation over turns.
      value_coefficient: c >= 0, weight of the value loss.
      value_gradient: factor on the gradient that the value loss sends into the policy's network: 0
        for a head on features that only the policy shapes. 0 during the delay always.
      policy_delay: steps in which the value alone learns; the policy does not move at all if the
        optimiser does not decay weights.
      normalise_advantages: centre the batch's advantages and divide them, and the divergence with
        them, by their standard deviation, so that alpha keeps its meaning.
      legal_tokens: true where the policy may say a token at all; None where all may. [V].
      max_new_tokens: most tokens of a turn that `act` samples; None for an agent without `act`.
      stop_tokens: ids that end a turn in `act`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`. To normalise advantages the networks run once more, before them.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent. `act(state, prompts, key) -> Completion` samples one turn.

    Raises:
      ValueError: a hyper-parameter is out of range, or the model lacks `hidden_states` or
        `unembedding`.

    References:
      Shani et al., Multi-turn Reinforcement Learning from Preference Human Feedback, 2024.
      https://arxiv.org/abs/2405.14655
    """
    if model.hidden_states is None or model.unembedding is None:
        raise ValueError("model must have both `hidden_states` and `unembedding`.")
    for name, value in (
        ("alpha", alpha),
        ("value_coefficient", value_coefficient),
        ("value_gradient", value_gradient),
        ("policy_delay", policy_delay),
    ):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    if not 0 <= trace_decay <= 1:
        raise ValueError(f"trace_decay must be in [0, 1], got {trace_decay}.")
    if legal_tokens is not None and not any(legal_tokens):
        raise ValueError("legal_tokens must allow one token at least.")
    legal = None if legal_tokens is None else jnp.asarray(legal_tokens, bool)
    sample = None
    if max_new_tokens is not None:
        decoder = decoders.combine(
            (model,), functools.partial(conversations.mask_logits, legal=legal)
        )
        sample = functools.partial(
            act,
            decoder=decoder,
            max_new_tokens=max_new_tokens,
            stop_tokens=tuple(stop_tokens),
        )
    return Agent(
        init=functools.partial(init, init_params=init_params, model=model, optimizer=optimizer),
        act=sample,
        update=functools.partial(
            update,
            model=model,
            optimizer=optimizer,
            options=_Options(
                alpha,
                trace_decay,
                value_coefficient,
                value_gradient,
                policy_delay,
                normalise_advantages,
            ),
            legal=legal,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
