"""Trains agents that play: acting, replay and learning in one program, several seeds at once.

    python -m bellmax.experiments.control --config=c51_q_lambda --workdir=runs/lake
    python -m bellmax.experiments.control --config=c51_q_lambda:minatar_breakout \
        --workdir=runs/breakout --config.train.num_seeds=10

One stage a method, each from the same start on the same number of environment steps. The folder of
the run receives checkpoints with the replay, `metrics.jsonl`, TensorBoard events, `result.json` and
`learning_curves.png`. The same command resumes a run that was stopped, bit for bit.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from bellmax.agents import networks
from bellmax.experiments import (
    announcement,
    control_config,
    control_loop,
    control_methods,
    control_report,
    errors,
    mesh,
    metrics,
    plots,
    runner,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.control_config import ControlConfig


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      step: steps of the loop so far.
      seeds: the state of every seed. [S, ...].
    """

    step: Int[Array, ""]
    seeds: control_loop.State


def train(config: ControlConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every method, or what is left of it, and writes table and figure.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      The final table, one row a method.

    Raises:
      UserError: the config is wrong, training has diverged, or a checkpoint does not fit.
    """
    control_config.check(config)
    keys = config.train
    environment = control_methods.make_environment(config.data)
    names = config.loss.names
    # All of them first: a wrong name is found before the first is trained.
    setups = [control_methods.make_setup(config, place, environment) for place in range(len(names))]
    devices = mesh.make_mesh(data=keys.mesh_data, fsdp=keys.mesh_fsdp, tensor=keys.mesh_tensor)
    _check_spread(keys.num_seeds, devices)
    schedule = runner.Schedule(
        num_steps=keys.num_steps,
        log_every=keys.log_every,
        evaluate_every=keys.evaluate_every,
        checkpoint_every=keys.checkpoint_every,
        keep_checkpoints=keys.keep_checkpoints,
    )
    start_key, run_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)
    # Methods differ in their updates alone: how they start and play is compiled once.
    start = _start(setups[0], keys.num_seeds)
    evaluate = _evaluation(setups[0], config, devices, evaluation_key)
    for name, setup in zip(names, setups, strict=True):
        state = start(start_key)
        if name == names[0]:
            _announce(config, workdir, devices, state)
        runner.run_stage(
            name=name,
            workdir=workdir,
            state=state,
            train_step=_train_step(setup, config, devices),
            batches=runner.SameBatches(),
            schedule=schedule,
            run_key=run_key,
            mesh=devices,
            evaluate=evaluate,
            sharding=_sharding,
        )
    rows = control_report.final_rows(workdir, names)
    if jax.process_index() == 0:
        panel = control_report.panel(workdir, config.data.name, names)
        plots.save_figure(workdir / "learning_curves.png", [panel])
    metrics.write_json(workdir / "result.json", {"rows": rows})
    metrics.print_table(
        f"{config.data.name}: interquartile mean over {keys.num_seeds} seeds, 95% interval",
        control_report.table(rows),
    )
    return rows


def _check_spread(num_seeds: int, devices: Mesh) -> None:
    share = devices.shape["data"] * devices.shape["fsdp"]
    if num_seeds % share:
        raise errors.UserError(
            f"config.train.num_seeds must be a multiple of the {share} devices that seeds are "
            f"spread over, got {num_seeds}."
        )


def _start(setup: control_loop.Setup, num_seeds: int) -> Callable[[Array], State]:
    @jax.jit
    def start(key):
        seeds = control_loop.seed_keys(key, jnp.arange(num_seeds))
        states = jax.vmap(functools.partial(control_loop.init, setup))(seeds)
        return State(jnp.zeros((), jnp.int32), states)

    return start


_SEEDS = PartitionSpec(mesh.BATCH_AXES)
_SEED_AXIS = "seeds"


def _sharding(devices: Mesh, state: State) -> Any:
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


def _train_step(setup: control_loop.Setup, config: ControlConfig, devices: Mesh):
    keys = config.train
    window = functools.partial(control_loop.train_window, setup, num_updates=keys.updates_per_step)
    mapped = _over_seeds(window, devices, keys.num_seeds)

    def train_step(state: State, batch: Any, key: Array):
        del batch
        seeds, rows = mapped(state.seeds, key)
        found = {name: values.mean() for name, values in rows.items()}
        # Counts: the one grows whichever seed skips, and the other says of how many.
        for name in ("updates/skipped", "updates/done"):
            found[name] = rows[name].sum()
        found["env_steps"] = seeds.env_steps[0].astype(jnp.float32) * keys.num_environments
        return State(state.step + 1, seeds), found

    return train_step


def _evaluation(setup: control_loop.Setup, config: ControlConfig, devices: Mesh, key: Array):
    keys = config.train
    play = functools.partial(
        control_loop.evaluate,
        setup,
        num_episodes=keys.evaluation_episodes,
        max_steps=keys.evaluation_steps,
        axis_name=_SEED_AXIS,
    )
    played = jax.jit(_over_seeds(play, devices, keys.num_seeds))

    def evaluate(state: State, step: int) -> Mapping[str, float]:
        found = played(state.seeds.agent, jax.random.fold_in(key, step))
        returns, ended = (np.asarray(values) for values in mesh.gather(found))
        return {
            "env_steps": float(step * keys.env_steps_per_step),
            "evaluation/return": float(returns.mean()),
            "evaluation/ended": float(ended.mean()),
            **control_report.seed_columns(returns),
        }

    return evaluate


def _announce(config: ControlConfig, workdir: pathlib.Path, devices: Mesh, state: State) -> None:
    keys, model = config.train, config.model
    count = networks.num_parameters(state.seeds.agent.params) // keys.num_seeds
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.seeds.replay))
    lines = (
        f"environment: {config.data.name}, {keys.num_environments} of them a seed",
        f"network: {count:,} parameters, {model.num_outputs} {model.law} outputs an action",
        f"replay: {keys.replay_size:,} transitions a seed, {size / 1e6:.0f} MB in all",
        f"steps: {keys.num_env_steps:,} environment steps of each of {keys.num_seeds} seeds, "
        f"{keys.num_steps} x {keys.updates_per_step} updates, by each of "
        f"{', '.join(config.loss.names)}",
    )
    announcement.announce(lines, mesh=devices, workdir=workdir)


_FLAGS = config_lib.RunFlags("control") if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, workdir = _FLAGS.read()
    parsed = config_lib.to_dataclass(ControlConfig, config)
    mesh.initialize_distributed()
    config_lib.save_run_config(workdir, config)
    train(parsed, workdir)


if __name__ == "__main__":
    errors.run(main)
