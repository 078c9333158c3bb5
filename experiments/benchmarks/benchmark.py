"""What a benchmark is: a name, and a function that measures and reports."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bellmax.experiments.benchmarks.machine import Machine
from bellmax.experiments.benchmarks.runner import Measurement


class Options(NamedTuple):
    """How a benchmark runs.

    Attributes:
      quick: small shapes; the figures then say nothing.
      repeats: runs of each candidate.
    """

    quick: bool
    repeats: int


class Report(NamedTuple):
    """What a benchmark found.

    Attributes:
      rows: one a candidate, for the table; the same columns in each.
      notes: sentences below the table: aims and whether they are met, peers that are missing.
      measured: every run, the machine's among them.
      machine: the machine's own candidates.
    """

    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    measured: Mapping[str, Measurement]
    machine: Machine


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A comparison; a module of this package that has one as `BENCHMARK` is found by its name.

    Attributes:
      name: the module's name.
      description: what is compared with what, one line.
      run: measures and reports.
    """

    name: str
    description: str
    run: Callable[[Options], Report]


def import_peer(name: str) -> tuple[Any, list[str]]:
    """Imports a library that is only ever compared with.

    Args:
      name: its import name.

    Returns:
      The module and no notes; or None and a note that says how to install it.
    """
    try:
        return importlib.import_module(name), []
    except ImportError:
        return None, [
            f"{name} is not installed; with it the comparison has one more row: "
            "pip install 'bellmax[peers]'."
        ]


def milliseconds(measurement: Measurement) -> float:
    """Returns the median time of a call in milliseconds."""
    return 1e3 * measurement.median


def megabytes(measurement: Measurement) -> float | str:
    """Returns the peak temporary memory in units of 10^6 bytes, or a dash if unknown."""
    size = measurement.temporary_bytes
    return "-" if size is None else size / 1e6


def verdict(value: float, aim: float) -> str:
    """Says whether a figure is within its aim, which is an upper bound."""
    return f"{value:.3g} (aim: at most {aim:.3g}; {'met' if value <= aim else 'MISSED'})"
