r"""On-policy mirror descent policy optimisation (MDPO): gradient steps near the last policy.

.. math:: L = -\frac{\pi(a)}{\pi_k(a)} A + \frac{1}{t_k} KL(\pi, \pi_k) + c (V - G)^2 / 2

Iteration k is a rollout and some gradient steps on it, with pi_k, the policy of the rollout, frozen
in the state. The divergence is exact, the NEW policy first. With a single step it has no gradient,
and the method is plain policy gradient; with many, the policy goes to
:math:`\pi_k \exp(t_k A)` where it can.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, rollouts
from bellmax.agents.action_laws import ActionLaw
from bellmax.agents.agent import Agent, Metrics, Params, RolloutBatch

# Its target is the frozen policy pi_k.
State = followers.TargetState
# (iteration k) -> t_k > 0.
StepSizes = Callable[[Int[Array, ""]], Float[Array, ""]]


def declining_steps(num_iterations: int) -> StepSizes:
    """Returns the paper's step sizes t_k = 1 - k / K, for k = 0 .. K - 1; later ones are 1 / K.

    Args:
      num_iterations: K, at least 1.

    Returns:
      The step size of each iteration.

    Raises:
      ValueError: `num_iterations` is below 1.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}.")

    def step_size(iteration):
        left = jnp.maximum(num_iterations - iteration, 1)
        return left.astype(jnp.float32) / num_iterations

    return step_size


def update(
    state: State,
    batch: RolloutBatch,
    key: PRNGKeyArray | None = None,
    *,
    apply: rollouts.ActorCriticApply,
    law: ActionLaw,
    step_sizes: StepSizes,
    num_inner_steps: int,
    learner: rollouts.Learner,
) -> tuple[State, Metrics]:
    """Takes one of the gradient steps of an iteration; after the last, pi_k is the policy again.

    Args:
      state: the current state; may be donated.
      batch: what pi_k has played, or a minibatch of it.
      key: not needed, and there for the signature that all agents share.
      apply: the actor-critic.
      law: of its actions.
      step_sizes: t_k of iteration k.
      num_inner_steps: gradient steps of an iteration.
      learner: from `rollouts.bind`.

    Returns:
      The new state and the metrics of `rollouts.step`, with `kl/old` (of the policy from pi_k) and
      `policy/step_size`.
    """
    del key
    # pi_k values the states as well, so that every step of an iteration has the same advantages.
    rows = learner.prepare(state.target_params, batch)
    size = step_sizes(state.step // num_inner_steps)

    def policy_loss(rows, outputs, log_probs):
        old, _ = jax.lax.stop_gradient(apply(state.target_params, rows.observations))
        old_log_probs = law.log_prob(old, rows.actions)
        divergence = law.kl(outputs, old)
        loss = losses.mdpo_surrogate_loss(
            log_probs, old_log_probs, rows.advantages, divergence, inverse_step=1 / size
        )
        return loss, {
            "kl/old": divergence,
            "policy/step_size": jnp.broadcast_to(size, loss.shape),
        }

    params, opt_state, metrics = learner.step(
        rows, state.params, state.opt_state, policy_loss=policy_loss
    )
    taken = state.step + 1
    target = followers.every(num_inner_steps)(state.target_params, params, taken)
    return State(params, target, opt_state, taken), metrics


def make(
    apply: rollouts.ActorCriticApply,
    optimizer: optax.GradientTransformation,
    *,
    law: ActionLaw,
    init_params: Callable[[PRNGKeyArray], Params],
    num_inner_steps: int = 10,
    step_sizes: StepSizes = jnp.ones_like,
    discount: float = 0.99,
    trace_decay: float = 0.95,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
    entropy_coefficient: float = 0.0,
    normalise_advantages: bool = True,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of on-policy MDPO.

    Args:
      apply: `(params, observations[..., *observation]) -> (outputs, values[...])`.
      optimizer: any optax transformation.
      law: what the outputs mean, see `agents.action_laws`.
      init_params: makes fresh parameters from a key.
      num_inner_steps: m, gradient steps of an iteration, which all see the same rollout.
      step_sizes: `(k) -> t_k > 0`, such as `declining_steps`; 1 by default.
      discount: gamma in [0, 1].
      trace_decay: lambda in [0, 1] of generalised advantage estimation.
      value_coefficient: >= 0, weight of the value loss, which has a factor 1/2.
      value_clip: > 0, how far a value may move in the direction of its target in an iteration, in
        the unit of the values; None for no limit. The paper's code has 0.2, and rewards that are
        divided by a running scale.
      entropy_coefficient: >= 0, weight of the entropy; the paper has none.
      normalise_advantages: whether each batch's advantages are made to have mean 0 and standard
        deviation 1, as in the paper's code.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `act` samples choices of the law, `update` takes a `RolloutBatch`.

    Raises:
      ValueError: a number is out of range.

    References:
      Tomar et al., Mirror Descent Policy Optimization, 2020. https://arxiv.org/abs/2005.09814
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
    if num_inner_steps < 1:
        raise ValueError(f"num_inner_steps must be at least 1, got {num_inner_steps}.")
    return Agent(
        init=functools.partial(
            followers.init_with_target, init_params=init_params, optimizer=optimizer
        ),
        act=functools.partial(rollouts.act, apply=apply, law=law),
        update=functools.partial(
            update,
            apply=apply,
            law=law,
            step_sizes=step_sizes,
            num_inner_steps=num_inner_steps,
            learner=learner,
        ),
    )
