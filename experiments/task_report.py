"""What a run on a token task leaves behind: a table, learning curves, completions to read."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bellmax.envs import token_tasks
from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import metrics, plots, task_data
from bellmax.experiments.text_tasks import TextTask

_SHOWN = 8


def save(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> None:
    """Writes `result.json` and `learning_curves.png`, and prints the table.

    Args:
      workdir: folder of the run.
      rows: the final table.
      stages: the methods, in order.
    """
    metrics.write_json(workdir / "result.json", {"rows": list(rows)})
    metrics.print_table("Policies after the last step, on held-out problems", list(rows))
    if jax.process_index() == 0:
        plots.save_figure(workdir / "learning_curves.png", curves(workdir, stages), columns=2)


def curves(workdir: pathlib.Path, stages: Sequence[str]) -> list[plots.Panel]:
    """Returns success over training and over distance from the reference, and more.

    Args:
      workdir: folder of the run.
      stages: the methods, in order.

    Returns:
      The panels.
    """
    first = {"pass@1", "answers/bound@1"}
    rows = [row for row in metrics.read_metrics(workdir) if first & row.keys()]
    by_stage = {name: [row for row in rows if row["stage"] == name] for name in stages}
    (one,) = first & rows[0].keys()
    stem = one.removesuffix("1")
    most = max((key for key in rows[0] if key.startswith(stem)), key=_samples)
    last = "entropy" if one == "pass@1" else "chains/right"

    def panel(title: str, x: str, label: str, y: str) -> plots.Panel:
        series = [
            plots.Series(
                name, [row[x] for row in found], [row[y] for row in found], marker=x != "step"
            )
            for name, found in by_stage.items()
        ]
        return plots.Panel(title, label, y, series)

    distance = "KL(policy, reference), nats"
    return [
        panel("One sample", "step", "step", one),
        panel("Several samples", "step", "step", most),
        panel("Distance from the reference", "kl/reference", distance, one),
        panel("What else changes", "step", "step", last),
    ]


def _samples(key: str) -> int:
    count = key.partition("@")[2]
    return int(count) if count.isdigit() else 0


def save_samples(
    path: pathlib.Path,
    task: task_data.AnyTask,
    problems: TokenProblem,
    sampled: Mapping[str, tuple[Any, Any, Any]],
) -> None:
    """Writes the first problems with a completion of each policy, for a person to read.

    Args:
      path: the text file.
      task: the task.
      problems: [M, ...].
      sampled: tokens, mask and rewards of each policy's completions, by name.
    """
    lines = []
    for place in range(min(_SHOWN, len(problems.prompt))):
        lines.append(_text(task, problems.prompt[place], problems.prompt_mask[place]))
        for name, (tokens, mask, rewards) in sampled.items():
            text = _text(task, tokens[place], mask[place])
            shown = text.replace("\n", "\n    ")
            lines.append(f"  {name} [{rewards[place]:g}]: {shown}")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def _text(task: task_data.AnyTask, tokens: Any, mask: Any) -> str:
    if isinstance(task, TextTask):
        return task.as_text(tokens, mask)
    return token_tasks.as_text(task.vocabulary, tokens, mask)


def over_seeds(
    tables: Sequence[Sequence[Mapping[str, Any]]], method: str, measure: str
) -> Float[np.ndarray, " S"]:
    """Returns a measure of a method in the final tables of runs from several seeds.

    Args:
      tables: of the runs.
      method: the method, or warm_start.
      measure: the column.

    Returns:
      One number a run. [S].
    """
    return np.array(
        [next(row[measure] for row in table if row["method"] == method) for table in tables]
    )


def mean_curves(
    workdirs: Sequence[pathlib.Path], stages: Sequence[str], measure: str
) -> list[plots.Series]:
    """Returns a measure over training, mean and range of runs from several seeds.

    Args:
      workdirs: folders of the runs, of one config but for the seed.
      stages: the methods.
      measure: the metric.

    Returns:
      A curve a method.
    """
    runs = [metrics.read_metrics(workdir) for workdir in workdirs]
    series = []
    for name in stages:
        rows = [[row for row in run if row["stage"] == name and measure in row] for run in runs]
        values = np.array([[row[measure] for row in run] for run in rows])
        steps = [row["step"] for row in rows[0]]
        series.append(
            plots.Series(name, steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
        )
    return series
