"""What an `align` run shows at its end: a table and two figures, read from metrics.jsonl."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bellmax.experiments import metrics, plots

Frontier = tuple[np.ndarray, np.ndarray]


def _evaluations(rows: Sequence[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["stage"] == stage and "held_out/accuracy" in row]


def final_rows(
    workdir: pathlib.Path, names: Sequence[str], betas: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns the last evaluation of each loss.

    Args:
      workdir: folder of the run.
      names: the losses.
      betas: their betas.

    Returns:
      One row a loss: its name, beta, and every metric of its last evaluation.
    """
    rows = metrics.read_metrics(workdir)
    result = []
    for name, beta in zip(names, betas, strict=True):
        last = _evaluations(rows, name)[-1]
        result.append(
            {"loss": name, "beta": beta} | {k: v for k, v in last.items() if k != "stage"}
        )
    return result


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the columns that people read, with their errors.

    Args:
      rows: from `final_rows`.

    Returns:
      Rows of text and numbers by column title.
    """
    shown = []
    for row in rows:
        accuracy, error = row["held_out/accuracy"], row["held_out/accuracy_stderr"]
        line = {
            "loss": row["loss"],
            "beta": row["beta"],
            "held-out accuracy": f"{accuracy:.3f} ± {error:.3f}",
            "margin": row["held_out/margin"],
            "KL to reference (nats)": row["kl/reference"],
        }
        if "gold/gain" in row:
            line["gold reward"] = row["gold/reward"]
            line["gain over reference"] = f"{row['gold/gain']:.3f} ± {row['gold/gain_stderr']:.3f}"
        shown.append(line)
    return shown


def save_figures(workdir: pathlib.Path, names: Sequence[str], frontier: Frontier | None) -> None:
    """Draws `trade_off.png` and `learning_curves.png`.

    Args:
      workdir: folder of the run.
      names: the losses.
      frontier: KL and gold reward of the best policies, or None where there is no gold reward.
    """
    rows = metrics.read_metrics(workdir)
    stages = {name: _evaluations(rows, name) for name in names}
    quantity = "gold/reward" if frontier is not None else "held_out/accuracy"
    _save_trade_off(workdir / "trade_off.png", stages, quantity, frontier)
    _save_curves(workdir / "learning_curves.png", rows, stages)


def _curve(
    label: str, rows: Sequence[dict[str, Any]], x: str, y: str, marker: bool
) -> plots.Series:
    return plots.Series(label, [row[x] for row in rows], [row[y] for row in rows], marker=marker)


def _save_trade_off(path, stages, quantity: str, frontier: Frontier | None) -> None:
    series, furthest = [], 0.0
    for name, rows in stages.items():
        series.append(_curve(name, rows, "kl/reference", quantity, marker=True))
        furthest = max(furthest, *(row["kl/reference"] for row in rows))
    if frontier is not None:
        inside = frontier[0] <= 1.3 * furthest
        series.append(
            plots.Series(
                "best possible",
                frontier[0][inside],
                frontier[1][inside],
                style="--",
                reference=True,
            )
        )
        titles = ("Gold reward against KL", "Expected gold reward (exact)")
        x_label, lines = "KL(policy, reference), nats (exact)", ()
    else:
        titles = ("Held-out accuracy against KL", "Accuracy of the implicit reward")
        x_label, lines = "KL along held-out completions, nats", (("chance", 0.5),)
    panel = plots.Panel(titles[0], x_label, titles[1], series, horizontal_lines=lines)
    plots.save_figure(path, [panel])


def _save_curves(path, rows, stages) -> None:
    warm = [row for row in rows if row["stage"] == "warm_start" and "held_out/nll_per_token" in row]
    panels = [
        plots.Panel(
            "Warm start",
            "step",
            "held-out NLL, nats a token",
            [_curve("", warm, "step", "held_out/nll_per_token", marker=True)],
        )
    ]
    accuracy_lines = [("chance", 0.5)]
    if warm:
        start = warm[-1]["held_out/token_log_prob_accuracy"]
        accuracy_lines.append(("warm start, likelihood a token", start))
    for key, title, label, lines in (
        ("held_out/accuracy", "Held-out accuracy", "accuracy", accuracy_lines),
        ("held_out/margin", "Held-out margin", "margin of implicit rewards", ()),
        ("kl/reference", "KL to the reference", "nats", ()),
        ("gold/reward", "Gold reward", "expected gold reward (exact)", ()),
    ):
        curves = [
            _curve(name, evaluated, "step", key, marker=False)
            for name, evaluated in stages.items()
            if evaluated and key in evaluated[0]
        ]
        if curves:
            panels.append(plots.Panel(title, "step", label, curves, horizontal_lines=lines))
    plots.save_figure(path, panels, columns=3)
