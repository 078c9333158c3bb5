"""Temporal-difference flows: a generative model of future states, learnt from transitions.

The network is a function of parameters, points, times and conditions, such as `networks.flow.apply`
of a configuration; what it predicts and learns from is an `Objective` of `horizon_objectives`:

    TD-CFM, TD-CFM(C), TD2-CFM    td_cfm(), coupled_td_cfm(), td2_cfm()
    TD-DD, TD2-DD                 td_dd(), td2_dd()
    Monte-Carlo flow matching     monte_carlo(), given samples of the future as next states

`sample`, `value` of any reward and `log_likelihood` are what the model is for; `planning` chooses
among the policies of a model that is conditioned on tasks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, horizon, updates
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch
from bellmax.agents.horizon import State
from bellmax.agents.horizon_objectives import Draws, Objective
from bellmax.losses.ode import VelocityFn

# (params, point[..., D], time[...], condition[..., C]) -> prediction[..., D].
Apply = Callable[[Params, Array, Array, Array], Array]


def _bound(apply: Apply, params: Params, condition: Array) -> VelocityFn:
    return lambda point, time: apply(params, point, time, condition)


def sample(
    params: Params,
    noise: Float[Array, "*B D"],
    condition: Float[Array, "*B C"],
    *,
    apply: Apply,
    objective: Objective,
    num_steps: int = 10,
) -> Float[Array, "*B D"]:
    """Returns samples of future states, one for each row of noise.

    Args:
      params: the model's parameters.
      noise: samples of N(0, I). [..., D].
      condition: see `horizon.condition`. [..., C], the leading axes those of `noise`.
      apply: the network.
      objective: that it was trained by.
      num_steps: steps of the solver: midpoint for flows (two evaluations each), DDIM for diffusion.

    Returns:
      Samples. [..., D].
    """
    return objective.sample(_bound(apply, params, condition), noise, num_steps)


def value(
    params: Params,
    observations: Float[Array, "*B D"],
    actions: Float[Array, "*B A"],
    key: PRNGKeyArray,
    tasks: Float[Array, "*B W"] | None = None,
    *,
    reward_fn: Callable[[Array], Array],
    apply: Apply,
    objective: Objective,
    discount: float,
    num_samples: int = 128,
    num_steps: int = 10,
) -> Float[Array, "*B"]:
    r"""Returns values of any reward from samples of the future, :math:`E[r(X)] / (1 - \gamma)`.

    Args:
      params: the model's parameters.
      observations: states. [..., D].
      actions: taken there, before the model's policy goes on. [..., A].
      key: of the samples; consumed.
      tasks: which policy of a family; None where there is one. [..., W].
      reward_fn: r, of the states that are reached. [..., N, D] -> [..., N].
      apply: the network.
      objective: that it was trained by.
      discount: gamma in [0, 1), the model's.
      num_samples: N, of each state and action.
      num_steps: steps of the solver, see `sample`.

    Returns:
      Values. [...].

    Raises:
      ValueError: `discount` or `num_samples` is out of range.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    given = horizon.condition(observations, actions, tasks)
    places = (*given.shape[:-1], num_samples)
    noise = jax.random.normal(key, (*places, observations.shape[-1]))
    given = jnp.broadcast_to(given[..., None, :], (*places, given.shape[-1]))
    samples = sample(params, noise, given, apply=apply, objective=objective, num_steps=num_steps)
    return horizon.value(samples, reward_fn, discount=discount)


def log_likelihood(
    params: Params,
    points: Float[Array, "*B D"],
    condition: Float[Array, "*B C"],
    *,
    apply: Apply,
    objective: Objective,
    num_steps: int = 20,
    probes: Float[Array, "*B P D"] | None = None,
) -> Float[Array, "*B"]:
    """Returns the log-density of points as future states.

    Args:
      params: the model's parameters.
      points: where. [..., D].
      condition: see `horizon.condition`. [..., C].
      apply: the network.
      objective: that it was trained by.
      num_steps: steps of the solver.
      probes: for an estimated trace, see `losses.flow_log_likelihood`.

    Returns:
      Log-densities in nats, summed over the D features. [...].
    """
    velocity = objective.flow(_bound(apply, params, condition))
    return losses.flow_log_likelihood(velocity, points, num_steps=num_steps, probes=probes)


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    discount: float,
    target_rule: followers.FollowRule,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean loss of the transitions.

    Args:
      state: the current state; may be donated.
      batch: the transitions.
      key: of times and noise, the same on every device.
      apply: the network.
      optimizer: any optax transformation.
      objective: what is predicted and learnt.
      discount: gamma.
      target_rule: how the target follows.
      policy_fn: the evaluated policy, for batches without `next_actions`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm`, `updates/skipped`.

    Raises:
      ValueError: nothing says what the policy does at the next state.
    """
    rows = horizon.examples(
        batch,
        discount=discount,
        policy_fn=policy_fn,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )
    size = rows.next_states.shape[-1]

    def loss_fn(params, rows):
        draws = Draws(*horizon.draw(key, rows.numbers, size, size, size))
        target = _bound(apply, state.target_params, rows.next_condition)
        network = _bound(apply, params, rows.condition)
        return objective.loss(network, target, rows.next_states, draws, rows.discount)

    params, opt_state, metrics = updates.mean_loss_step(
        loss_fn,
        state.params,
        state.opt_state,
        batch=rows,
        weight=rows.weight,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )
    step = state.step + 1
    return State(params, target_rule(state.target_params, params, step), opt_state, step), metrics


def make(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective,
    discount: float,
    init_params: Callable[[PRNGKeyArray], Params],
    target_rule: followers.FollowRule | None = None,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of a temporal-difference flow.

    Args:
      apply: `(params, point[..., D], time[...], condition[..., C]) -> prediction[..., D]`,
        such as `networks.flow.apply` of a configuration.
      optimizer: any optax transformation; the paper's is AdamW.
      objective: from `horizon_objectives`.
      discount: gamma in [0, 1).
      init_params: makes fresh parameters from a key.
      target_rule: how the target follows; None for the paper's `followers.average(0.999)`.
      policy_fn: `(observations[B, D], tasks[B, W] or None) -> actions[B, A]`, the evaluated policy;
        None where batches bring `next_actions`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `act` is None, `update` takes a `TransitionBatch`.

    Raises:
      ValueError: `discount` is out of range.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    horizon.check_discount(discount)
    return Agent(
        init=functools.partial(
            followers.init_with_target, init_params=init_params, optimizer=optimizer
        ),
        act=None,
        update=functools.partial(
            update,
            apply=apply,
            optimizer=optimizer,
            objective=objective,
            discount=discount,
            target_rule=followers.average(0.999) if target_rule is None else target_rule,
            policy_fn=policy_fn,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
