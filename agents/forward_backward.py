r"""Forward-backward representations: policies for all rewards, from transitions without rewards.

A task is a vector w. The networks are learnt so that for every task

.. math:: F(s, a, w)^\top B(s^+) \approx \frac{M^{\pi_w}(s, a, ds^+)}{\rho(ds^+)}, \qquad
          \pi_w(s) = \arg\max_a F(s, a, w)^\top w,

with M the successor measure of `losses.forward_backward` and rho the law of the batches' next
states. A reward r(s') is then the task :math:`w_r = E_\rho[B(s') r(s')]`, whose value under the
policy of any task w is :math:`F(s, a, w)^\top w_r`: generalised policy improvement may take, in
each state, the best policy of a whole family by `action_values`.

Tasks live on the sphere of radius sqrt(W). That scales a reward by a positive number and leaves its
best policy; values in the reward's own units need `reward_vector`, which is not scaled.

Examples of a batch meet each other's next states, so losses and gradients are those of the whole
batch over all devices: what a device lacks is gathered.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, optimizers, task_sphere, transitions, updates
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch

# (params, observations[..., D], actions[..., A], tasks[..., W]) -> F[..., E, W], E heads.
ForwardApply = Callable[[Params, Array, Array, Array], Float[Array, "... E W"]]
# (params, observations[..., D]) -> B[..., W].
BackwardApply = Callable[[Params, Array], Float[Array, "... W"]]
# (params, observations[..., D], tasks[..., W]) -> actions[..., A] in [-1, 1].
ActorApply = Callable[[Params, Array, Array], Float[Array, "... A"]]


class Representations(NamedTuple):
    """Parameters of the two representations.

    Attributes:
      forward: of F.
      backward: of B.
    """

    forward: Params
    backward: Params


class Networks(NamedTuple):
    """Parameters of all three networks.

    Attributes:
      actor: of the policies.
      forward: of F.
      backward: of B.
    """

    actor: Params
    forward: Params
    backward: Params


class State(NamedTuple):
    """All that changes.

    Attributes:
      actor_params: the policies' parameters.
      params: those of F and B.
      target_params: those of the target F and B.
      actor_opt_state: the optimiser's state for the policies.
      opt_state: the optimiser's state for F and B.
      step: optimiser steps taken so far.
    """

    actor_params: Params
    params: Representations
    target_params: Representations
    actor_opt_state: optax.OptState
    opt_state: optax.OptState
    step: Int[Array, ""]


def reward_vector(
    state: State,
    observations: Float[Array, "N D"],
    rewards: Float[Array, " N"],
    weight: Float[Array, " N"] | None = None,
    *,
    backward: BackwardApply,
) -> Float[Array, " W"]:
    r"""Returns a reward as a vector, :math:`w_r = E_\rho[B(s') r(s')]`, in the reward's own units.

    Args:
      state: the current state.
      observations: states that are reached, distributed as the next states of training. [N, D].
      rewards: of reaching them. [N].
      weight: of each state, 0 for padding; None for ones. [N].
      backward: B.

    Returns:
      The vector: F(s, a, w)^T w_r is the value of the reward under the policy of w. [W].
    """
    counts = jnp.ones_like(rewards) if weight is None else weight
    observations = jnp.where(counts[:, None] > 0, observations, 0)
    share = jnp.where(counts > 0, rewards, 0) * counts / jnp.sum(counts)
    return share @ backward(state.params.backward, observations)


def task_vector(
    state: State,
    observations: Float[Array, "N D"],
    rewards: Float[Array, " N"],
    weight: Float[Array, " N"] | None = None,
    *,
    backward: BackwardApply,
) -> Float[Array, " W"]:
    """Returns the task of a reward: `reward_vector` on the sphere of radius sqrt(W).

    Args:
      state: the current state.
      observations: states that are reached, distributed as the next states of training. [N, D].
      rewards: of reaching them. [N].
      weight: of each state, 0 for padding; None for ones. [N].
      backward: B.

    Returns:
      The task. [W].
    """
    return task_sphere.on_sphere(
        reward_vector(state, observations, rewards, weight, backward=backward)
    )


def action_values(
    state: State,
    observations: Float[Array, "*B D"],
    actions: Float[Array, "*B A"],
    policy_tasks: Float[Array, "*B W"],
    reward_tasks: Float[Array, "*B W"],
    *,
    forward: ForwardApply,
) -> Float[Array, "*B"]:
    r"""Returns values of a reward under policies of other tasks, :math:`\min_e F_e(s, a, w)^T w_r`.

    Args:
      state: the current state.
      observations: [..., D].
      actions: taken first. [..., A].
      policy_tasks: w, whose policy follows. [..., W].
      reward_tasks: w_r, by `reward_vector` or, up to a positive factor, `task_vector`. [..., W].
      forward: F.

    Returns:
      The least of the heads' values. [...].
    """
    features = forward(state.params.forward, observations, actions, policy_tasks)
    return jnp.min(jnp.sum(features * reward_tasks[..., None, :], axis=-1), axis=-1)


def act(
    state: State,
    observations: Float[Array, "*B D"],
    key: PRNGKeyArray | None,
    tasks: Float[Array, "*B W"],
    *,
    actor: ActorApply,
) -> Float[Array, "*B A"]:
    """Returns the actions of the policies of tasks, without exploration.

    Args:
      state: the current state.
      observations: [..., D].
      key: not needed, and there for the signature that all agents share.
      tasks: w on the sphere of radius sqrt(W). [..., W].
      actor: the policies.

    Returns:
      Actions in [-1, 1]. [..., A].
    """
    del key
    return actor(state.actor_params, observations, tasks)


def init(
    key: PRNGKeyArray,
    example_batch: TransitionBatch | None = None,
    *,
    params: Networks | None = None,
    reference_params: Representations | None = None,
    init_params: Callable[[PRNGKeyArray], Networks],
    optimizer: optax.GradientTransformation,
    actor_optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from fresh ones; the targets are copies.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: of all networks, copied; None for fresh ones.
      reference_params: of the target F and B, copied; None for a copy of the others.
      init_params: makes fresh parameters from a key.
      optimizer: any optax transformation, of F and B.
      actor_optimizer: of the policies.

    Returns:
      The first state.
    """
    del example_batch
    start = updates.copy_tree(init_params(key) if params is None else params)
    learnt = Representations(start.forward, start.backward)
    return State(
        actor_params=start.actor,
        params=learnt,
        target_params=updates.copy_tree(learnt if reference_params is None else reference_params),
        actor_opt_state=actor_optimizer.init(start.actor),
        opt_state=optimizer.init(learnt),
        step=jnp.zeros((), jnp.int32),
    )


class _Pool(NamedTuple):
    """The whole batch, over all devices, as each of this device's rows sees it."""

    gather: Callable[[Array], Array]
    weight: Float[Array, " N"]
    others: Float[Array, "B N"]


def _pool(rows: transitions.Rows, axis_name: str | None) -> _Pool:
    def gather(values):
        return values if axis_name is None else jax.lax.all_gather(values, axis_name, tiled=True)

    weight = gather(rows.weight)
    own = rows.places[:, None] == jnp.arange(weight.shape[0])[None, :]
    # A row's own next state is no sample of rho that is independent of the row.
    return _Pool(gather, weight, jnp.where(own, 0, weight[None, :]))


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    forward: ForwardApply,
    backward: BackwardApply,
    actor: ActorApply,
    optimizer: optax.GradientTransformation,
    actor_optimizer: optax.GradientTransformation,
    discount: float,
    target_rule: followers.FollowRule,
    orthonormality_weight: float,
    state_fraction: float,
    smoothing_noise: float,
    smoothing_clip: float,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step of F and B, then one of the policies.

    Args:
      state: the current state; may be donated.
      batch: transitions; `rewards` and `next_actions` are not read. `tasks` None draws them, see
        `task_sphere.training_tasks`.
      key: of tasks and smoothing noise, the same on every device; consumed.
      forward: F.
      backward: B.
      actor: the policies.
      optimizer: any optax transformation, of F and B.
      actor_optimizer: of the policies.
      discount: gamma.
      target_rule: how the target F and B follow.
      orthonormality_weight: of the loss that keeps B orthonormal.
      state_fraction: share of the tasks that are states of the batch.
      smoothing_noise: standard deviation of the noise on the target's actions.
      smoothing_clip: the most that the noise moves an action.
      accumulate_steps: parts of a batch that the networks see one after another, F and B twice; see
        `updates.map_parts`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm` (both of F and B), `updates/skipped` (of both
      optimisers), `forward_backward/loss`, `orthonormality/loss`, `policy/loss`.
    """
    rows = transitions.rows(batch, axis_name)
    pool, tasks = _pool(rows, axis_name), rows.batch.tasks
    in_parts = functools.partial(updates.map_parts, accumulate_steps=accumulate_steps)
    task_key, noise_key = jax.random.split(key)
    if tasks is None:
        seen = in_parts(functools.partial(backward, state.params.backward), rows.batch.observations)
        tasks = task_sphere.training_tasks(
            task_key, rows.numbers, pool.gather(seen), pool.weight, state_fraction=state_fraction
        )
    rows = rows._replace(batch=rows.batch._replace(tasks=tasks))

    def features(params, batch):
        ahead = forward(params.forward, batch.observations, batch.actions, batch.tasks)
        return ahead, backward(params.backward, batch.next_observations)

    def target_features(rows):
        batch = rows.batch
        next_actions = losses.target_policy_smoothing(
            actor(state.actor_params, batch.next_observations, batch.tasks),
            transitions.noise(noise_key, rows.numbers, batch.actions.shape[-1]),
            scale=smoothing_noise,
            clip=smoothing_clip,
        )
        ahead = batch._replace(observations=batch.next_observations, actions=next_actions)
        return features(state.target_params, ahead)

    target_forward, target_reached = in_parts(target_features, rows)

    def objective(params, rows):
        # Only the networks see parts: in the losses every row meets all the others.
        ahead, reached = in_parts(functools.partial(features, params), rows.batch)
        reached_by_all = pool.gather(reached)
        measure = losses.forward_backward_loss(
            ahead,
            reached,
            reached_by_all,
            target_forward,
            pool.gather(target_reached),
            discount * rows.going_on,
            pool_weights=pool.others,
        )
        spread = losses.orthonormality_loss(reached, reached_by_all, pool_weights=pool.others)
        watched = {"forward_backward/loss": measure, "orthonormality/loss": spread}
        return updates.weighted_sums(measure + orthonormality_weight * spread, rows.weight, watched)

    take_step = functools.partial(updates.gradient_step, batch=rows, axis_name=axis_name)
    params, opt_state, metrics = take_step(
        objective, state.params, state.opt_state, optimizer=optimizer
    )

    def actor_objective(actor_params, rows):
        observations, tasks = rows.batch.observations, rows.batch.tasks
        actions = actor(actor_params, observations, tasks)
        features = forward(params.forward, observations, actions, tasks)
        values = jnp.min(jnp.sum(features * tasks[..., None, :], axis=-1), axis=-1)
        return updates.weighted_sums(losses.deterministic_policy_loss(values), rows.weight)

    actor_params, actor_opt_state, policy_metrics = take_step(
        actor_objective,
        state.actor_params,
        state.actor_opt_state,
        optimizer=actor_optimizer,
        accumulate_steps=accumulate_steps,
    )
    step = state.step + 1
    target = target_rule(state.target_params, params, step)
    skipped = optimizers.skipped_updates((opt_state, actor_opt_state))
    metrics["updates/skipped"] = jnp.asarray(skipped, jnp.float32)
    metrics["policy/loss"] = policy_metrics["loss"]
    return State(actor_params, params, target, actor_opt_state, opt_state, step), metrics


def make(
    forward: ForwardApply,
    backward: BackwardApply,
    actor: ActorApply,
    optimizer: optax.GradientTransformation,
    *,
    init_params: Callable[[PRNGKeyArray], Networks],
    actor_optimizer: optax.GradientTransformation | None = None,
    discount: float = 0.98,
    target_decay: float = 0.99,
    orthonormality_weight: float = 1.0,
    state_fraction: float = 0.5,
    smoothing_noise: float = 0.2,
    smoothing_clip: float = 0.3,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of forward-backward representations.

    The defaults are those of the authors' code, but for the discount, which is that of Temporal
    Difference Flows.

    Args:
      forward: `(params, observations[..., D], actions[..., A], tasks[..., W]) -> F[..., E, W]`;
        the least of E heads is the target.
      backward: `(params, observations[..., D]) -> B[..., W]`; the authors end it with
        `task_sphere.on_sphere`.
      actor: `(params, observations[..., D], tasks[..., W]) -> actions[..., A]` in [-1, 1].
      optimizer: any optax transformation, of F and B together, and of the policies unless they have
        their own.
      init_params: makes fresh `Networks` from a key.
      actor_optimizer: of the policies; None for `optimizer`, with a state of its own.
      discount: gamma in [0, 1).
      target_decay: in [0, 1], weight of the old target in each step of the target.
      orthonormality_weight: >= 0; beside the losses as the papers print them, which are twice
        `losses.forward_backward_loss`, the same weight is twice as large.
      state_fraction: in [0, 1], share of the tasks that are B of states of the batch; the others
        are uniform on the sphere.
      smoothing_noise: >= 0, standard deviation of the noise on the target's actions.
      smoothing_clip: >= 0, the most that the noise moves an action.
      accumulate_steps: parts of a batch that the networks see one after another, F and B twice;
        gradients of F and B add up in the precision of their parameters (`updates.map_parts`).
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `update` takes a `TransitionBatch` and needs a key, and `act` also takes tasks.

    Raises:
      ValueError: a number is out of range.

    References:
      Touati and Ollivier, Learning One Representation to Optimize All Rewards, 2021.
      https://arxiv.org/abs/2103.07945
      Touati et al., Does Zero-Shot Reinforcement Learning Exist?, 2022.
      https://arxiv.org/abs/2209.14935
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")
    for name, value in (("target_decay", target_decay), ("state_fraction", state_fraction)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}.")
    for name, value in (
        ("orthonormality_weight", orthonormality_weight),
        ("smoothing_noise", smoothing_noise),
        ("smoothing_clip", smoothing_clip),
    ):
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
            forward=forward,
            backward=backward,
            actor=actor,
            optimizer=optimizer,
            actor_optimizer=actor_optimizer,
            discount=discount,
            target_rule=followers.average(target_decay),
            orthonormality_weight=orthonormality_weight,
            state_fraction=state_fraction,
            smoothing_noise=smoothing_noise,
            smoothing_clip=smoothing_clip,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
