"""Figures: panels of curves, drawn alike for every binary and claim, without global state."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any colour vision tell apart; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LINE_STYLES = (":", "--", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Series(NamedTuple):
    """One curve.

    Attributes:
      label: its name in the legend; empty for none.
      x: places. [N].
      y: values; NaN leaves a gap. [N].
      low: lower end of a band, or None. [N].
      high: upper end of a band, or None. [N].
      style: "-", "--", ":" or "" (markers alone).
      marker: whether points are marked.
      reference: drawn in grey and thin, behind: a bound, a chance level, a peer.
    """

    label: str
    x: Float[np.ndarray, " N"] | Sequence[float]
    y: Float[np.ndarray, " N"] | Sequence[float]
    low: Float[np.ndarray, " N"] | Sequence[float] | None = None
    high: Float[np.ndarray, " N"] | Sequence[float] | None = None
    style: str = "-"
    marker: bool = False
    reference: bool = False


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
      title: above it.
      x_label: with its unit.
      y_label: with its unit.
      series: curves; those that are no reference take colours in order.
      x_scale: "linear" or "log".
      y_scale: "linear" or "log".
      horizontal_lines: pairs of a label and a height, such as chance level.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_scale: str = "linear"
    y_scale: str = "linear"
    horizontal_lines: Sequence[tuple[str, float]] = ()


def save_figure(path: pathlib.Path, panels: Sequence[Panel], *, columns: int = 2) -> None:
    """Draws panels side by side and saves them as one PNG.

    Args:
      path: the file; its folder is made if it is missing.
      panels: at least one.
      columns: most panels in a row.

    Raises:
      ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("panels must hold at least one Panel, got none.")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale)
    axes.grid(alpha=0.25)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    for place, (label, height) in enumerate(panel.horizontal_lines):
        dashes = LINE_STYLES[place % len(LINE_STYLES)]
        axes.axhline(height, color="0.5", linewidth=1, linestyle=dashes, label=label)
    coloured = 0
    for series in panel.series:
        if series.reference:
            colour, width, order = "0.45", 1.2, 1
        else:
            colour, width, order = COLOURS[coloured % len(COLOURS)], 1.8, 2
        axes.plot(
            series.x,
            series.y,
            label=series.label or None,
            color=colour,
            linewidth=width,
            linestyle=series.style or "none",
            marker=MARKERS[coloured % len(MARKERS)] if series.marker else None,
            markersize=4,
            zorder=order,
        )
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, lw=0)
        coloured += not series.reference
    if any(series.label for series in panel.series) or panel.horizontal_lines:
        axes.legend(fontsize=8, frameon=False)


def save_matrix(
    path: pathlib.Path,
    title: str,
    names: Sequence[str],
    values: Float[np.ndarray, "K K"],
    errors: Float[np.ndarray, "K K"] | None = None,
) -> None:
    """Draws who beats whom: a square of numbers, blue above 1/2 and red below, and saves a PNG.

    Args:
      path: the file; its folder is made if it is missing.
      title: above it.
      names: of rows and columns.
      values: probabilities that the row beats the column. [K, K].
      errors: standard errors, written below the numbers, or None. [K, K].

    Raises:
      ValueError: the shapes do not fit.
    """
    size = len(names)
    if values.shape != (size, size) or (errors is not None and errors.shape != values.shape):
        raise ValueError(f"values and errors must be [{size}, {size}], got {values.shape}.")
    figure = Figure(figsize=(2.2 + 0.95 * size, 1.4 + 0.8 * size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    reach = max(float(np.abs(values - 0.5).max()), 1e-3)
    axes.imshow(values, cmap="RdBu", vmin=0.5 - reach, vmax=0.5 + reach)
    for row in range(size):
        for column in range(size):
            text = f"{values[row, column]:.3f}"
            if errors is not None and row != column:
                text += f"\n± {errors[row, column]:.3f}"
            dark = abs(values[row, column] - 0.5) > 0.65 * reach
            colour = "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(title, fontsize=11)
    axes.set_xticks(range(size), names, rotation=35, ha="right")
    axes.set_yticks(range(size), names)
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
