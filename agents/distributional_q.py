r"""Distributional Q-learning from sequences of any behaviour: one step, Q(lambda), Retrace.

The target of a sequence is a sum of multi-step backups with weights that may be negative,

.. math:: \sum_t c_{1:t} \, (G_t + D_t Z) \, [\eta^\pi(x_{t + 1}) - c_{t + 1} \eta(x_{t + 1},
          a_{t + 1})]

with one trace coefficient c a step, which `trace_fn` gives: constant for Q(lambda), which needs no
importance sampling; clipped importance weights for Retrace; 0 for one step. The target policy is
the greedy one mixed with the behaviour: pi = alpha greedy + (1 - alpha) mu.

What a return's law is, atoms or quantiles, is a `return_laws.ReturnLaw`. The agent holds no replay
and steps no environment; sequences come as `SequenceBatch`es, with the resets of
`wrappers.auto_reset` in them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import backups, followers, updates
from bellmax.agents.agent import Agent, Metrics, Params, SequenceBatch
from bellmax.agents.backups import Backup
from bellmax.agents.return_laws import ReturnLaw
from bellmax.losses import TraceFn

# (params, observations[..., *shape], key) -> outputs[..., A, K]; the key, or None, is for noisy
# layers.
Apply = Callable[[Params, Array, PRNGKeyArray | None], Float[Array, "... A K"]]


State = followers.TargetState
init = followers.init_with_target


def q_values(
    params: Params,
    observations: Array,
    key: PRNGKeyArray | None = None,
    *,
    apply: Apply,
    law: ReturnLaw,
) -> Float[Array, "... A"]:
    """Returns the value of every action.

    Args:
      params: the network's parameters.
      observations: [..., *observation_shape].
      key: of noisy layers; consumed. None for their mean weights.
      apply: the network.
      law: what its outputs are.

    Returns:
      Expected returns. [..., A].
    """
    return law.expectation(apply(params, observations, key))


def epsilon_greedy(values: Float[Array, "... A"], epsilon: float | Array) -> Float[Array, "... A"]:
    """Returns the law that takes the best action, and with probability epsilon any.

    Args:
      values: of the actions; the lowest index among equals is the best. [..., A].
      epsilon: in [0, 1].

    Returns:
      Probabilities. [..., A].
    """
    count = values.shape[-1]
    best = jax.nn.one_hot(jnp.argmax(values, axis=-1), count)
    return (1 - epsilon) * best + epsilon / count


def behaviour(
    state: State,
    observations: Array,
    key: PRNGKeyArray,
    *,
    apply: Apply,
    law: ReturnLaw,
    epsilon: Callable[[Any], Any],
) -> Float[Array, "... A"]:
    """Returns the law of the actions that `act` samples with the same key, which a replay keeps.

    Args:
      state: the current state.
      observations: [..., *observation_shape].
      key: of noisy layers; the law is that of their actions given this noise.
      apply: the network.
      law: what its outputs are.
      epsilon: exploration by optimiser step.

    Returns:
      Probabilities. [..., A].
    """
    noise_key, _ = jax.random.split(key)
    values = q_values(state.params, observations, noise_key, apply=apply, law=law)
    return epsilon_greedy(values, epsilon(state.step))


def act(
    state: State,
    observations: Array,
    key: PRNGKeyArray,
    *,
    apply: Apply,
    law: ReturnLaw,
    epsilon: Callable[[Any], Any],
) -> Int[Array, "..."]:
    """Samples actions from `behaviour` under the same key.

    Args:
      state: the current state.
      observations: [..., *observation_shape].
      key: randomness; consumed.
      apply: the network.
      law: what its outputs are.
      epsilon: exploration by optimiser step.

    Returns:
      Actions. [...].
    """
    _, sample_key = jax.random.split(key)
    probs = behaviour(state, observations, key, apply=apply, law=law, epsilon=epsilon)
    return jax.random.categorical(sample_key, jnp.log(probs))


def greedy(state: State, observations: Array, *, apply: Apply, law: ReturnLaw) -> Int[Array, "..."]:
    """Returns the best actions by the mean weights, without exploration.

    Args:
      state: the current state.
      observations: [..., *observation_shape].
      apply: the network.
      law: what its outputs are.

    Returns:
      Actions. [...].
    """
    return jnp.argmax(q_values(state.params, observations, apply=apply, law=law), axis=-1)


class _Targets(NamedTuple):
    """What the update and the temporal-difference errors share."""

    next_outputs: Float[Array, "B T A K"]
    next_values: Float[Array, "B T A"]
    backup: Backup


def _targets(state, batch, keys, *, apply, law, trace_fn, mixing, discount, double) -> _Targets:
    rest = batch.observations[:, 1:]
    next_outputs = apply(state.target_params, rest, keys[0])
    chosen_by = apply(state.params, rest, keys[1]) if double else next_outputs
    found = backups.backup(
        batch, law.expectation(chosen_by), trace_fn=trace_fn, mixing=mixing, discount=discount
    )
    return _Targets(next_outputs, law.expectation(next_outputs), found)


def _of_taken(outputs: Array, batch: SequenceBatch) -> Float[Array, "B K"]:
    return jnp.take_along_axis(outputs, batch.actions[:, 0, None, None], axis=1)[:, 0]


def _noise_keys(key: PRNGKeyArray | None) -> list[Any]:
    """Keys of the target network, of the one that chooses, and of the one that learns."""
    return [None] * 3 if key is None else list(jax.random.split(key, 3))


def td_errors(
    state: State,
    batch: SequenceBatch,
    key: PRNGKeyArray | None = None,
    *,
    apply: Apply,
    law: ReturnLaw,
    trace_fn: TraceFn,
    mixing: float,
    discount: float,
    double: bool,
) -> Float[Array, " B"]:
    """Returns the errors of the first actions' values, by which a replay may set priorities.

    In one jitted function with `update`, under the same key, XLA computes the networks once, unless
    `update` learns in parts.

    Args:
      state: the state before the update.
      batch: the sequences.
      key: the update's.
      apply: the network.
      law: what its outputs are.
      trace_fn: see `backups.backup`.
      mixing: see `backups.backup`.
      discount: gamma.
      double: whether the online network, and not the target, says what is greedy.

    Returns:
      Scalar return of the same traces minus the value; 0 for sequences of weight 0. [B].
    """
    keys = _noise_keys(key)
    found = _targets(
        state,
        batch,
        keys,
        apply=apply,
        law=law,
        trace_fn=trace_fn,
        mixing=mixing,
        discount=discount,
        double=double,
    )
    returns = losses.off_policy_returns(
        found.next_values,
        found.backup.policy,
        found.backup.next_actions,
        batch.rewards,
        found.backup.discounts,
        found.backup.traces,
    )
    values = law.expectation(
        _of_taken(apply(state.params, batch.observations[:, 0], keys[2]), batch)
    )
    errors = returns[:, 0] - values
    return errors if batch.weight is None else jnp.where(batch.weight > 0, errors, 0.0)


def update(
    state: State,
    batch: SequenceBatch,
    key: PRNGKeyArray | None = None,
    *,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    law: ReturnLaw,
    trace_fn: TraceFn,
    mixing: float,
    discount: float,
    target_rule: followers.FollowRule,
    double: bool,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean loss of the sequences' first actions.

    Args:
      state: the current state; may be donated.
      batch: the sequences.
      key: of noisy layers, the same on every device; None for their mean weights.
      apply: the network.
      optimizer: any optax transformation.
      law: what the outputs are.
      trace_fn: see `backups.backup`.
      mixing: see `backups.backup`.
      discount: gamma.
      target_rule: how the target network follows.
      double: whether the online network, and not the target, says what is greedy.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm`, `updates/skipped`, `q/mean` (of the actions
      taken), `traces/mean`.
    """
    keys = _noise_keys(key)

    def objective(params, batch):
        found = _targets(
            state,
            batch,
            keys,
            apply=apply,
            law=law,
            trace_fn=trace_fn,
            mixing=mixing,
            discount=discount,
            double=double,
        )
        steps = found.backup
        weight = updates.row_weights(batch.weight, batch.rewards.shape[0])
        first = updates.where_counted(batch.observations[:, 0], weight)
        taken = updates.where_counted(_of_taken(apply(params, first, keys[2]), batch), weight)
        loss = law.loss(
            taken,
            found.next_outputs,
            steps.policy,
            steps.next_actions,
            batch.rewards,
            steps.discounts,
            steps.traces,
        )
        traces = steps.traces.mean(axis=-1) if steps.traces.size else jnp.zeros_like(loss)
        watched = {"q/mean": law.expectation(taken), "traces/mean": traces}
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
    step = state.step + 1
    target = target_rule(state.target_params, params, step)
    return State(params, target, opt_state, step), metrics


def make(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    law: ReturnLaw,
    init_params: Callable[[PRNGKeyArray], Params],
    trace_fn: TraceFn,
    target_rule: followers.FollowRule,
    epsilon: Callable[[Any], Any],
    mixing: float = 1.0,
    discount: float = 0.99,
    double: bool = False,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of distributional Q-learning.

    Args:
      apply: `(params, observations[..., *shape], key or None) -> outputs[..., A, K]`, such as
        `networks.value.apply` of a configuration; the key is for noisy layers.
      optimizer: any optax transformation.
      law: what the outputs are: `return_laws.categorical(...)` or `return_laws.quantile(...)`.
      init_params: makes fresh parameters from a key.
      trace_fn: `(policy_probs, behaviour_probs) -> traces`, each of the actions taken.
      target_rule: how the target network follows, `followers.every(n)` or `followers.average(b)`.
      epsilon: exploration of `act` by optimiser step, such as an optax schedule.
      mixing: alpha in [0, 1], the weight of the greedy policy in the target policy; 0.6 to 0.8 are
        said to be best for Q(lambda).
      discount: gamma in [0, 1].
      double: whether the online network says what is greedy.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `update` takes a `SequenceBatch`.

    Raises:
      ValueError: a number is out of range.

    References:
      Tang et al., Off-policy Distributional Q(lambda), 2024. https://arxiv.org/abs/2402.05766
    """
    for name, value in (("mixing", mixing), ("discount", discount)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}.")
    acting = functools.partial(act, apply=apply, law=law, epsilon=epsilon)
    return Agent(
        init=functools.partial(init, init_params=init_params, optimizer=optimizer),
        act=acting,
        update=functools.partial(
            update,
            apply=apply,
            optimizer=optimizer,
            law=law,
            trace_fn=trace_fn,
            mixing=mixing,
            discount=discount,
            target_rule=target_rule,
            double=double,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
