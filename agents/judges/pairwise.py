r"""A preference model as a judge, whose preferences need not be transitive.

    params = {"network": ..., "projection": [D, R], "bilinear": [R, R], "linear": [R]}
    u, v = projections of the states of the last tokens of y and y'
    l(x, y, y') = u . A v + w . (u - v),   A = (M - transpose of M) / 2,   P = sigma(l)

The logit is antisymmetric by construction: P(y beats y') and P(y' beats y) add up to 1, and a
completion against itself is a tie, whatever the parameters. The linear part is a Bradley-Terry
model; the bilinear one holds cycles, from R = 2 on. The network reads each completion alone, once:
this is no cross-encoder, and what one completion says about the other reaches the judge only
through the R numbers of each.
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


def init_params(
    key: PRNGKeyArray,
    *,
    init_network: Callable[[PRNGKeyArray], Params],
    embed_dim: int,
    rank: int,
) -> dict[str, Any]:
    """Returns a head on a network: a random projection, and forms of zeros: every pair is a tie.

    Args:
      key: randomness of network and projection; consumed.
      init_network: makes the network's parameters from a key, or returns pretrained ones.
      embed_dim: width D of the network's hidden states.
      rank: R, how many numbers of a completion the head compares.

    Returns:
      `{"network": ..., "projection": [D, R], "bilinear": [R, R], "linear": [R]}`, the head float32.
    """
    network_key, head_key = jax.random.split(key)
    return {
        "network": init_network(network_key),
        "projection": jax.random.normal(head_key, (embed_dim, rank)) * embed_dim**-0.5,
        "bilinear": jnp.zeros((rank, rank)),
        "linear": jnp.zeros(rank),
    }


def logits(
    params: Params,
    first_tokens: Int[Array, "B T"],
    first_mask: Array,
    second_tokens: Int[Array, "B T"],
    second_mask: Array,
    *,
    hidden_states: HiddenStates,
) -> Float[Array, " B"]:
    r"""Returns the log odds that the first completion beats the second.

    .. math:: l = u^\top \tfrac12 (M - M^\top) v + w^\top (u - v)

    Args:
      params: the module's docstring has the tree.
      first_tokens: prompt and first completion, padded on the right. [B, T].
      first_mask: 1 on the tokens of the first completion. [B, T].
      second_tokens: prompt and second completion. [B, T].
      second_mask: 1 on the tokens of the second completion. [B, T].
      hidden_states: the network: `(network_params, tokens, mask=...) -> [B, T, D]`.

    Returns:
      Logits, float32; minus themselves when the completions are swapped. [B].

    Raises:
      ValueError: the shapes differ.
    """
    states = fitting.pair_states(
        hidden_states, params["network"], first_tokens, first_mask, second_tokens, second_mask
    )
    dot = functools.partial(jnp.dot, precision="highest")
    first, second = (dot(state, params["projection"].astype(state.dtype)) for state in states)
    form = params["bilinear"].astype(first.dtype)
    # The form itself too: what has no effect on a preference gets a gradient of exactly 0, where
    # rounding errors would be all that an optimiser like Adam has to go by.
    form = losses.antisymmetric_logits(form, form.T)
    # Both orders in the same operations, so that their difference is exactly 0 on a tie.
    bilinear = losses.antisymmetric_logits(
        jnp.sum(dot(first, form) * second, axis=-1), jnp.sum(dot(second, form) * first, axis=-1)
    )
    return bilinear + dot(first - second, params["linear"].astype(first.dtype))


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

    With `hidden_states` bound it is a `Judge`.

    Args:
      params: the module's docstring has the tree.
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
      Munos et al., Nash Learning from Human Feedback, 2023 (preference models, there a joint
      encoder). https://arxiv.org/abs/2312.00886
    """
    pair = (first_tokens, first_mask, second_tokens, second_mask)
    return jax.nn.sigmoid(logits(params, *pair, hidden_states=hidden_states))


def make(
    hidden_states: HiddenStates,
    optimizer: optax.GradientTransformation,
    *,
    init_network: Callable[[PRNGKeyArray], Params],
    embed_dim: int,
    rank: int,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of a preference model that is fitted to a `PreferenceBatch`.

    It minimises `losses.pairwise_preference_loss` of hard labels: the chosen completion has won.

    Args:
      hidden_states: the network: `(network_params, tokens, mask=...) -> [B, T, D]`.
      optimizer: any optax transformation.
      init_network: makes the network's parameters from a key, or returns pretrained ones.
      embed_dim: width D of the network's hidden states.
      rank: R, how many numbers of a completion the head compares; below 2 it holds no cycle.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; it has no `act`. `preferences` and `logits` read its `state.params`.

    Raises:
      ValueError: `embed_dim` or `rank` is not a positive integer.
    """
    fitting.check_size("embed_dim", embed_dim)
    fitting.check_size("rank", rank)

    def pair_fit(params, *pair):
        margin = logits(params, *pair, hidden_states=hidden_states)
        return losses.pairwise_preference_loss(margin, jnp.ones_like(margin)), margin

    fresh = functools.partial(
        init_params, init_network=init_network, embed_dim=embed_dim, rank=rank
    )
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
