r"""Off-policy mirror descent policy optimisation (MDPO), from transitions of any behaviour.

.. math:: L_\pi = E_{a \sim \pi} \left[ \left( \tfrac{1}{t} - \lambda \right)
          \log \frac{\pi(a)}{\pi_k(a)} + \lambda \log \pi(a) - Q_1(s, a) \right]

.. math:: L_Q = \tfrac12 \sum_e (Q_e(s, a) - y)^2, \quad y = r + \gamma E_{a' \sim \pi}
          [\min_e \bar Q_e(s', a') - \lambda \log \pi(a')]

pi_k is a copy of the policy, renewed every m updates. With lambda = 1 / t it drops out, and the
method is soft actor-critic with a fixed temperature. Expectations are exact where actions are
discrete, and one reparameterised sample where they are continuous.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from bellmax import losses
from bellmax.agents import action_laws, followers, optimizers, td3, transitions, updates
from bellmax.agents.action_laws import ActionLaw
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch

# Its target actor is pi_k.
State = td3.State
# (params, observations[..., *observation]) -> outputs of the law.
ActorApply = Callable[[Params, Array], Any]


def act(
    state: State,
    observations: Array,
    key: PRNGKeyArray,
    *,
    actor: ActorApply,
    law: ActionLaw,
) -> Array:
    """Samples an action at every observation.

    Args:
      state: the current state.
      observations: [..., *observation].
      key: randomness; consumed.
      actor: the policy.
      law: of its actions.

    Returns:
      Choices; `law.features` of them are what the batches hold.
    """
    return law.sample(actor(state.actor_params, observations), key)


def _per_row(
    law: ActionLaw, outputs: Any, key: PRNGKeyArray, numbers: Array
) -> tuple[Array, Array]:
    """Returns the support of each row's law, sampled alike on any layout of devices."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    return jax.vmap(law.support)(outputs, keys)


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    actor: ActorApply,
    critic: td3.CriticApply,
    law: ActionLaw,
    optimizer: optax.GradientTransformation,
    actor_optimizer: optax.GradientTransformation,
    discount: float,
    inverse_step: float,
    entropy_weight: float,
    output_penalty: float,
    target_rule: followers.FollowRule,
    old_rule: followers.FollowRule,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step of the critics and one of the policy; the copies of both follow.

    Args:
      state: the current state; may be donated.
      batch: transitions with rewards, `actions` the features of the law's choices.
      key: of the samples, the same on every device; consumed.
      actor: the policy.
      critic: the ensemble of critics.
      law: of the policy's actions.
      optimizer: any optax transformation, of the critics.
      actor_optimizer: of the policy.
      discount: gamma.
      inverse_step: 1 / t.
      entropy_weight: lambda.
      output_penalty: weight of the mean square of the policy's outputs.
      target_rule: how the target critics follow.
      old_rule: how pi_k does.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm` (both of the critics), `updates/skipped` (of
      both optimisers), `q/mean` (least of the critics, at actions of the data), `policy/loss`,
      `policy/log_prob` (of its own actions), `kl/old` (of the policy from pi_k, in closed form).

    Raises:
      ValueError: the batch holds no rewards.
    """
    rows = transitions.rows(batch, axis_name)
    if batch.rewards is None:
        raise ValueError("batch must hold rewards, which the critics learn from, got None.")
    next_key, policy_key = jax.random.split(key)

    def values_of(params: Params, observations: Array, choices: Array) -> Array:
        """Returns the critics' values of several choices. [B, N, E]."""
        count = choices.shape[1]
        shape = (observations.shape[0], count, *observations.shape[1:])
        return critic(params, jnp.broadcast_to(observations[:, None], shape), law.features(choices))

    def critic_objective(params, rows):
        batch = rows.batch
        outputs = actor(state.actor_params, batch.next_observations)
        choices, chances = _per_row(law, outputs, next_key, rows.numbers)
        log_probs = action_laws.log_probs_of_many(law, outputs, choices)
        next_values = values_of(state.target_critic_params, batch.next_observations, choices)
        soft = jnp.min(next_values, axis=-1) - entropy_weight * log_probs
        targets = losses.clipped_double_q_target(
            jnp.sum(chances * soft, axis=1, keepdims=True),
            batch.rewards,
            discount * rows.going_on,
        )
        values = critic(params, batch.observations, batch.actions)
        loss = losses.td3_critic_loss(values, targets) / 2
        return updates.weighted_sums(loss, rows.weight, {"q/mean": jnp.min(values, axis=-1)})

    take_step = functools.partial(
        updates.gradient_step, batch=rows, axis_name=axis_name, accumulate_steps=accumulate_steps
    )
    critic_params, critic_opt_state, metrics = take_step(
        critic_objective, state.critic_params, state.critic_opt_state, optimizer=optimizer
    )

    def actor_objective(params, rows):
        observations = rows.batch.observations
        outputs = actor(params, observations)
        old = jax.lax.stop_gradient(actor(state.target_actor_params, observations))
        choices, chances = _per_row(law, outputs, policy_key, rows.numbers)
        log_probs = action_laws.log_probs_of_many(law, outputs, choices)
        each = losses.mdpo_off_policy_loss(
            log_probs,
            action_laws.log_probs_of_many(law, old, choices),
            values_of(critic_params, observations, choices)[..., 0],
            inverse_step=inverse_step,
            entropy_weight=entropy_weight,
        )
        squares = sum(jnp.mean(jnp.square(leaf), axis=-1) for leaf in jax.tree.leaves(outputs))
        loss = jnp.sum(chances * each, axis=1) + output_penalty * squares
        watched = {
            "policy/log_prob": jnp.sum(chances * log_probs, axis=1),
            "kl/old": law.kl(outputs, old),
        }
        return updates.weighted_sums(loss, rows.weight, watched)

    actor_params, actor_opt_state, found = take_step(
        actor_objective, state.actor_params, state.actor_opt_state, optimizer=actor_optimizer
    )
    step = state.step + 1
    skipped = optimizers.skipped_updates((critic_opt_state, actor_opt_state))
    metrics |= {
        "updates/skipped": jnp.asarray(skipped, jnp.float32),
        "policy/loss": found["loss"],
        "policy/log_prob": found["policy/log_prob"],
        "kl/old": found["kl/old"],
    }
    new = State(
        actor_params=actor_params,
        critic_params=critic_params,
        target_actor_params=old_rule(state.target_actor_params, actor_params, step),
        target_critic_params=target_rule(state.target_critic_params, critic_params, step),
        actor_opt_state=actor_opt_state,
        critic_opt_state=critic_opt_state,
        step=step,
    )
    return new, metrics


def make(
    actor: ActorApply,
    critic: td3.CriticApply,
    optimizer: optax.GradientTransformation,
    *,
    law: ActionLaw,
    init_params: Callable[[PRNGKeyArray], td3.Networks],
    actor_optimizer: optax.GradientTransformation | None = None,
    discount: float = 0.99,
    target_decay: float = 0.995,
    inverse_step: float = 1.0,
    entropy_weight: float = 0.2,
    num_inner_steps: int = 1000,
    output_penalty: float = 0.0,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of off-policy MDPO; the defaults are the official code's.

    The code bootstraps from a network of state values; here the target critics and the policy give
    them, as in later soft actor-critics.

    Args:
      actor: `(params, observations[..., *observation]) -> outputs` of the law.
      critic: `(params, observations[..., *observation], features[..., A]) -> values[..., E]`; the
        first of them teaches the policy.
      optimizer: any optax transformation, of the critics, and of the policy unless it has its own.
      law: what the outputs mean; a squashed Gaussian for continuous actions.
      init_params: makes fresh `td3.Networks` from a key.
      actor_optimizer: of the policy; None for `optimizer`, with a state of its own.
      discount: gamma in [0, 1].
      target_decay: in [0, 1], weight of the old target in each step of the target critics.
      inverse_step: 1 / t >= 0, in units of the value a nat.
      entropy_weight: lambda >= 0, in the same unit.
      num_inner_steps: m, updates between renewals of pi_k, at least 1.
      output_penalty: >= 0, weight of the mean square of each of the policy's outputs; 1e-3 in the
        code.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `act` samples choices of the law, `update` takes a `TransitionBatch` with rewards,
      its `actions` features of such choices, and needs a key.

    Raises:
      ValueError: a number is out of range.

    References:
      Tomar et al., Mirror Descent Policy Optimization, 2020. https://arxiv.org/abs/2005.09814
      Haarnoja et al., Soft Actor-Critic, 2018. https://arxiv.org/abs/1801.01290
    """
    for name, value in (("discount", discount), ("target_decay", target_decay)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}.")
    for name, value in (
        ("inverse_step", inverse_step),
        ("entropy_weight", entropy_weight),
        ("output_penalty", output_penalty),
    ):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    if num_inner_steps < 1:
        raise ValueError(f"num_inner_steps must be at least 1, got {num_inner_steps}.")
    actor_optimizer = optimizer if actor_optimizer is None else actor_optimizer
    return Agent(
        init=functools.partial(
            td3.init, init_params=init_params, optimizer=optimizer, actor_optimizer=actor_optimizer
        ),
        act=functools.partial(act, actor=actor, law=law),
        update=functools.partial(
            update,
            actor=actor,
            critic=critic,
            law=law,
            optimizer=optimizer,
            actor_optimizer=actor_optimizer,
            discount=discount,
            inverse_step=inverse_step,
            entropy_weight=entropy_weight,
            output_penalty=output_penalty,
            target_rule=followers.average(target_decay),
            old_rule=followers.every(num_inner_steps),
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
