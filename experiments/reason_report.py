"""What a `reason` run shows at its end: a table, learning curves and the winner matrix."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bellmax.experiments import metrics, plots
from bellmax.experiments.arena import WinMatrix


def evaluations(workdir: pathlib.Path, stage: str) -> list[dict[str, Any]]:
    """Returns the evaluations of a stage.

    Args:
      workdir: folder of the run.
      stage: the method's name.

    Returns:
      Rows of metrics.jsonl.
    """
    return [
        row for row in metrics.read_metrics(workdir) if row["stage"] == stage and "win_rate" in row
    ]


def final_rows(
    workdir: pathlib.Path, names: Sequence[str], taus: Sequence[float], wins: WinMatrix
) -> list[dict[str, Any]]:
    """Returns one row a policy, the reference first.

    Args:
      workdir: folder of the run.
      names: the methods.
      taus: their taus.
      wins: the winner matrix of the reference and the methods, in this order.

    Returns:
      Rows: method, tau, its last evaluation, win rates against all others, exploitability.
    """
    rows = []
    policies = ["reference", *names]
    for place, (name, tau) in enumerate(zip(policies, [None, *taus], strict=True)):
        row: dict[str, Any] = {"method": name, "tau": tau}
        if place:
            row |= {k: v for k, v in evaluations(workdir, name)[-1].items() if k != "stage"}
        beats = zip(policies, wins.mean[place], wins.stderr[place], strict=True)
        row["beats"] = {other: [float(mean), float(error)] for other, mean, error in beats}
        row["exploitability"] = float(wins.exploitability[place])
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the columns that people read.

    Args:
      rows: from `final_rows`.

    Returns:
      Rows of text and numbers by column title.
    """
    shown = []
    for row in rows:
        line = {"method": row["method"], "tau": "-" if row["tau"] is None else row["tau"]}
        line["KL to reference (nats)"] = row.get("kl/reference", 0.0)
        line |= {
            f"beats {other}": "-" if other == row["method"] else f"{mean:.3f} ± {error:.3f}"
            for other, (mean, error) in row["beats"].items()
        }
        if not np.isnan(row["exploitability"]):
            line["exploitability"] = row["exploitability"]
        shown.append(line)
    return shown


def save_figures(workdir: pathlib.Path, names: Sequence[str], wins: WinMatrix) -> None:
    """Draws `learning_curves.png` and `winner_matrix.png`.

    Args:
      workdir: folder of the run.
      names: the methods.
      wins: the winner matrix of the reference and the methods.
    """
    stages = {name: evaluations(workdir, name) for name in names}
    chance = [("chance", 0.5)]

    def curves(x: str) -> list[plots.Series]:
        series = []
        for name, rows in stages.items():
            rate = np.array([row["win_rate"] for row in rows])
            error = np.array([row["win_rate_stderr"] for row in rows])
            places = [row[x] for row in rows]
            series.append(
                plots.Series(name, places, rate, rate - error, rate + error, marker=x != "step")
            )
        return series

    against = "win rate against the reference"
    panels = [
        plots.Panel("Learning", "step", against, curves("step"), horizontal_lines=chance),
        plots.Panel(
            "Win rate and distance",
            "KL(policy, reference), nats",
            against,
            curves("kl/reference"),
            horizontal_lines=chance,
        ),
    ]
    plots.save_figure(workdir / "learning_curves.png", panels)
    plots.save_matrix(
        workdir / "winner_matrix.png",
        "P(row beats column), ± standard error over prompts",
        ["reference", *names],
        wins.mean,
        wins.stderr,
    )
