r"""Generalised policy improvement: in each state, the policy of a family that is worth most there.

.. math:: w_t = \arg\max_w Q^{\pi_w}(s_t, \pi_w(s_t)), \qquad a_t = \pi_{w_t}(s_t)

With exact values the policy that does so is nowhere worse than any policy of the family, and may be
better than all of them. The values are those of a model of future states that is conditioned on
tasks (`model_value`), or of forward-backward representations (`forward_backward_value`); the
policies that are compared are drawn by `candidate_tasks`.

References:
  Barreto et al., Successor Features for Transfer in Reinforcement Learning, 2017.
  https://arxiv.org/abs/1606.05312
  Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import forward_backward, horizon, task_sphere

# (observations[B, D], tasks[B, W]) -> actions[B, A].
PolicyFn = Callable[[Array, Array], Float[Array, "B A"]]
# (observations[B, D], actions[B, A], tasks[B, W]) -> values[B] of the action and then the policy.
ValueFn = Callable[[Array, Array, Array], Float[Array, " B"]]
# (key, task of the reward[W], count) -> tasks[count, W].
DrawFn = Callable[[PRNGKeyArray, Array, int], Float[Array, "count W"]]


class Plan(NamedTuple):
    """What is done in each state, and why.

    Attributes:
      actions: of the chosen policies. [B, A].
      chosen: place of the chosen policy among the candidates. [B].
      values: of every candidate. [B, P].
    """

    actions: Float[Array, "B A"]
    chosen: Int[Array, " B"]
    values: Float[Array, "B P"]


def gpi_act(
    observations: Float[Array, "B D"],
    tasks: Float[Array, "P W"],
    *,
    policy_fn: PolicyFn,
    value_fn: ValueFn,
    chunk_size: int | None = None,
) -> Plan:
    """Acts in each state by the policy that is worth most there.

    Of equal policies the first is taken; one whose value is NaN never is, unless all are.

    Args:
      observations: states. [B, D].
      tasks: of the candidate policies. [P, W].
      policy_fn: `(observations[B, D], tasks[B, W]) -> actions[B, A]`.
      value_fn: `(observations[B, D], actions[B, A], tasks[B, W]) -> values[B]`, such as
        `model_value`.
      chunk_size: policies that are valued side by side, which bounds the memory; None for all.

    Returns:
      Actions, choices and values.

    Raises:
      ValueError: `chunk_size` is below 1, or there is no candidate.
      AssertionError: a shape is not the one above.
    """
    chex.assert_rank([observations, tasks], 2)
    batch, count = observations.shape[0], tasks.shape[0]
    if count < 1:
        raise ValueError(f"tasks must hold at least one candidate, got shape {tasks.shape}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")

    def one(task):
        own = jnp.broadcast_to(task, (batch, task.shape[0]))
        actions = policy_fn(observations, own)
        values = value_fn(observations, actions, own)
        chex.assert_shape(values, (batch,))
        return actions, values

    size = count if chunk_size is None else min(chunk_size, count)
    actions, values = jax.lax.map(one, tasks, batch_size=size)
    values = jnp.moveaxis(values, 0, 1)
    chosen = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values), axis=-1)
    return Plan(actions[chosen, jnp.arange(batch)], chosen, values)


def model_value(
    sample: Callable[[Array, Array], Float[Array, "B N D"]],
    reward_fn: Callable[[Array], Float[Array, "B N"]],
    key: PRNGKeyArray,
    *,
    num_samples: int,
    noise_size: int,
    discount: float,
) -> ValueFn:
    r"""Returns values by a model of future states, :math:`(1 - \gamma)^{-1} mean_j r(X_j)`.

    All policies and states are valued with the same noise: what a sample owes to chance is then
    largely common to the policies, and falls out of their comparison. Over steps the key has to
    change, so that no draw is held against a policy for ever.

    Args:
      sample: `(noise[..., Z], condition[..., C]) -> samples[..., D]`, a model with its parameters
        bound, such as `td_flow.sample`; conditions are `horizon.condition`'s, with tasks.
      reward_fn: r, of the states reached in the model's units. [B, N, D] -> [B, N].
      key: of the noise; consumed.
      num_samples: N, of each state and policy, at least 1.
      noise_size: Z; D for flows and diffusion.
      discount: gamma in [0, 1), the model's.

    Returns:
      `(observations[B, D], actions[B, A], tasks[B, W]) -> values[B]`.

    Raises:
      ValueError: a number is out of range.
    """
    horizon.check_discount(discount)
    for name, number in (("num_samples", num_samples), ("noise_size", noise_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    noise = jax.random.normal(key, (num_samples, noise_size))

    def value_fn(observations, actions, tasks):
        given = horizon.condition(observations, actions, tasks)
        batch = given.shape[0]
        samples = sample(
            jnp.broadcast_to(noise, (batch, *noise.shape)),
            jnp.broadcast_to(given[:, None], (batch, num_samples, given.shape[-1])),
        )
        return horizon.value(samples, reward_fn, discount=discount)

    return value_fn


def forward_backward_value(
    state: forward_backward.State,
    reward_task: Float[Array, " W"],
    *,
    forward: forward_backward.ForwardApply,
) -> ValueFn:
    r"""Returns values by forward-backward representations, :math:`F(s, a, w)^\top w_r`.

    Args:
      state: of the representations.
      reward_task: w_r, by `forward_backward.reward_vector` for the reward's own units, or by
        `forward_backward.task_vector`. [W].
      forward: F.

    Returns:
      `(observations[B, D], actions[B, A], tasks[B, W]) -> values[B]`.
    """

    def value_fn(observations, actions, tasks):
        own = jnp.broadcast_to(reward_task, tasks.shape)
        return forward_backward.action_values(
            state, observations, actions, tasks, own, forward=forward
        )

    return value_fn


def uniform_tasks() -> DrawFn:
    """Returns the draw of tasks from anywhere on the sphere of radius sqrt(W)."""

    def draw(key, reward_task, count):
        return task_sphere.sample_tasks(key, count, reward_task.shape[0])

    return draw


def nearby_tasks(scale: float) -> DrawFn:
    """Returns the draw of tasks around that of the reward, on the sphere of radius sqrt(W).

    Args:
      scale: >= 0, length of the random step off the reward's task, in units of its own length.

    Returns:
      `(key, reward_task[W], count) -> tasks[count, W]`.

    Raises:
      ValueError: `scale` is out of range.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, got {scale}.")

    def draw(key, reward_task, count):
        steps = task_sphere.sample_tasks(key, count, reward_task.shape[0])
        return task_sphere.on_sphere(task_sphere.on_sphere(reward_task) + scale * steps)

    return draw


def trained_tasks(embeddings: Float[Array, "N W"], *, state_fraction: float) -> DrawFn:
    """Returns the draw of tasks as forward-backward training makes it: states, and anywhere.

    Args:
      embeddings: B of states of the data, one of which a task is to reach. [N, W].
      state_fraction: in [0, 1], share of such tasks; the others are uniform.

    Returns:
      `(key, reward_task[W], count) -> tasks[count, W]`.

    Raises:
      ValueError: `state_fraction` is out of range.
    """
    if not 0 <= state_fraction <= 1:
        raise ValueError(f"state_fraction must be in [0, 1], got {state_fraction}.")
    weight = jnp.ones(embeddings.shape[0])

    def draw(key, reward_task, count):
        chex.assert_shape(embeddings, (weight.shape[0], reward_task.shape[0]))
        return task_sphere.training_tasks(
            key, jnp.arange(count), embeddings, weight, state_fraction=state_fraction
        )

    return draw


def candidate_tasks(
    key: PRNGKeyArray, reward_task: Float[Array, " W"], count: int, *, draw: DrawFn
) -> Float[Array, "P W"]:
    """Returns the tasks of the policies to choose from, that of the reward first.

    Args:
      key: randomness; consumed.
      reward_task: w_r, of any length above 0. [W].
      count: P, the reward's own included, at least 1; 256 in Temporal Difference Flows.
      draw: the others, one of `uniform_tasks`, `nearby_tasks` and `trained_tasks`.

    Returns:
      Tasks on the sphere of radius sqrt(W). [P, W].

    Raises:
      ValueError: `count` is below 1.
      AssertionError: a shape is not the one above.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    chex.assert_rank(reward_task, 1)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    own = task_sphere.on_sphere(reward_task)[None]
    if count == 1:
        return own
    others = draw(key, reward_task, count - 1)
    chex.assert_shape(others, (count - 1, reward_task.shape[0]))
    return jnp.concatenate([own, others])
