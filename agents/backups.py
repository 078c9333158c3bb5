"""What multi-step targets of off-policy sequences are made of: target policy, traces, discounts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.agents.agent import SequenceBatch
from bellmax.losses import TraceFn


class Backup(NamedTuple):
    """What a sequence gives a multi-step target, beside the next outputs.

    Attributes:
      policy: target policy at x_1 .. x_T. [B, T, A].
      next_actions: a_1 .. a_{T - 1}. [B, T - 1].
      discounts: of each transition; 0 where it terminates. [B, T].
      traces: c_1 .. c_{T - 1}; 0 at a step that begins an episode. [B, T - 1].
    """

    policy: Float[Array, "B T A"]
    next_actions: Int[Array, "B S"]
    discounts: Float[Array, "B T"]
    traces: Float[Array, "B S"]


def backup(
    batch: SequenceBatch,
    next_values: Float[Array, "B T A"],
    *,
    trace_fn: TraceFn,
    mixing: float,
    discount: float,
) -> Backup:
    """Returns policy, discounts and traces of sequences.

    At x_T the behaviour is not known, nor where an episode has ended, since nobody acts there: the
    target policy is the greedy one unmixed in those places.

    Args:
      batch: the sequences.
      next_values: values of the actions at x_1 .. x_T, by which the greedy policy is greedy.
      trace_fn: `(policy_probs, behaviour_probs) -> traces`, each of the actions taken. [B, T - 1].
      mixing: alpha in [0, 1], the weight of the greedy policy.
      discount: gamma.

    Returns:
      What the target is made of.
    """
    greedy = jax.nn.one_hot(jnp.argmax(next_values, axis=-1), next_values.shape[-1])
    mu = batch.behaviour_probs[:, 1:]
    ended = (batch.terminated | batch.truncated)[:, :-1]
    mixed = mixing * greedy[:, :-1] + (1 - mixing) * mu
    # A select and not a product: what stands there for a law may be NaN.
    mixed = jnp.where(ended[..., None], greedy[:, :-1], mixed)
    next_actions = batch.actions[:, 1:]

    def of_taken(probs):
        return jnp.take_along_axis(probs, next_actions[..., None], axis=-1)[..., 0]

    traces = trace_fn(of_taken(mixed), of_taken(mu))
    # The step after an end begins an episode and is no transition: nothing is learnt through it.
    return Backup(
        policy=jnp.concatenate([mixed, greedy[:, -1:]], axis=1),
        next_actions=next_actions,
        discounts=discount * (1.0 - batch.terminated.astype(jnp.float32)),
        traces=jnp.where(ended, 0.0, traces),
    )
