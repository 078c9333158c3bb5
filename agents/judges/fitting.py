"""What all learned judges share: where a completion's state is read, and how a judge is fitted."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import language, updates
from bellmax.agents.agent import Metrics, Params, PreferenceBatch

# (network_params, tokens[B, T], mask=[B, T]) -> [B, T, D]; position t sees tokens 0..t only, and
# the mask is 1 on tokens of prompt and completion. `networks.hidden_states` with its config bound.
HiddenStates = Callable[..., Array]

# (params, first_tokens[B, T], first_mask, second_tokens[B, T], second_mask) -> [B]: the probability
# in [0, 1] that the first completion beats the second. Rows hold prompt and completion, padded on
# the right; masks are 1 on the tokens of the completion.
Judge = Callable[[Params, Array, Array, Array, Array], Float[Array, " B"]]

# (params, chosen_tokens, chosen_mask, rejected_tokens, rejected_mask) -> (losses[B], margins[B]).
PairFit = Callable[[Params, Array, Array, Array, Array], tuple[Array, Array]]


class State(NamedTuple):
    """All that changes.

    Attributes:
      params: the judge's parameters: those of its network under "network", and its head's.
      opt_state: the optimiser's state.
      step: optimiser steps taken so far.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def completion_states(
    hidden_states: HiddenStates, network_params: Params, tokens: Int[Array, "B T"], mask: Array
) -> Float[Array, "B D"]:
    """Returns the network's state at the last token of each completion.

    That token has seen the prompt and the whole completion. What follows it is padding, may hold
    anything, and does not reach the network.

    Args:
      hidden_states: the network.
      network_params: its parameters.
      tokens: prompt and completion, padded on the right. [B, T].
      mask: 1 on the tokens of the completion. [B, T].

    Returns:
      States, float32; 0 where no token counts. [B, D].

    Raises:
      ValueError: `tokens` is not [B, T], or `mask` has another shape.
    """
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise ValueError(
            f"tokens and mask must both be [B, T], got {tokens.shape} and {mask.shape}."
        )
    places = jnp.arange(tokens.shape[1])[None, :]
    last = language.last_counted(mask)
    # A row in which nothing counts shows the network one token 0: it need not know empty rows.
    place = jnp.maximum(last, 0)
    tokens = jnp.where(places <= last, tokens, 0)
    hidden = hidden_states(network_params, tokens, mask=places <= place)
    state = jnp.take_along_axis(hidden, place[:, :, None], axis=1)[:, 0]
    return jnp.where(last >= 0, state.astype(jnp.float32), 0.0)


def pair_states(
    hidden_states: HiddenStates,
    network_params: Params,
    first_tokens: Int[Array, "B T"],
    first_mask: Array,
    second_tokens: Int[Array, "B T"],
    second_mask: Array,
) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
    """Returns `completion_states` of both completions, in one pass of the network.

    Args:
      hidden_states: the network.
      network_params: its parameters.
      first_tokens: prompt and first completion. [B, T].
      first_mask: 1 on the tokens of the first completion. [B, T].
      second_tokens: prompt and second completion. [B, T].
      second_mask: 1 on the tokens of the second completion. [B, T].

    Returns:
      Two arrays [B, D], float32.

    Raises:
      ValueError: the shapes differ.
    """
    shapes = (first_tokens.shape, first_mask.shape, second_tokens.shape, second_mask.shape)
    if len(set(shapes)) > 1:
        raise ValueError(
            "first_tokens, first_mask, second_tokens and second_mask must have one shape, got "
            f"{shapes}."
        )
    tokens = jnp.concatenate([first_tokens, second_tokens])
    mask = jnp.concatenate([jnp.asarray(first_mask), jnp.asarray(second_mask)])
    first, second = jnp.split(completion_states(hidden_states, network_params, tokens, mask), 2)
    return first, second


def init(
    key: PRNGKeyArray,
    example_batch: PreferenceBatch | None = None,
    *,
    params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], Params],
    optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from a fresh head on whatever network `init_params` makes.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the judge's parameters, head included, to copy; None for fresh ones.
      init_params: makes the judge's parameters from a key.
      optimizer: any optax transformation.

    Returns:
      The first state.
    """
    del example_batch
    # Copied in both cases: a network that was given may live on elsewhere.
    start = updates.copy_tree(init_params(key) if params is None else params)
    return State(start, optimizer.init(start), jnp.zeros((), jnp.int32))


def update(
    state: State,
    batch: PreferenceBatch,
    key: PRNGKeyArray | None = None,
    *,
    pair_fit: PairFit,
    optimizer: optax.GradientTransformation,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean of a judge's loss of labelled pairs.

    Args:
      state: the current state; may be donated.
      batch: the pairs; reference log-probabilities are not read. A row of weight 0 may hold
        anything.
      key: not needed, and there for the signature that all agents share.
      pair_fit: losses and margins of the pairs, [B] each.
      optimizer: any optax transformation.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss` (nats), `grad_norm`, `updates/skipped`, `rewards/margin`
      (log odds of the label under the judge) and `rewards/accuracy` (1/2 on a tie).
    """
    del key

    def objective(params, batch):
        weight = updates.row_weights(batch.weight, batch.chosen_tokens.shape[0])
        # An empty completion reads nothing of its row, neither NaN nor an id outside the
        # vocabulary.
        chosen_mask, rejected_mask = (
            jnp.where(weight[:, None] > 0, mask, 0)
            for mask in (batch.chosen_mask, batch.rejected_mask)
        )
        loss, margin = pair_fit(
            params, batch.chosen_tokens, chosen_mask, batch.rejected_tokens, rejected_mask
        )
        watched = {
            "rewards/margin": margin,
            "rewards/accuracy": losses.preference_accuracy(margin, jnp.zeros_like(margin)),
        }
        return updates.weighted_sums(loss, weight, watched)

    params, opt_state, metrics = updates.gradient_step(
        objective,
        state.params,
        state.opt_state,
        batch=batch,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )
    return State(params, opt_state, state.step + 1), metrics


def check_size(name: str, value: int) -> None:
    """Refuses a size that is no positive whole number.

    Args:
      name: the argument's name, for the error.
      value: the size.

    Raises:
      ValueError: `value` is below 1, or no integer.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
