"""What a `control` run does for all of its seeds at once: starting, training, evaluating."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from bellmax.experiments import control_loop, control_report, control_rollouts, errors, mesh
from bellmax.experiments.control_config import SeedsConfig

# How a seed plays and learns: from a replay, or on its own rollouts.
Setup = control_loop.Setup | control_rollouts.Setup


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      step: steps of the loop so far.
      seeds: the state of every seed. [S, ...].
    """

    step: Int[Array, ""]
    seeds: Any


def check_spread(num_seeds: int, devices: Mesh) -> None:
    """Refuses seeds that devices cannot share evenly.

    Args:
      num_seeds: S.
      devices: the mesh.

    Raises:
      UserError: some would have more than others.
    """
    share = mesh.row_share(devices)
    if num_seeds % share:
        raise errors.UserError(
            f"config.train.num_seeds must be a multiple of the {share} devices that seeds are "
            f"spread over, got {num_seeds}."
        )


def start(setup: Setup, num_seeds: int) -> Callable[[Array], State]:
    """Returns a function of a key that makes the first state.

    Args:
      setup: of each seed.
      num_seeds: S.

    Returns:
      `(key) -> state`, compiled.
    """
    on_rollouts = isinstance(setup, control_rollouts.Setup)
    init: Any = control_rollouts.init if on_rollouts else control_loop.init

    @jax.jit
    def make(key):
        seeds = control_loop.seed_keys(key, jnp.arange(num_seeds))
        states = jax.vmap(functools.partial(init, setup))(seeds)
        return State(jnp.zeros((), jnp.int32), states)

    return make


_SEEDS = PartitionSpec(mesh.BATCH_AXES)
_SEED_AXIS = "seeds"


def sharding(devices: Mesh, state: State) -> Any:
    """Returns where each array of the state lies: seeds are spread over devices.

    Args:
      devices: the mesh.
      state: the state.

    Returns:
      Shardings, in the structure of the state.
    """
    everywhere = NamedSharding(devices, PartitionSpec())
    spread = NamedSharding(devices, _SEEDS)
    seeds = jax.tree.map(lambda _: spread, state.seeds)
    return jax.tree.unflatten(jax.tree.structure(state), [everywhere, *jax.tree.leaves(seeds)])


def _over_seeds(function: Callable[..., Any], devices: Mesh, num_seeds: int):
    """Maps `(state, key) -> ...` over seeds, each with a key of its number, on their devices."""

    def local(states, numbers, key):
        mapped = jax.vmap(function, axis_name=_SEED_AXIS)
        return mapped(states, control_loop.seed_keys(key, numbers))

    spread = jax.shard_map(
        local,
        mesh=devices,
        in_specs=(_SEEDS, _SEEDS, PartitionSpec()),
        out_specs=_SEEDS,
        # Seeds have nothing to tell each other: there are no collectives to check.
        check_vma=False,
    )
    return lambda states, key: spread(states, jnp.arange(num_seeds), key)


def train_step(setup: Setup, train: SeedsConfig, devices: Mesh):
    """Returns a step of the loop: a window of training of every seed.

    Args:
      setup: of each seed.
      train: the keys of `config.train`.
      devices: the mesh.

    Returns:
      `(state, batch, key) -> (state, metrics)`, for `runner.run_stage`.
    """
    rounds = train.rounds_per_step
    if isinstance(setup, control_rollouts.Setup):
        window = functools.partial(control_rollouts.train_window, setup, num_rounds=rounds)
    else:
        window = functools.partial(control_loop.train_window, setup, num_updates=rounds)
    mapped = _over_seeds(window, devices, train.num_seeds)

    def step(state: State, batch: Any, key: Array):
        del batch
        seeds, rows = mapped(state.seeds, key)
        found = {name: values.mean() for name, values in rows.items()}
        # Counts: the one grows whichever seed skips, and the other says of how many.
        for name in ("updates/skipped", "updates/done"):
            found[name] = rows[name].sum()
        found["env_steps"] = seeds.env_steps[0].astype(jnp.float32) * train.num_environments
        return State(state.step + 1, seeds), found

    return step


def evaluation(setup: Setup, train: SeedsConfig, devices: Mesh, key: Array):
    """Returns the evaluation of a stage: greedy episodes of every seed.

    Args:
      setup: of each seed.
      train: the keys of `config.train`.
      devices: the mesh.
      key: randomness of all evaluations.

    Returns:
      `(state, step) -> scalars by name`, for `runner.run_stage`.
    """
    play = functools.partial(
        control_loop.evaluate,
        setup.environment,
        setup.greedy,
        num_episodes=train.evaluation_episodes,
        max_steps=train.evaluation_steps,
        axis_name=_SEED_AXIS,
    )
    played = jax.jit(_over_seeds(play, devices, train.num_seeds))

    def evaluate(state: State, step: int) -> Mapping[str, float]:
        found = played(state.seeds.agent, jax.random.fold_in(key, step))
        returns, ended = (np.asarray(values) for values in mesh.gather(found))
        return {
            "env_steps": float(step * train.env_steps_per_step),
            "evaluation/return": float(returns.mean()),
            "evaluation/ended": float(ended.mean()),
            **control_report.seed_columns(returns),
        }

    return evaluate
