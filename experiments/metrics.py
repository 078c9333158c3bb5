"""What a run writes: metrics.jsonl, TensorBoard events, tables, result.json."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
import tensorboardX


def _jsonable(value: Any) -> Any:
    """A number as strict JSON: a non-finite one becomes a string, so that it is never lost."""
    if isinstance(value, str | bool) or value is None:
        return value
    number = np.asarray(value).item()
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number


class MetricsWriter:
    """Writes one stage's metrics to `metrics.jsonl` and TensorBoard; only process 0 writes.

    Each line of the file is an object with `step`, `wall_time_s` (seconds that the run has been
    going, over all its resumptions), `stage`, and the metrics; NaN and infinities are strings.

    Args:
      workdir: folder of the run.
      stage: name of the stage; stages share the file and have their own TensorBoard folder.
      resume_step: the step of the checkpoint that the stage goes on from; later lines of the stage
        are dropped, since their steps will be run again. None drops all of the stage's lines.
    """

    def __init__(self, workdir: pathlib.Path, stage: str, *, resume_step: int | None = None):
        self._stage = stage
        self._enabled = jax.process_index() == 0
        if not self._enabled:
            return
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        elapsed = self._truncate(-1 if resume_step is None else resume_step)
        self._start = time.monotonic() - elapsed
        self._file = self._path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard" / stage),
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def _truncate(self, last_step: int) -> float:
        """Drops this stage's lines after a step, and lines cut short; returns the wall time."""
        if not self._path.exists():
            return 0.0
        kept, elapsed = [], 0.0
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # The run was killed while it wrote this line.
            if row["stage"] == self._stage and row["step"] > last_step:
                continue
            kept.append(line)
            elapsed = max(elapsed, row["wall_time_s"])
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)
        return elapsed

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row, flushed.

        Args:
          step: optimiser steps taken in this stage.
          values: scalars by name.
        """
        if not self._enabled:
            return
        row = {
            "step": int(step),
            "wall_time_s": round(time.monotonic() - self._start, 3),
            "stage": self._stage,
            **{name: _jsonable(value) for name, value in values.items()},
        }
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self._tensorboard.add_scalar(name, float(value), int(step))

    def close(self) -> None:
        """Closes both files."""
        if self._enabled:
            self._file.close()
            self._tensorboard.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl` back.

    Args:
      workdir: folder of the run.

    Returns:
      Its rows in order; non-finite numbers are floats again, and a line that a killed run cut
      short is left out.
    """
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    rows = []
    for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.append({k: special.get(v, v) if isinstance(v, str) else v for k, v in row.items()})
    return rows


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file of strict JSON that is whole or not there.

    Args:
      path: where.
      value: dicts, lists, strings and numbers; NaN and infinities become strings.
    """

    def clean(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {str(key): clean(item) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [clean(item) for item in node]
        return _jsonable(node)

    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(clean(value), indent=2, allow_nan=False) + "\n")
        partial.replace(path)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table on process 0; floats with four significant digits.

    Args:
      title: above the table.
      rows: values by column; the columns are those of the first row.
    """
    if jax.process_index() != 0 or not rows:
        return
    table = rich.table.Table(title=title)
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    # A log file has no edge at which figures would have to be cut.
    width = None if sys.stdout.isatty() else 160
    rich.console.Console(width=width).print(table)
