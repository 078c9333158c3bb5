"""TD3: a deterministic policy and an ensemble of critics, from transitions of any behaviour.

Every step fits all critics to one target, the least of the target critics' values at the target
policy's smoothed action. Every `policy_delay` steps the policy ascends the first critic, and both
targets follow. Actions are in [-1, 1]; exploration noise is the caller's to add.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, optimizers, transitions, updates
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch

# (params, observations[..., D]) -> actions[..., A] in [-1, 1].
ActorApply = Callable[[Params, Array], Float[Array, "... A"]]
# (params, observations[..., D], actions[..., A]) -> values[..., E] of an ensemble.
CriticApply = Callable[[Params, Array, Array], Float[Array, "... E"]]


class Networks(NamedTuple):
    """Parameters of both networks.

    Attributes:
      actor: of the policy.
      critic: of the ensemble of critics.
    """

    actor: Params
    critic: Params


class State(NamedTuple):
    """All that changes.

    Attributes:
      actor_params: the policy's parameters.
      critic_params: the critics'.
      target_actor_params: the target policy's.
      target_critic_params: the target critics'.
      actor_opt_state: the optimiser's state for the policy.
      critic_opt_state: the optimiser's state for the critics.
      step: optimiser steps of the critics taken so far.
    """

    actor_params: Params
    critic_params: Params
    target_actor_params: Params
    target_critic_params: Params
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    step: Int[Array, ""]


def init(
    key: PRNGKeyArray,
    example_batch: TransitionBatch | None = None,
    *,
    params: Networks | None = None,
    reference_params: Networks | None = None,
    init_params: Callable[[PRNGKeyArray], Networks],
    optimizer: optax.GradientTransformation,
    actor_optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from fresh ones; the targets are copies.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: of policy and critics, copied; None for fresh ones.
      reference_params: of the target policy and target critics, copied; None for a copy of the
        others.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation, of the critics.
      actor_optimizer: of the policy.

    Returns:
      The first state.
    """
    del example_batch
    start = updates.copy_tree(init_params(key) if params is None else params)
    target = updates.copy_tree(start if reference_params is None else reference_params)
    return State(
        actor_params=start.actor,
        critic_params=start.critic,
        target_actor_params=target.actor,
        target_critic_params=target.critic,
        actor_opt_state=actor_optimizer.init(start.actor),
        critic_opt_state=optimizer.init(start.critic),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    state: State,
    observations: Float[Array, "*B D"],
    key: PRNGKeyArray | None = None,
    *,
    actor: ActorApply,
) -> Float[Array, "*B A"]:
    """Returns the policy's actions, without exploration.

    Args:
      state: the current state.
      observations: [..., D].
      key: not needed, and there for the signature that all agents share.
      actor: the policy.

    Returns:
      Actions in [-1, 1]. [..., A].
    """
    del key
    return actor(state.actor_params, observations)


def action_values(
    state: State,
    observations: Float[Array, "*B D"],
    actions: Float[Array, "*B A"],
    *,
    critic: CriticApply,
) -> Float[Array, "*B"]:
    """Returns the least of the critics' values.

    Args:
      state: the current state.
      observations: [..., D].
      actions: [..., A].
      critic: the ensemble.

    Returns:
      Values of the current policy. [...].
    """
    return jnp.min(critic(state.critic_params, observations, actions), axis=-1)


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    actor: ActorApply,
    critic: CriticApply,
    optimizer: optax.GradientTransformation,
    actor_optimizer: optax.GradientTransformation,
    discount: float,
    target_rule: followers.FollowRule,
    policy_delay: int,
    smoothing_noise: float,
    smoothing_clip: float,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step of the critics, and every `policy_delay` steps one of policy and targets.

    Args:
      state: the current state; may be donated.
      batch: transitions with rewards; `next_actions` and `tasks` are not read.
      key: of the smoothing noise, the same on every device; consumed.
      actor: the policy.
      critic: the ensemble of critics.
      optimizer: any optax transformation, of the critics.
      actor_optimizer: of the policy.
      discount: gamma.
      target_rule: how the targets follow.
      policy_delay: steps of the critics to one of the policy.
      smoothing_noise: standard deviation of the noise on the target policy's actions.
      smoothing_clip: the most that the noise moves an action.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm` (both of the critics), `updates/skipped` (of
      both optimisers), `q/mean` (least of the critics, at actions of the data), `policy/loss` (in
      every step, also in those that leave the policy as it is).

    Raises:
      ValueError: the batch holds no rewards.
    """
    rows = transitions.rows(batch, axis_name)
    if batch.rewards is None:
        raise ValueError("batch must hold rewards, which the critics learn from, got None.")

    def critic_objective(params, rows):
        batch = rows.batch
        next_actions = losses.target_policy_smoothing(
            actor(state.target_actor_params, batch.next_observations),
            transitions.noise(key, rows.numbers, batch.actions.shape[-1]),
            scale=smoothing_noise,
            clip=smoothing_clip,
        )
        targets = losses.clipped_double_q_target(
            critic(state.target_critic_params, batch.next_observations, next_actions),
            batch.rewards,
            discount * rows.going_on,
        )
        values = critic(params, batch.observations, batch.actions)
        loss = losses.td3_critic_loss(values, targets)
        return updates.weighted_sums(loss, rows.weight, {"q/mean": jnp.min(values, axis=-1)})

    take_step = functools.partial(
        updates.gradient_step, batch=rows, axis_name=axis_name, accumulate_steps=accumulate_steps
    )
    critic_params, critic_opt_state, metrics = take_step(
        critic_objective, state.critic_params, state.critic_opt_state, optimizer=optimizer
    )

    def policy_loss_of(params, rows):
        actions = actor(params, rows.batch.observations)
        values = critic(critic_params, rows.batch.observations, actions)[..., 0]
        return losses.deterministic_policy_loss(values)

    def actor_objective(params, rows):
        return updates.weighted_sums(policy_loss_of(params, rows), rows.weight)

    step = state.step + 1

    def improve():
        params, opt_state, found = take_step(
            actor_objective, state.actor_params, state.actor_opt_state, optimizer=actor_optimizer
        )
        target_actor = target_rule(state.target_actor_params, params, step)
        target_critic = target_rule(state.target_critic_params, critic_params, step)
        return params, target_actor, target_critic, opt_state, found["loss"]

    def keep():
        each = functools.partial(policy_loss_of, state.actor_params)
        sums = updates.weighted_sums(updates.map_parts(each, rows, accumulate_steps), rows.weight)
        total = sums.loss, sums.count
        loss, count = total if axis_name is None else jax.lax.psum(total, axis_name)
        loss = jnp.asarray(loss / jnp.where(count > 0, count, 1.0), jnp.float32)
        targets = state.target_actor_params, state.target_critic_params
        return state.actor_params, *targets, state.actor_opt_state, loss

    actor_params, target_actor_params, target_critic_params, actor_opt_state, policy_loss = (
        improve() if policy_delay == 1 else jax.lax.cond(step % policy_delay == 0, improve, keep)
    )
    skipped = optimizers.skipped_updates((critic_opt_state, actor_opt_state))
    metrics["updates/skipped"] = jnp.asarray(skipped, jnp.float32)
    new = State(
        actor_params=actor_params,
        critic_params=critic_params,
        target_actor_params=target_actor_params,
        target_critic_params=target_critic_params,
        actor_opt_state=actor_opt_state,
        critic_opt_state=critic_opt_state,
        step=step,
    )
    return new, metrics | {"policy/loss": policy_loss}


def make(
    actor: ActorApply,
    critic: CriticApply,
    optimizer: optax.GradientTransformation,
    *,
    init_params: Callable[[PRNGKeyArray], Networks],
    actor_optimizer: optax.GradientTransformation | None = None,
    discount: float = 0.99,
    target_decay: float = 0.995,
    policy_delay: int = 2,
    smoothing_noise: float = 0.2,
    smoothing_clip: float = 0.5,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of TD3; the defaults are the paper's.

    Args:
      actor: `(params, observations[..., D]) -> actions[..., A]` in [-1, 1], such as
        `networks.mlp.apply` of a configuration with `output_tanh`.
      critic: `(params, observations[..., D], actions[..., A]) -> values[..., E]`.
      optimizer: any optax transformation, of the critics, and of the policy unless it has its own.
      init_params: makes fresh `Networks` from a key.
      actor_optimizer: of the policy; None for `optimizer`, with a state of its own.
      discount: gamma in [0, 1].
      target_decay: in [0, 1], weight of the old target in each step of the targets.
      policy_delay: steps of the critics to one of policy and targets, at least 1.
      smoothing_noise: >= 0, standard deviation of the noise on the target policy's actions.
      smoothing_clip: >= 0, the most that the noise moves an action.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `update` takes a `TransitionBatch` with rewards and needs a key.

    Raises:
      ValueError: a number is out of range.

    References:
      Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, 2018.
      https://arxiv.org/abs/1802.09477
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in [0, 1], got {discount}.")
    if not 0 <= target_decay <= 1:
        raise ValueError(f"target_decay must be in [0, 1], got {target_decay}.")
    if policy_delay < 1:
        raise ValueError(f"policy_delay must be at least 1, got {policy_delay}.")
    for name, value in (("smoothing_noise", smoothing_noise), ("smoothing_clip", smoothing_clip)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    actor_optimizer = optimizer if actor_optimizer is None else actor_optimizer
    return Agent(
        init=functools.partial(
            init, init_params=init_params, optimizer=optimizer, actor_optimizer=actor_optimizer
        ),
        act=functools.partial(act, actor=actor),
        update=functools.partial(
            update,
            actor=actor,
            critic=critic,
            optimizer=optimizer,
            actor_optimizer=actor_optimizer,
            discount=discount,
            target_rule=followers.average(target_decay),
            policy_delay=policy_delay,
            smoothing_noise=smoothing_noise,
            smoothing_clip=smoothing_clip,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
