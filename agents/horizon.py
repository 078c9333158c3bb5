r"""What models of future states share: conditions, targets, and the values that samples give.

A geometric horizon model is the law of the state after a geometric time,
:math:`m(\cdot \mid s, a) = (1 - \gamma) \sum_{k \ge 0} \gamma^k P(S_{k + 1} \in \cdot \mid s, a)`
under one policy, or under the one that a task names. Models are agents of three kinds, by how they
are sampled: `td_flow` (flows and diffusion), `horizon_vae` and `horizon_gan`. Each learns from a
`TransitionBatch` by bootstrapping from its own target copy.

A transition that ended its episode is followed by its last state for ever.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import followers, transitions, updates
from bellmax.agents.agent import Params, TransitionBatch

# (observations[..., D], tasks[..., W] or None) -> actions[..., A].
PolicyFn = Callable[[Array, Array | None], Array]
# The state of a model that has no second network.
State = followers.TargetState
# (params, noise[..., Z], condition[..., C]) -> samples[..., D].
SampleFn = Callable[[Params, Array, Array], Array]


class Examples(NamedTuple):
    """A batch as models of future states read it.

    Attributes:
      next_states: S'. [B, D].
      condition: of the state and action. [B, C].
      next_condition: of the next state and the policy's action there. [B, C].
      discount: gamma, 0 where the episode has ended. [B].
      weight: of each row. [B].
      numbers: of the rows in their data set. [B].
    """

    next_states: Float[Array, "B D"]
    condition: Float[Array, "B C"]
    next_condition: Float[Array, "B C"]
    discount: Float[Array, " B"]
    weight: Float[Array, " B"]
    numbers: Int[Array, " B"]


def condition(
    observations: Float[Array, "*B D"],
    actions: Float[Array, "*B A"],
    tasks: Float[Array, "*B W"] | None = None,
) -> Float[Array, "*B C"]:
    """Returns what a model is conditioned on: state, action and task, side by side.

    Args:
      observations: states. [..., D].
      actions: of size 0 where there is none to take. [..., A].
      tasks: which policy of a family; None where there is one. [..., W].

    Returns:
      Conditions, C = D + A + W. [..., C].
    """
    parts = (observations, actions) if tasks is None else (observations, actions, tasks)
    return jnp.concatenate(parts, axis=-1)


def examples(
    batch: TransitionBatch,
    *,
    discount: float,
    policy_fn: PolicyFn | None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Examples:
    """Returns a batch as models of future states read it.

    Args:
      batch: transitions.
      discount: gamma.
      policy_fn: the evaluated policy, for batches without `next_actions`.
      accumulate_steps: parts of the batch that the policy sees one after another.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The examples; zeros in rows of weight 0.

    Raises:
      ValueError: nothing says what the policy does at the next state.
    """
    ready = transitions.rows(batch, axis_name)
    rows = ready.batch
    next_actions = rows.next_actions
    if next_actions is None:
        if policy_fn is None:
            raise ValueError("batch.next_actions must be given where the agent has no policy_fn.")
        next_actions = updates.map_parts(
            lambda seen: policy_fn(*seen), (rows.next_observations, rows.tasks), accumulate_steps
        )
    return Examples(
        next_states=rows.next_observations,
        condition=condition(rows.observations, rows.actions, rows.tasks),
        next_condition=condition(rows.next_observations, next_actions, rows.tasks),
        discount=discount * ready.going_on,
        weight=ready.weight,
        numbers=ready.numbers,
    )


def draw(key: PRNGKeyArray, numbers: Int[Array, " B"], *sizes: int) -> tuple[Array, ...]:
    """Draws the randomness of a step by each row's number: alike on any layout of devices.

    Args:
      key: randomness, the same on every device; consumed.
      numbers: of the rows. [B].
      *sizes: of the vectors of noise.

    Returns:
      A uniform number in [0, 1) [B], and N(0, I) of each size [B, size].
    """
    uniform_key, *noise_keys = jax.random.split(key, 1 + len(sizes))
    keys = jax.vmap(functools.partial(jax.random.fold_in, uniform_key))(numbers)
    noise = (
        transitions.noise(noise_key, numbers, size)
        for noise_key, size in zip(noise_keys, sizes, strict=True)
    )
    return jax.vmap(jax.random.uniform)(keys), *noise


def value(
    samples: Float[Array, "*B N D"],
    reward_fn: Callable[[Float[Array, "*B N D"]], Float[Array, "*B N"]],
    *,
    discount: float,
) -> Float[Array, "*B"]:
    r"""Returns the value of a state and action from samples of its future states.

    .. math:: Q(s, a) = \frac{1}{1 - \gamma} E_{X \sim m(\cdot \mid s, a)}[r(X)]

    Rewards are those of the state that a step leads to.

    Args:
      samples: of the model. [..., N, D].
      reward_fn: r. [..., N, D] -> [..., N].
      discount: gamma in [0, 1).

    Returns:
      Values. [...].

    Raises:
      ValueError: `discount` is out of range.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    check_discount(discount)
    return jnp.mean(reward_fn(samples), axis=-1) / (1 - discount)


def check_discount(discount: float) -> None:
    """Refuses a discount outside [0, 1).

    Args:
      discount: gamma.

    Raises:
      ValueError: it is out of range.
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")
