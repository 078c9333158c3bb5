"""Critics of completions: a language model's body with one number read off each prefix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import language, updates
from bellmax.agents.agent import Params


class Critic(NamedTuple):
    """A critic as functions.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, tokens[B, T]) -> values[B, T]`, float32; entry t is the value of tokens 0..t,
        which it alone sees.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Int[Array, "B T"]], Float[Array, "B T"]]


def of_model(
    model: language.LanguageModel,
    init_params: Callable[[PRNGKeyArray], Params],
    *,
    params: Params | None = None,
) -> Critic:
    """Returns a critic with a network of its own, as large as the policy; its head starts at 0.

    Args:
      model: the language model as functions; needs `hidden_states` and `unembedding`, which tells
        the head its size.
      init_params: makes fresh parameters of the network from a key.
      params: what the network starts from instead, copied, such as the reference's.

    Returns:
      The critic; its parameters are `network` and a `head` of a `kernel` [D] and a `bias`.

    Raises:
      ValueError: the model lacks `hidden_states` or `unembedding`.
    """
    hidden_states, unembedding = model.hidden_states, model.unembedding
    if hidden_states is None or unembedding is None:
        raise ValueError("model must have both `hidden_states` and `unembedding` for a critic.")

    def init(key: PRNGKeyArray) -> Params:
        network: Params = init_params(key) if params is None else updates.copy_tree(params)
        width = jax.eval_shape(unembedding, network).shape[0]
        head = {"kernel": jnp.zeros(width, jnp.float32), "bias": jnp.zeros((), jnp.float32)}
        return {"network": network, "head": head}

    def apply(learnt: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
        hidden = hidden_states(learnt["network"], tokens).astype(jnp.float32)
        return hidden @ learnt["head"]["kernel"] + learnt["head"]["bias"]

    return Critic(init, apply)
