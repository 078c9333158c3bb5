"""Learns models of future states from fixed transitions, and compares them with the truth.

    python -m bellmax.experiments.horizon --config=td_flow --workdir=runs/circle
    python -m bellmax.experiments.horizon --config=td_flow:maze_loop --workdir=runs/loop

One stage a method and discount. The folder of the run receives checkpoints, `metrics.jsonl`,
TensorBoard events, `result.json`, `samples.png`, `learning_curves.png` and, of several discounts,
`horizons.png`. The same command resumes a run that was stopped, bit for bit.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bellmax.agents import TransitionBatch
from bellmax.experiments import (
    announcement,
    errors,
    horizon_config,
    horizon_evaluation,
    horizon_methods,
    horizon_report,
    horizon_sources,
    mesh,
    metrics,
    plots,
    runner,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.horizon_config import HorizonConfig


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      step: steps of the loop so far.
      agent: the agent's state.
    """

    step: Int[Array, ""]
    agent: Any


def train(config: HorizonConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every model, or what is left of it, and writes table and figures.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      The final table, one row a model, those of the truth first.

    Raises:
      UserError: the config is wrong, training has diverged, or a checkpoint does not fit.
    """
    horizon_config.check(config)
    keys = config.train
    data_key, truth_key, start_key, run_key, noise_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    data = dataclasses.replace(
        config.data, cache_dir=config.data.cache_dir or str(workdir / "data")
    )
    source = horizon_sources.make_source(data, num_states=keys.evaluation_states, key=data_key)
    scale = horizon_evaluation.scale_of(source, standardise=config.data.standardise)
    stages = horizon_config.stages(config)
    point_size, condition_size = source.states.shape[-1], source.states.shape[-1]
    condition_size += source.actions.shape[-1]
    # All of them first: a wrong name is found before the first is trained.
    models = [
        horizon_methods.make_model(
            config, name, discount, point_size=point_size, condition_size=condition_size
        )
        for _, name, discount in stages
    ]
    devices = mesh.make_mesh(data=keys.mesh_data, fsdp=keys.mesh_fsdp, tensor=keys.mesh_tensor)
    lines = horizon_report.description(config, models, source)
    announcement.announce(lines, mesh=devices, workdir=workdir)
    truths = {
        discount: source.truth(discount, keys.evaluation_samples, truth_key)
        for discount in config.loss.discounts
    }
    clouds: dict[float, dict[str, np.ndarray]] = {
        discount: {"truth": truth.samples[0]} for discount, truth in truths.items()
    }
    transitions = source.transitions._replace(
        observations=scale.to_model(source.transitions.observations),
        next_observations=scale.to_model(source.transitions.next_observations),
    )
    for (stage, name, discount), model in zip(stages, models, strict=True):
        evaluation = horizon_evaluation.Evaluation(
            model, source, truths[discount], scale, discount, keys, noise_key
        )
        state = runner.run_stage(
            name=stage,
            workdir=workdir,
            state=State(jnp.zeros((), jnp.int32), model.agent.init(start_key)),
            train_step=_train_step(model.agent),
            batches=horizon_sources.Batches(
                transitions,
                batch_size=keys.batch_size,
                updates_per_step=keys.updates_per_step,
                seed=config.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            schedule=runner.Schedule(
                num_steps=keys.num_steps,
                log_every=keys.log_every,
                evaluate_every=keys.evaluate_every,
                checkpoint_every=keys.checkpoint_every,
                keep_checkpoints=keys.keep_checkpoints,
            ),
            run_key=run_key,
            mesh=devices,
            evaluate=_evaluate(evaluation, keys.updates_per_step),
        )
        clouds[discount][name] = np.asarray(evaluation.sample(_params(state)))[0]
    floors = {
        discount: horizon_evaluation.floor(source, truth, discount, noise_key)
        for discount, truth in truths.items()
    }
    rows = horizon_report.final_rows(workdir, stages, floors)
    if jax.process_index() == 0:
        plots.save_figure(
            workdir / "learning_curves.png", horizon_report.curves(workdir, stages), columns=3
        )
        starts = {discount: np.asarray(source.states[0]) for discount in truths}
        horizon_report.save_samples(workdir / "samples.png", clouds, starts, source.walls)
        if len(truths) > 1:
            plots.save_figure(workdir / "horizons.png", horizon_report.by_horizon(rows))
    metrics.write_json(workdir / "result.json", {"rows": rows})
    metrics.print_table(f"{config.data.source} {config.data.task}: after the last update", rows)
    return rows


def _params(state: State) -> Any:
    # The average over the last updates, which is also what is bootstrapped from.
    return jax.device_get(state.agent.target_params)


def _train_step(agent):
    def train_step(state: State, batch: TransitionBatch, key: Array):
        def one(carry, number_and_rows):
            number, rows = number_and_rows
            return agent.update(carry, rows, jax.random.fold_in(key, number))

        # [B, updates, ...], so that it is rows that devices share.
        windows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch)
        count = windows.observations.shape[0]
        learnt, found = jax.lax.scan(one, state.agent, (jnp.arange(count), windows))
        averaged = {name: jnp.mean(values) for name, values in found.items()}
        # A count, which is not averaged; the guard wants to know of how many.
        averaged["updates/skipped"] = found["updates/skipped"][-1]
        averaged["updates/done"] = jnp.asarray(count, jnp.float32)
        return State(state.step + 1, learnt), averaged

    return train_step


def _evaluate(evaluation: horizon_evaluation.Evaluation, updates_per_step: int):
    def evaluate(state: State, step: int) -> Mapping[str, float]:
        return {"updates": float(step * updates_per_step), **evaluation(_params(state))}

    return evaluate


_FLAGS = config_lib.RunFlags("horizon") if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, workdir = _FLAGS.read()
    parsed = config_lib.to_dataclass(HorizonConfig, config)
    mesh.initialize_distributed()
    config_lib.save_run_config(workdir, config)
    train(parsed, workdir)


if __name__ == "__main__":
    errors.run(main)
