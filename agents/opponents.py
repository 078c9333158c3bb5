"""Who sends a completion in a duel, and which earlier policy a state keeps for that."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import decoders, sampling
from bellmax.agents.agent import Params, PromptBatch


class Law(NamedTuple):
    """Who sends a completion.

    Attributes:
      decoder: how its tokens are sampled.
      params_of: the decoder's parameters, from the agent's state (`nash.State`).
    """

    decoder: decoders.Decoder
    params_of: Callable[[Any], Params]


def policy(model: Any) -> Law:
    """Returns the law of the policy itself.

    Args:
      model: anything that `decoders.as_decoder` takes.
    """
    return Law(decoders.as_decoder(model), lambda state: state.params)


def reference(model: Any) -> Law:
    """Returns the law of the frozen reference.

    Args:
      model: anything that `decoders.as_decoder` takes.
    """
    return Law(decoders.as_decoder(model), lambda state: state.reference_params)


def opponent(model: Any) -> Law:
    """Returns the law of the earlier or averaged policy that the state keeps.

    Args:
      model: anything that `decoders.as_decoder` takes.
    """
    return Law(decoders.as_decoder(model), lambda state: state.opponent_params)


def mixture(model: Any, weight: float) -> Law:
    """Returns the geometric mixture of policy and reference, token by token.

    Args:
      model: anything that `decoders.as_decoder` takes.
      weight: of the reference, in [0, 1]; 0.125 to 0.375 were best in the paper.

    Returns:
      The law.

    Raises:
      ValueError: `weight` is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}.")
    logits_fn = functools.partial(losses.geometric_mixture_logits, mixture=weight)
    decoder = decoders.combine((model, model), logits_fn)
    return Law(decoder, lambda state: (state.params, state.reference_params))


def sample(
    law: Law, state: Any, prompts: PromptBatch, key: PRNGKeyArray, **generation: Any
) -> sampling.Completion:
    """Samples a completion of each prompt from a law.

    Args:
      law: who sends it.
      state: the agent's state, with `params`, `reference_params` and `opponent_params`.
      prompts: the prompts; a row's randomness is decided by its `index`.
      key: randomness; consumed.
      **generation: `max_new_tokens`, `stop_tokens` and other arguments of `sampling.generate`.

    Returns:
      The completions.
    """
    return sampling.generate(
        law.decoder,
        law.params_of(state),
        prompts.tokens,
        key,
        prompt_mask=prompts.mask,
        index=prompts.index,
        **generation,
    )


OpponentRule = Callable[[Params, Params, Int[Array, ""]], Params]


def every(num_steps: int) -> OpponentRule:
    """Keeps the policy of the last multiple of some steps: SPPO's previous iterate, and its kin's.

    Args:
      num_steps: steps of an iteration, at least 1.

    Returns:
      `(opponent_params, params, step) -> opponent_params`.

    Raises:
      ValueError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")

    def rule(opponent_params, params, step):
        renew = step % num_steps == 0
        return jax.tree.map(lambda old, new: jnp.where(renew, new, old), opponent_params, params)

    return rule


def average(decay: float) -> OpponentRule:
    r"""Keeps an exponential average of the policy's parameters: the opponent of Nash-EMA-PG.

    .. math:: \bar\theta_t = (1 - \beta) \theta_t + \beta \bar\theta_{t - 1}

    Args:
      decay: beta in [0, 1]; 0 is self-play and 1 the first policy for ever.

    Returns:
      `(opponent_params, params, step) -> opponent_params`.

    Raises:
      ValueError: `decay` is out of range.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}.")

    def rule(opponent_params, params, step):
        del step
        return optax.incremental_update(params, opponent_params, 1 - decay)

    return rule
