"""How models of the noisy circle come closer to its truth: runs, and their figure."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from bellmax.configs.horizon import td_flow
from bellmax.experiments import config as config_lib
from bellmax.experiments import horizon, horizon_config, horizon_report, plots


def train(
    changes: Mapping[str, Any], workdir: pathlib.Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Trains models at one discount; a run that was stopped goes on.

    Args:
      changes: of the config `td_flow:noisy_circle`, its groups as mappings.
      workdir: folder of the run.

    Returns:
      Updates [E], and the energy distance after them by method [E].
    """
    config = td_flow.get_config("noisy_circle")
    config.update(changes)
    horizon.run(config, workdir)
    parsed = config_lib.to_dataclass(horizon_config.HorizonConfig, config)
    names = {stage: name for stage, name, _ in horizon_config.stages(parsed)}
    found = horizon_report.by_update(workdir, list(names), "energy_distance")
    updates, _ = next(iter(found.values()))
    return updates, {names[stage]: values for stage, (_, values) in found.items()}


def save_figure(
    path: pathlib.Path,
    updates: Float[np.ndarray, " E"],
    curves: Mapping[str, Float[np.ndarray, "S E"]],
    *,
    discount: float,
    y_scale: str = "linear",
) -> None:
    """Draws mean and range of energy distances over seeds against updates.

    Args:
      path: file to write.
      updates: at the evaluations. [E].
      curves: energy distances of each seed, by the name of what is drawn. [S, E].
      discount: of the models.
      y_scale: "linear" or "log".
    """
    series = [
        plots.Series(name, updates, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
        for name, values in curves.items()
    ]
    (seeds,) = {len(values) for values in curves.values()}
    title = f"Noisy circle at {discount:g}: mean and range of {seeds} seeds"
    plots.save_figure(
        path, [plots.Panel(title, "updates", "energy distance", series, y_scale=y_scale)]
    )
