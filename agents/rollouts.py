r"""What agents that learn from their own rollouts share: deciding, advantages, and one step.

An actor-critic is one function, `apply(params, observations) -> (outputs, values)`: the outputs
that a law of actions reads (`agents.action_laws`), and the values of the states. Advantages are
generalised advantage estimates. A terminal transition is followed by nothing; a truncated one by
the value of its last observation; over neither does credit flow back from the next episode.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import updates
from bellmax.agents.action_laws import ActionLaw
from bellmax.agents.agent import Metrics, Params, RolloutBatch

# (params, observations[B, ...]) -> (outputs of the law, leaves [B, ...]; values [B]), for any
# number of leading axes.
ActorCriticApply = Callable[[Params, Array], tuple[Any, Float[Array, "*B"]]]


class Decision(NamedTuple):
    """Actions, and how likely they were.

    Attributes:
      actions: choices of the law. [..., *choice].
      log_probs: of the choices, in nats. [...].
    """

    actions: Array
    log_probs: Float[Array, "*B"]


class Rows(NamedTuple):
    """A rollout made ready for losses: 0 wherever the weight is.

    Attributes:
      observations: x_0 .. x_{T - 1}. [B, T, ...].
      actions: choices. [B, T, ...].
      behaviour_log_probs: of the choices. [B, T].
      behaviour_values: of the states. [B, T].
      advantages: standardised, if they are to be. [B, T].
      value_targets: [B, T].
      weight: 0 for padding rows and for steps between episodes. [B, T].
      spread: standard deviation of the whole batch's advantages as they were, in every place.
        [B, T].
    """

    observations: Array
    actions: Array
    behaviour_log_probs: Float[Array, "B T"]
    behaviour_values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    value_targets: Float[Array, "B T"]
    weight: Float[Array, "B T"]
    spread: Float[Array, "B T"]


# (rows, outputs, log-probabilities [B, T] of the actions) -> (loss [B, T], what is watched by
# name).
PolicyLoss = Callable[[Rows, Any, Array], tuple[Array, Metrics]]


def decide(
    params: Params,
    observations: Array,
    key: PRNGKeyArray,
    *,
    apply: ActorCriticApply,
    law: ActionLaw,
) -> Decision:
    """Samples an action at every observation.

    Args:
      params: of the actor-critic.
      observations: [..., *observation].
      key: randomness; consumed.
      apply: the actor-critic.
      law: of its actions.

    Returns:
      Choices and their log-probabilities.
    """
    outputs, _ = apply(params, observations)
    choices = law.sample(outputs, key)
    return Decision(choices, law.log_prob(outputs, choices))


def act(
    state: Any,
    observations: Array,
    key: PRNGKeyArray,
    *,
    apply: ActorCriticApply,
    law: ActionLaw,
) -> Array:
    """Samples an action at every observation, as `decide`, from an agent's state.

    Args:
      state: the current state, with `params`.
      observations: [..., *observation].
      key: randomness; consumed.
      apply: the actor-critic.
      law: of its actions.

    Returns:
      Choices; `law.features` of them are continuous actions in [-1, 1].
    """
    return decide(state.params, observations, key, apply=apply, law=law).actions


def advantages_and_targets(
    values: Float[Array, "B S"],
    batch: RolloutBatch,
    *,
    discount: float,
    trace_decay: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns generalised advantages and the targets of values, episode by episode.

    Args:
      values: of x_0 .. x_T. [B, T + 1].
      batch: the rollout.
      discount: gamma.
      trace_decay: lambda.

    Returns:
      Advantages and targets, both gradient-stopped, of no meaning on steps that begin an episode.
      [B, T].
    """
    going_on = ~(_true(batch.terminated) | _true(batch.begins))
    advantages = losses.generalised_advantages(
        batch.rewards,
        values,
        discount * going_on.astype(values.dtype),
        trace_decay=trace_decay * (1.0 - _true(batch.truncated).astype(values.dtype)),
    )
    return advantages, advantages + jax.lax.stop_gradient(values[:, :-1])


def _true(flags: Array) -> Array:
    return jnp.asarray(flags) != 0


def with_advantages(
    params: Params,
    batch: RolloutBatch,
    *,
    apply: ActorCriticApply,
    discount: float,
    trace_decay: float,
) -> RolloutBatch:
    """Returns a rollout with values, advantages and targets, for several updates on parts of it.

    Args:
      params: of the actor-critic, which values the states.
      batch: the rollout, at most without them.
      apply: the actor-critic.
      discount: gamma.
      trace_decay: lambda of generalised advantage estimation.

    Returns:
      The rollout; one that has advantages is returned as it is.
    """
    if batch.advantages is not None:
        return batch
    _, values = jax.lax.stop_gradient(apply(params, batch.observations))
    advantages, targets = advantages_and_targets(
        values, batch, discount=discount, trace_decay=trace_decay
    )
    return batch._replace(
        behaviour_values=values[:, :-1], advantages=advantages, value_targets=targets
    )


def minibatch(batch: RolloutBatch, places: Int[Array, " M"]) -> RolloutBatch:
    """Returns single steps of a rollout as rows of one step each.

    Args:
      batch: a rollout with advantages, which steps alone cannot give.
      places: of the steps, b T + t for step t of row b. [M].

    Returns:
      Rows of T = 1. [M, 1, ...].

    Raises:
      ValueError: the rollout has no advantages.
    """
    if batch.advantages is None:
        raise ValueError("batch must hold advantages (see with_advantages), got None.")
    row, time = jnp.divmod(places, batch.rewards.shape[1])
    observations = batch.observations
    both = jnp.stack([observations[row, time], observations[row, time + 1]], axis=1)
    steps = batch._replace(observations=None, index=None, weight=None)
    picked = jax.tree.map(lambda leaf: leaf[row, time][:, None], steps)
    index, weight = (None if leaf is None else leaf[row] for leaf in (batch.index, batch.weight))
    return picked._replace(observations=both, index=index, weight=weight)


def prepare(
    params: Params,
    batch: RolloutBatch,
    *,
    apply: ActorCriticApply,
    discount: float,
    trace_decay: float,
    normalise_advantages: bool,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Rows:
    """Returns a rollout ready for losses.

    Args:
      params: of the actor-critic, which values the states of a rollout without advantages.
      batch: the rollout, or rows of `minibatch`.
      apply: the actor-critic.
      discount: gamma.
      trace_decay: lambda.
      normalise_advantages: whether the batch's counted advantages are made to average to 0 with a
        standard deviation of 1, over all devices.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The rows.
    """

    def estimates(batch):
        full = with_advantages(
            params, batch, apply=apply, discount=discount, trace_decay=trace_decay
        )
        return full.behaviour_values, full.value_targets, full.advantages

    estimated = updates.map_parts(estimates, batch, accumulate_steps)
    row_weight = updates.row_weights(batch.weight, batch.rewards.shape[0])
    weight = row_weight[:, None] * (1.0 - _true(batch.begins).astype(jnp.float32))

    observations, actions, log_probs, values, targets, advantages = updates.where_counted(
        (
            batch.observations[:, :-1],
            batch.actions,
            batch.behaviour_log_probs,
            *estimated,
        ),
        weight,
    )
    centred, spread = _standard(advantages, weight, axis_name)
    return Rows(
        observations=observations,
        actions=actions,
        behaviour_log_probs=log_probs,
        behaviour_values=values,
        advantages=centred if normalise_advantages else advantages,
        value_targets=targets,
        weight=weight,
        spread=jnp.broadcast_to(spread, weight.shape),
    )


def _standard(values: Array, weight: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Returns values of mean 0 and deviation 1 over the whole batch, and their deviation before."""

    def mean(numbers):
        sums = (jnp.sum(weight * numbers), jnp.sum(weight))
        total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
        return total / jnp.where(count > 0, count, 1.0)

    centred = values - mean(values)
    spread = jnp.sqrt(mean(jnp.square(centred)))
    return centred / jnp.maximum(spread, 1e-8), spread


def step(
    rows: Rows,
    params: Params,
    opt_state: optax.OptState,
    *,
    policy_loss: PolicyLoss,
    apply: ActorCriticApply,
    law: ActionLaw,
    optimizer: optax.GradientTransformation,
    value_coefficient: float,
    value_clip: float | None,
    entropy_coefficient: float,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[Params, optax.OptState, Metrics]:
    """Takes one optimiser step on the mean, over counted steps, of policy and value loss.

    Args:
      rows: the rollout.
      params: of the actor-critic.
      opt_state: the optimiser's state.
      policy_loss: `(rows, outputs, log_probs[B, T]) -> (loss[B, T], watched)`.
      apply: the actor-critic.
      law: of its actions.
      optimizer: any optax transformation.
      value_coefficient: weight of the value loss.
      value_clip: see `losses.ppo_value_loss`.
      entropy_coefficient: weight of the entropy, which is sought.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      New parameters, new optimiser state, and metrics: `loss`, `grad_norm`, `updates/skipped`,
      `loss/policy`, `loss/value`, `policy/entropy`, `kl/behaviour` (of the behaviour from the
      policy, estimated without bias from the actions taken), `values/mean`, `advantages/std`, and
      what `policy_loss` watches.
    """

    def objective(params, rows):
        outputs, values = apply(params, rows.observations)
        log_probs = law.log_prob(outputs, rows.actions)
        loss, watched = policy_loss(rows, outputs, log_probs)
        value_loss = losses.ppo_value_loss(
            values, rows.behaviour_values, rows.value_targets, clip_epsilon=value_clip
        )
        entropy = law.entropy(outputs)
        log_ratios = log_probs - rows.behaviour_log_probs
        watched = watched | {
            "loss/policy": loss,
            "loss/value": value_loss,
            "policy/entropy": entropy,
            "kl/behaviour": jnp.expm1(log_ratios) - log_ratios,
            "values/mean": values,
            "advantages/std": rows.spread,
        }
        total = loss + value_coefficient * value_loss - entropy_coefficient * entropy
        return updates.weighted_sums(total, rows.weight, watched)

    return updates.gradient_step(
        objective,
        params,
        opt_state,
        batch=rows,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )


class Learner(NamedTuple):
    """What agents of rollouts are made of, with everything bound that `bind` takes.

    Attributes:
      prepare: `(params, batch) -> Rows`.
      step: `(rows, params, opt_state, *, policy_loss) -> (params, opt_state, metrics)`.
    """

    prepare: Callable[[Params, RolloutBatch], Rows]
    step: Callable[..., tuple[Params, optax.OptState, Metrics]]


def bind(
    apply: ActorCriticApply,
    law: ActionLaw,
    optimizer: optax.GradientTransformation,
    *,
    discount: float,
    trace_decay: float,
    value_coefficient: float,
    value_clip: float | None,
    entropy_coefficient: float,
    normalise_advantages: bool,
    accumulate_steps: int,
    axis_name: str | None,
) -> Learner:
    """Binds what `prepare` and `step` share over a run; the arguments are theirs.

    Args:
      apply: the actor-critic.
      law: of its actions.
      optimizer: any optax transformation.
      discount: in [0, 1].
      trace_decay: in [0, 1].
      value_coefficient: >= 0.
      value_clip: > 0, or None.
      entropy_coefficient: >= 0.
      normalise_advantages: see `prepare`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which batches are spread, or None.

    Returns:
      Both functions.

    Raises:
      ValueError: a number is out of range.
    """
    for name, value in (("discount", discount), ("trace_decay", trace_decay)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}.")
    weights = {"value_coefficient": value_coefficient, "entropy_coefficient": entropy_coefficient}
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    if value_clip is not None and not value_clip > 0:
        raise ValueError(f"value_clip must be positive or None, got {value_clip}.")
    return Learner(
        prepare=functools.partial(
            prepare,
            apply=apply,
            discount=discount,
            trace_decay=trace_decay,
            normalise_advantages=normalise_advantages,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
        step=functools.partial(
            step,
            apply=apply,
            law=law,
            optimizer=optimizer,
            value_coefficient=value_coefficient,
            value_clip=value_clip,
            entropy_coefficient=entropy_coefficient,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
