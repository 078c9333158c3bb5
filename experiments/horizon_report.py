"""What a `horizon` run shows at its end: a table, samples beside the truth, measures by horizon."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bellmax.agents import networks
from bellmax.experiments import metrics, plots
from bellmax.experiments.horizon_config import HorizonConfig
from bellmax.experiments.horizon_methods import Model
from bellmax.experiments.horizon_truth import Source

MEASURES = {
    "emd": "earth mover's distance",
    "energy_distance": "energy distance",
    "nll": "negative log-likelihood, nats a feature",
    "value_mse": "mean squared error of values",
}


def description(config: HorizonConfig, models: Sequence[Model], source: Source) -> tuple[str, ...]:
    """Returns what a run says before it begins.

    Args:
      config: the run.
      models: that are trained.
      source: what they learn from.
    """
    keys, loss, size = config.train, config.loss, source.transitions.observations.shape
    counts = {
        networks.num_parameters(jax.eval_shape(model.agent.init, jax.random.key(0)).params)
        for model in models
    }
    return (
        f"transitions: {size[0]:,} of {config.data.source} {config.data.task}, "
        f"{size[1]} features a state, {source.actions.shape[-1]} an action",
        f"models: {', '.join(f'{count:,}' for count in sorted(counts))} parameters",
        f"updates: {keys.num_updates:,} of {keys.batch_size} transitions by each of "
        f"{', '.join(loss.names)} at discounts {', '.join(f'{d:g}' for d in loss.discounts)}",
        f"evaluation: {keys.evaluation_states} states, {keys.evaluation_samples} samples each",
    )


def final_rows(
    workdir: pathlib.Path,
    stages: Sequence[tuple[str, str, float]],
    floors: Mapping[float, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Returns one row a model, and one for fresh samples of the truth at every discount.

    Args:
      workdir: folder of the run.
      stages: name, method and discount of each model.
      floors: measures of fresh samples of the truth, by discount.

    Returns:
      Rows: method, discount, and the last evaluation's measures; None where there is none.
    """
    last: dict[str, dict[str, Any]] = {}
    for row in metrics.read_metrics(workdir):
        if "evaluation/emd" in row:
            last[row["stage"]] = row

    def of(method, discount, measured):
        named = {key: measured.get(f"evaluation/{key}") for key in MEASURES}
        return {"method": method, "discount": discount, **named}

    rows = [of("truth", discount, measured) for discount, measured in floors.items()]
    return rows + [of(name, discount, last[stage]) for stage, name, discount in stages]


def by_update(
    workdir: pathlib.Path, stages: Sequence[str], measure: str
) -> dict[str, tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]]:
    """Returns a measure of models over their training.

    Args:
      workdir: folder of the run.
      stages: names of the models' stages, see `horizon_config.stages`.
      measure: a key of `MEASURES`.

    Returns:
      By stage updates, and the measure after them. [E], [E].
    """
    key = f"evaluation/{measure}"
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    for row in metrics.read_metrics(workdir):
        if key in row and row["stage"] in found:
            found[row["stage"]].append((row["updates"], row[key]))
    measured = {}
    for stage, pairs in found.items():
        updates, values = np.array(pairs, np.float64).reshape(-1, 2).T
        measured[stage] = updates, values
    return measured


def curves(workdir: pathlib.Path, stages: Sequence[tuple[str, str, float]]) -> list[plots.Panel]:
    """Returns the earth mover's distance over training, a panel a discount.

    Args:
      workdir: folder of the run.
      stages: name, method and discount of each model.

    Returns:
      Panels.
    """
    found = by_update(workdir, [stage for stage, _, _ in stages], "emd")
    panels = []
    for discount in dict.fromkeys(discount for _, _, discount in stages):
        series = [
            plots.Series(name, *found[stage]) for stage, name, own in stages if own == discount
        ]
        title = f"Discount {discount:g}"
        panels.append(plots.Panel(title, "updates", MEASURES["emd"], series, y_scale="log"))
    return panels


def by_horizon(rows: Sequence[Mapping[str, Any]]) -> list[plots.Panel]:
    """Returns each measure against the horizon 1 / (1 - discount).

    Args:
      rows: from `final_rows`.

    Returns:
      Panels; fresh samples of the truth in grey.
    """
    panels = []
    for key, label in MEASURES.items():
        series = []
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == name and row[key] is not None]
            if mine:
                places = [1 / (1 - row["discount"]) for row in mine]
                values = [row[key] for row in mine]
                truth = name == "truth"
                series.append(plots.Series(name, places, values, marker=True, reference=truth))
        scale = "linear" if key in ("nll", "energy_distance") else "log"
        panels.append(
            plots.Panel(label.capitalize(), "horizon, steps", label, series, "log", scale)
        )
    return panels


def save_samples(
    path: pathlib.Path,
    clouds: Mapping[float, Mapping[str, Float[np.ndarray, "M D"]]],
    starts: Mapping[float, Float[np.ndarray, " D"]],
    walls: Float[np.ndarray, "W 4"] | None,
) -> None:
    """Draws samples of one state's future: a row a discount, a column a method, and saves a PNG.

    Args:
      path: the file.
      clouds: samples by discount and method; the truth first.
      starts: the state, by discount.
      walls: boxes left, bottom, right, top to draw behind, or None.
    """
    columns = max(len(named) for named in clouds.values())
    figure = Figure(figsize=(2.3 * columns, 2.4 * len(clouds)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (discount, named) in enumerate(clouds.items()):
        # All columns of a row in the window of the truth.
        extent = _window(next(iter(named.values())), starts[discount], walls)
        for column, (name, samples) in enumerate(named.items()):
            axes = figure.add_subplot(len(clouds), columns, row * columns + column + 1)
            for box in () if walls is None else walls:
                left, bottom, right, top = (float(side) for side in box)
                patch = Rectangle((left, bottom), right - left, top - bottom, color="0.75", lw=0)
                axes.add_patch(patch)
            if samples.shape[-1] == 1:
                axes.hist(samples[:, 0], bins=50, range=extent[0], color=plots.COLOURS[0])
                axes.axvline(float(starts[discount][0]), color=plots.COLOURS[1])
            else:
                axes.scatter(*samples[:, :2].T, s=2, alpha=0.4, color=plots.COLOURS[0], lw=0)
                axes.plot(*starts[discount][:2], "o", color=plots.COLOURS[1], markersize=4)
                axes.set_ylim(*extent[1])
                axes.set_aspect("equal")
            axes.set_xlim(*extent[0])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{name}, {discount:g}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _window(samples, start, walls) -> list[tuple[float, float]]:
    places = [np.concatenate([samples, start[None]])[:, :2]]
    if walls is not None:
        places += [walls[:, :2], walls[:, 2:]]
    low, high = (function(np.concatenate(places), axis=0) for function in (np.min, np.max))
    margin = 0.1 * (high - low).max() + 1e-6
    return [(float(a - margin), float(b + margin)) for a, b in zip(low, high, strict=True)]
