r"""A reward model as a judge: Bradley-Terry preferences of a linear head on a causal network.

params = {"network": ..., "head": [D]},   r(x, y) = head . state of the last token of y,
P(y beats y') = sigma(r(x, y) - r(x, y'))
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents.agent import Agent, Params
from bellmax.agents.judges import fitting
from bellmax.agents.judges.fitting import HiddenStates

RewardLoss = Callable[[Float[Array, " B"], Float[Array, " B"]], Float[Array, " B"]]


def init_params(
    key: PRNGKeyArray, *, init_network: Callable[[PRNGKeyArray], Params], embed_dim: int
) -> dict[str, Any]:
    """Returns a head of zeros on a network: at first every pair is a tie.

    Args:
      key: randomness of the network; consumed.
      init_network: makes the network's parameters from a key, or returns pretrained ones.
      embed_dim: width D of the network's hidden states.

    Returns:
      `{"network": ..., "head": [D]}`, the head float32.
    """
    return {"network": init_network(key), "head": jnp.zeros(embed_dim)}


def rewards(
    params: Params, tokens: Int[Array, "B T"], mask: Array, *, hidden_states: HiddenStates
) -> Float[Array, " B"]:
    """Returns the reward of each completion.

    Args:
      params: `{"network": ..., "head": [D]}`.
      tokens: prompt and completion, padded on the right. [B, T].
      mask: 1 on the tokens of the completion. [B, T].
      hidden_states: the network: `(network_params, tokens, mask=...) -> [B, T, D]`.

    Returns:
      Rewards in log odds, up to a constant of the prompt, float32; 0 where no token counts. [B].

    Raises:
      ValueError: the shapes differ.
    """
    states = fitting.completion_states(hidden_states, params["network"], tokens, mask)
    return _head(params, states)


def preferences(
    params: Params,
    first_tokens: Int[Array, "B T"],
    first_mask: Array,
    second_tokens: Int[Array, "B T"],
    second_mask: Array,
    *,
    hidden_states: HiddenStates,
) -> Float[Array, " B"]:
    r"""Returns the probability that the first completion beats the second.

    .. math:: P(y_1 \succ y_2 \mid x) = \sigma(r(x, y_1) - r(x, y_2))

    With `hidden_states` bound it is a `Judge`.

    Args:
      params: `{"network": ..., "head": [D]}`.
      first_tokens: prompt and first completion, padded on the right. [B, T].
      first_mask: 1 on the tokens of the first completion. [B, T].
      second_tokens: prompt and second completion. [B, T].
      second_mask: 1 on the tokens of the second completion. [B, T].
      hidden_states: the network: `(network_params, tokens, mask=...) -> [B, T, D]`.

    Returns:
      Probabilities, float32. [B].

    Raises:
      ValueError: the shapes differ.

    References:
      Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952.
      https://doi.org/10.2307/2334029
    """
    first, second = fitting.pair_states(
        hidden_states, params["network"], first_tokens, first_mask, second_tokens, second_mask
    )
    return jax.nn.sigmoid(_head(params, first) - _head(params, second))


def make(
    hidden_states: HiddenStates,
    optimizer: optax.GradientTransformation,
    *,
    init_network: Callable[[PRNGKeyArray], Params],
    embed_dim: int,
    loss_fn: RewardLoss = losses.bradley_terry_loss,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of a reward model that is fitted to a `PreferenceBatch`.

    Args:
      hidden_states: the network: `(network_params, tokens, mask=...) -> [B, T, D]`.
      optimizer: any optax transformation.
      init_network: makes the network's parameters from a key, or returns pretrained ones.
      embed_dim: width D of the network's hidden states.
      loss_fn: `(chosen_rewards[B], rejected_rewards[B]) -> [B]`; bind a margin, smoothed labels or
        centering there.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; it has no `act`. `preferences` and `rewards` read its `state.params`.

    Raises:
      ValueError: `embed_dim` is not a positive integer.
      TypeError: `loss_fn` is not callable.
    """
    fitting.check_size("embed_dim", embed_dim)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of two rewards, got {loss_fn!r}.")

    def pair_fit(params, *pair):
        states = fitting.pair_states(hidden_states, params["network"], *pair)
        chosen, rejected = (_head(params, state) for state in states)
        return loss_fn(chosen, rejected), chosen - rejected

    fresh = functools.partial(init_params, init_network=init_network, embed_dim=embed_dim)
    return Agent(
        init=functools.partial(fitting.init, init_params=fresh, optimizer=optimizer),
        act=None,
        update=functools.partial(
            fitting.update,
            pair_fit=pair_fit,
            optimizer=optimizer,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )


def _head(params: Params, states: Float[Array, "B D"]) -> Float[Array, " B"]:
    return jnp.dot(states, params["head"].astype(states.dtype), precision="highest")
