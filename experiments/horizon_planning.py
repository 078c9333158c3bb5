"""Returns in the maze of the ways to use a family of policies for a reward, on the same starts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import forward_backward, horizon_objectives, planning, td_flow
from bellmax.envs import maze
from bellmax.experiments import horizon_family
from bellmax.experiments.horizon_family import Family, Networks, Settings
from bellmax.experiments.horizon_pushes import PHYSICS, advance

# States [B, 4] in metres -> actions [B, 2].
Policy = Callable[[Array], Array]
# (states [B, 4], key) -> the policy of a step, and whether it is the reward's own [B].
Choose = Callable[[Array, PRNGKeyArray], tuple[Policy, Array]]

WAYS = ("policy of the reward", "best candidate", "FB-GPI", "model-GPI", "random", "controller")


class Plan(NamedTuple):
    """How the ways are compared.

    Attributes:
      tasks: names of rewards that have a scripted controller.
      num_starts: states all over the maze, nearly at rest, that all ways begin from.
      num_trials: other starts, by which the best candidate is chosen.
      num_steps: of an episode; 40 are ExoRL's 20 seconds.
      num_candidates: P, the reward's own policy included.
      num_samples: of the model, of each state and policy.
      nearby_scale: how far candidates are from the reward's own task, see `planning.nearby_tasks`.
    """

    tasks: tuple[str, ...] = (
        "reach_top_left",
        "reach_top_right",
        "reach_bottom_left",
        "reach_bottom_right",
    )
    num_starts: int = 32
    num_trials: int = 32
    num_steps: int = 40
    num_candidates: int = 16
    num_samples: int = 16
    nearby_scale: float = 1.0


class Scores(NamedTuple):
    """Mean returns over the starts, by task and by way.

    Attributes:
      discounted: sums of discounted rewards. [K, M].
      total: sums of rewards. [K, M].
      kept: share of the steps at which GPI keeps to the reward's own policy, by FB and by the
        model. [K, 2].
    """

    discounted: Float[np.ndarray, "K M"]
    total: Float[np.ndarray, "K M"]
    kept: Float[np.ndarray, "K 2"]


def rewards(tasks: tuple[str, ...], number: Array, states: Array) -> Array:
    """Returns what states pay, for the task of a number that may be traced.

    Args:
      tasks: names.
      number: place of the task among them.
      states: in metres. [..., 4].

    Returns:
      Rewards. [...].
    """
    return jax.lax.switch(number, [functools.partial(maze.reward, task) for task in tasks], states)


def follow(
    choose: Choose,
    starts: Float[Array, "B 4"],
    reward_fn: Callable[[Array], Array],
    key: PRNGKeyArray,
    *,
    num_steps: int,
    discount: float,
    reacts: bool = False,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, ""]]:
    """Returns what acting pays from each start.

    Args:
      choose: the policy of a step.
      starts: in metres. [B, 4].
      reward_fn: of the states reached.
      key: of what is random in choosing; consumed.
      num_steps: of an episode.
      discount: of a step.
      reacts: whether a policy may change its push within a step.

    Returns:
      Discounted returns [B], undiscounted ones [B], and the share of choices of the reward's own.
    """

    def step(states, number):
        policy, own = choose(states, jax.random.fold_in(key, number))
        states = advance(states, policy, reacts=reacts)
        return states, (reward_fn(states), jnp.mean(own))

    _, (paid, own) = jax.lax.scan(step, starts, jnp.arange(num_steps))
    weights = discount ** jnp.arange(num_steps, dtype=paid.dtype)
    return weights @ paid, paid.sum(axis=0), own.mean()


def _by_task(family: Family, networks: Networks, tasks: Array) -> Policy:
    def policy(states):
        own = jnp.broadcast_to(tasks, (states.shape[0], tasks.shape[-1]))
        inputs = family.scale.to_model(states)
        return networks.actor(family.policies.actor_params, inputs, own)

    return policy


def _always(policy: Policy) -> Choose:
    return lambda states, key: (policy, jnp.zeros(states.shape[0]))


def _random(states: Array, key: PRNGKeyArray) -> tuple[Policy, Array]:
    actions = jax.random.uniform(key, (states.shape[0], 2), minval=-1.0, maxval=1.0)
    return lambda states: actions, jnp.zeros(states.shape[0])


def _scripted(tasks: tuple[str, ...], number: Array) -> Policy:
    return lambda states: jax.lax.switch(number, [maze.controller(task) for task in tasks], states)


def _planned(
    networks: Networks,
    family: Family,
    candidates: Array,
    make_value: Callable[[PRNGKeyArray], planning.ValueFn],
) -> Choose:
    def choose(states, key):
        found = planning.gpi_act(
            family.scale.to_model(states),
            candidates,
            policy_fn=functools.partial(networks.actor, family.policies.actor_params),
            value_fn=make_value(key),
        )
        return _by_task(family, networks, candidates[found.chosen]), found.chosen == 0

    return choose


class _TaskKeys(NamedTuple):
    trials: PRNGKeyArray
    starts: PRNGKeyArray
    candidates: PRNGKeyArray
    acting: PRNGKeyArray


def _task_keys(plan: Plan, seed: int) -> list[_TaskKeys]:
    key = horizon_family.make_keys(seed).comparison
    return [
        _TaskKeys(*jax.random.split(jax.random.fold_in(key, number), 4))
        for number in range(len(plan.tasks))
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(
    settings: Settings,
    plan: Plan,
    family: Family,
    model: Any,
    number: Array,
    candidates: Array,
    keys: _TaskKeys,
):
    """Scores every way on one task: discounted [M], total [M], kept [2]."""
    networks = horizon_family.make_networks(settings)
    reward_fn = functools.partial(rewards, plan.tasks, number)
    task = candidates[0]
    starts, trials = (
        maze.sample_states(start, count, PHYSICS, speed=0.01)
        for start, count in ((keys.starts, plan.num_starts), (keys.trials, plan.num_trials))
    )
    run = functools.partial(
        follow,
        reward_fn=reward_fn,
        key=keys.acting,
        num_steps=plan.num_steps,
        discount=settings.discount,
    )
    tried = jax.lax.map(
        lambda one: run(_always(_by_task(family, networks, one)), trials)[0].mean(), candidates
    )
    best = candidates[jnp.argmax(tried)]
    sample = functools.partial(
        td_flow.sample,
        model,
        apply=networks.velocity,
        objective=horizon_objectives.td2_cfm(),
        num_steps=settings.plan_steps,
    )

    def by_model(key):
        return planning.model_value(
            sample,
            lambda states: reward_fn(family.scale.from_model(states)),
            key,
            num_samples=plan.num_samples,
            noise_size=4,
            discount=settings.discount,
        )

    by_forward = planning.forward_backward_value(family.policies, task, forward=networks.forward)
    planned = functools.partial(_planned, networks, family, candidates)
    ways: tuple[Choose, ...] = (
        _always(_by_task(family, networks, task)),
        _always(_by_task(family, networks, best)),
        planned(lambda key: by_forward),
        planned(by_model),
        _random,
    )
    found = [run(way, starts) for way in ways]
    found.append(run(_always(_scripted(plan.tasks, number)), starts, reacts=True))
    discounted = jnp.stack([returns.mean() for returns, _, _ in found])
    total = jnp.stack([returns.mean() for _, returns, _ in found])
    return discounted, total, jnp.stack([found[2][2], found[3][2]])


def choose_candidates(
    settings: Settings, plan: Plan, family: Family, seed: int
) -> Float[Array, "K P W"]:
    """Draws the tasks whose policies all ways choose among: each reward's own, and others near it.

    Tasks near the reward's are one of the three draws of the paper. Few policies of tasks from
    anywhere on the sphere pay much, and the model would have to learn them as well.

    Args:
      settings: of the family.
      plan: of the comparison.
      family: the policies.
      seed: of the run.

    Returns:
      Tasks on the sphere of radius sqrt(W). [K, P, W].
    """
    networks = horizon_family.make_networks(settings)
    draw = planning.nearby_tasks(plan.nearby_scale)
    found = []
    for name, keys in zip(plan.tasks, _task_keys(plan, seed), strict=True):
        paid = maze.reward(name, family.scale.from_model(family.pool))
        task = forward_backward.task_vector(
            family.policies, family.pool, paid, backward=networks.backward
        )
        found.append(
            planning.candidate_tasks(keys.candidates, task, plan.num_candidates, draw=draw)
        )
    return jnp.stack(found)


def compare(
    settings: Settings,
    plan: Plan,
    family: Family,
    model: Any,
    candidates: Float[Array, "K P W"],
    seed: int,
) -> Scores:
    """Scores every way on every task.

    Args:
      settings: of the family.
      plan: of the comparison.
      family: the policies.
      model: parameters of the model of what the candidates lead to.
      candidates: of `choose_candidates`.
      seed: of the run.

    Returns:
      Mean returns.
    """
    found = [
        jax.device_get(_compare(settings, plan, family, model, jnp.asarray(number), tasks, keys))
        for number, (tasks, keys) in enumerate(zip(candidates, _task_keys(plan, seed), strict=True))
    ]
    return Scores(*(np.asarray(column, np.float64) for column in zip(*found, strict=True)))
