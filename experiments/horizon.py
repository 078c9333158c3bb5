"""Learns models of future states from fixed transitions, and compares them with the truth.

    python -m bellmax.experiments.horizon --config=td_flow --workdir=runs/circle
    python -m bellmax.experiments.horizon --config=td_flow:maze_loop --workdir=runs/loop

One stage a method and discount. The folder of the run receives checkpoints, `metrics.jsonl`,
TensorBoard events, `result.json`, `samples.png`, `learning_curves.png` and, of several discounts,
`horizons.png`. The same command resumes a run that was stopped, bit for bit.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bellmax.experiments import (
    announcement,
    errors,
    horizon_config,
    horizon_evaluation,
    horizon_methods,
    horizon_policies,
    horizon_report,
    horizon_sources,
    horizon_training,
    mesh,
    metrics,
    plots,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.horizon_config import HorizonConfig


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains what a config says, in a folder of its own.

    Args:
      config: the run's keys.
      workdir: its folder, made if it is missing; one of other settings is refused, and not gone on
        with.

    Returns:
      As `train`.

    Raises:
      UserError: as `train`, or the folder holds another run.
    """
    parsed = config_lib.to_dataclass(HorizonConfig, config)
    config_lib.save_run_config(workdir, config)
    return train(parsed, workdir)


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
    point_size, action_size = source.states.shape[-1], source.actions.shape[-1]
    data_range = horizon_evaluation.range_of(source, scale)
    # All of them first: a wrong name is found before the first is trained.
    models = [
        horizon_methods.make_model(
            config,
            name,
            discount,
            point_size=point_size,
            condition_size=point_size + action_size,
            data_range=data_range,
        )
        for _, name, discount in stages
    ]
    devices = mesh.of_config(keys)
    lines = horizon_report.description(config, models, source)
    announcement.announce(lines, mesh=devices, workdir=workdir)
    if source.with_policy is not None and config.data.policy == "td3":
        policy = horizon_policies.train_td3(
            config,
            source,
            scale,
            workdir=workdir,
            key=jax.random.fold_in(data_key, 1),
            mesh=devices,
        )
        source = source.with_policy(policy)
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
        state = horizon_training.run_stage(
            config,
            stage,
            model.agent,
            transitions,
            workdir=workdir,
            num_updates=keys.num_updates,
            start_key=start_key,
            run_key=run_key,
            mesh=devices,
            evaluate=lambda state, evaluation=evaluation: evaluation(_params(state)),
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


def _params(state: Any) -> Any:
    # The average over the last updates, which is also what is bootstrapped from.
    return mesh.gather(state.target_params)


_FLAGS = config_lib.RunFlags("horizon") if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, workdir = _FLAGS.read()
    _FLAGS.join_processes()
    run(config, workdir)


if __name__ == "__main__":
    errors.run(main)
