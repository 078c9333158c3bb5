"""PPO: several steps on one rollout, each ratio of probabilities clipped where it has gone far.

The caller plays a rollout (`rollouts.decide`), estimates its advantages once
(`rollouts.with_advantages`), and calls `update` on shuffled parts of it (`rollouts.minibatch`) for
some epochs. Called on a whole rollout without advantages, `update` estimates them itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from bellmax import losses
from bellmax.agents import rollouts, supervised
from bellmax.agents.action_laws import ActionLaw
from bellmax.agents.agent import Agent, Metrics, Params, RolloutBatch

State = supervised.State


def update(
    state: State,
    batch: RolloutBatch,
    key: PRNGKeyArray | None = None,
    *,
    clip_epsilon: float,
    learner: rollouts.Learner,
) -> tuple[State, Metrics]:
    """Takes one step on the mean, over steps of the environments, of PPO's loss.

    Args:
      state: the current state; may be donated.
      batch: a rollout, or a minibatch of one.
      key: not needed, and there for the signature that all agents share.
      clip_epsilon: how far a ratio may go from 1.
      learner: from `rollouts.bind`.

    Returns:
      The new state and the metrics of `rollouts.step`, with `policy/clipped`, the share of ratios
      that are further from 1 than `clip_epsilon`.
    """
    del key
    rows = learner.prepare(state.params, batch)

    def policy_loss(rows: rollouts.Rows, outputs: Any, log_probs):
        del outputs
        loss = losses.ppo_clip_loss(
            log_probs, rows.behaviour_log_probs, rows.advantages, clip_epsilon=clip_epsilon
        )
        far = jnp.abs(jnp.expm1(log_probs - rows.behaviour_log_probs)) > clip_epsilon
        return loss, {"policy/clipped": far.astype(jnp.float32)}

    params, opt_state, metrics = learner.step(
        rows, state.params, state.opt_state, policy_loss=policy_loss
    )
    return State(params, opt_state, state.step + 1), metrics


def make(
    apply: rollouts.ActorCriticApply,
    optimizer: optax.GradientTransformation,
    *,
    law: ActionLaw,
    init_params: Callable[[PRNGKeyArray], Params],
    discount: float = 0.99,
    trace_decay: float = 0.95,
    clip_epsilon: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
    entropy_coefficient: float = 0.0,
    normalise_advantages: bool = True,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of PPO.

    Args:
      apply: `(params, observations[..., *observation]) -> (outputs, values[...])`.
      optimizer: any optax transformation.
      law: what the outputs mean, see `agents.action_laws`.
      init_params: makes fresh parameters from a key.
      discount: gamma in [0, 1].
      trace_decay: lambda in [0, 1] of generalised advantage estimation.
      clip_epsilon: >= 0, how far a ratio may go from 1.
      value_coefficient: >= 0, weight of the value loss, which has a factor 1/2.
      value_clip: > 0, how far a value may move in the direction of its target, in the unit of the
        values; None for no limit.
      entropy_coefficient: >= 0, weight of the entropy.
      normalise_advantages: whether each batch's advantages are made to have mean 0 and standard
        deviation 1.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `act` samples choices of the law, `update` takes a `RolloutBatch`.

    Raises:
      ValueError: a number is out of range.

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, 2017.
      https://arxiv.org/abs/1707.06347
    """
    learner = rollouts.bind(
        apply,
        law,
        optimizer,
        discount=discount,
        trace_decay=trace_decay,
        value_coefficient=value_coefficient,
        value_clip=value_clip,
        entropy_coefficient=entropy_coefficient,
        normalise_advantages=normalise_advantages,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )
    if not clip_epsilon >= 0:
        raise ValueError(f"clip_epsilon must be at least 0, got {clip_epsilon}.")
    return Agent(
        init=functools.partial(supervised.init, init_params=init_params, optimizer=optimizer),
        act=functools.partial(rollouts.act, apply=apply, law=law),
        update=functools.partial(
            update,
            clip_epsilon=clip_epsilon,
            learner=learner,
        ),
    )
