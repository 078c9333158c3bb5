"""Who sends a completion in a duel."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

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
    return sampling.complete(law.decoder, law.params_of(state), prompts, key, **generation)
