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

    The target policy is the greedy one, unmixed, where an episode has ended, since nobody acts
    there; and at x_T if the batch does not say who acted there.

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
    last = batch.last_behaviour_probs
    laws = jnp.concatenate([mu, (greedy[:, -1] if last is None else last)[:, None]], axis=1)
    ended = batch.terminated | batch.truncated
    # A select and not a product: what stands there for a law may be NaN.
    policy = jnp.where(ended[..., None], greedy, mixing * greedy + (1 - mixing) * laws)
    next_actions = batch.actions[:, 1:]

    def of_taken(probs):
        return jnp.take_along_axis(probs, next_actions[..., None], axis=-1)[..., 0]

    traces = trace_fn(of_taken(policy[:, :-1]), of_taken(mu))
    # The step after an end begins an episode and is no transition: nothing is learnt through it.
    return Backup(
        policy=policy,
        next_actions=next_actions,
        discounts=discount * (1.0 - batch.terminated.astype(jnp.float32)),
        traces=jnp.where(ended[:, :-1], 0.0, traces),
    )
