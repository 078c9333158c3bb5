"""Times candidates in turns, so that whatever else the machine does meets all of them alike.

A ratio of two candidates is the median of the ratios of their neighbouring runs; its spread is the
least and the greatest of these. Compilation is timed apart and never inside a run.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from bellmax.agents import updates

# A run lasts at least this long: short functions are called several times in a row.
_SHORTEST_RUN_S = 0.02
_MOST_CALLS = 64


class Candidate(NamedTuple):
    """A function to time.

    Attributes:
      name: what the tables call it.
      function: what `jax.jit` returned; or, for a peer, any function that returns when its work is
        done.
      arguments: its arguments, which stay as they are.
      donated: whether the first argument is donated. The function then returns a tuple that begins
        with the first argument of its next call.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: bool = False


class Measurement(NamedTuple):
    """What the runs of one candidate showed.

    Attributes:
      seconds: a call's time in each run, in the order of the runs.
      compile_seconds: tracing and compilation, 0 for a peer.
      temporary_bytes: the most memory a call holds beside its arguments and results, as the
        compiler planned it; None where that is not known.
    """

    seconds: tuple[float, ...]
    compile_seconds: float
    temporary_bytes: int | None

    @property
    def median(self) -> float:
        """The median time of a call, seconds."""
        return statistics.median(self.seconds)


class Ratio(NamedTuple):
    """A ratio over neighbouring runs: its median, least and greatest value."""

    median: float
    least: float
    greatest: float

    def __str__(self):
        return f"{self.median:.3g} ({self.least:.3g}-{self.greatest:.3g})"


def ratio(numerator: Measurement, denominator: Measurement, scale: float = 1.0) -> Ratio:
    """Compares times run by run.

    Args:
      numerator: measured in the same call of `measure` as the other.
      denominator: what it is compared with.
      scale: multiplies every ratio, e.g. the ratio of two amounts of work.

    Returns:
      The ratio of their times; below 1 where the numerator is the faster one.
    """
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    ratios = [scale * first / second for first, second in pairs]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def measure(candidates: Sequence[Candidate], *, repeats: int) -> dict[str, Measurement]:
    """Compiles the candidates, warms them up, and runs them in turns: A B C A B C ...

    Args:
      candidates: what is compared, under distinct names.
      repeats: runs of each, at least 1.

    Returns:
      Measurements by name.

    Raises:
      ValueError: names repeat, or `repeats` is below 1.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise ValueError(f"candidates must have distinct names, got {names}.")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    prepared = [_Prepared(candidate) for candidate in candidates]
    seconds: list[list[float]] = [[] for _ in prepared]
    for _ in range(repeats):
        for one, times in zip(prepared, seconds, strict=True):
            times.append(one.run())
    return {
        name: Measurement(tuple(times), one.compile_seconds, one.temporary_bytes)
        for name, one, times in zip(names, prepared, seconds, strict=True)
    }


class _Prepared:
    """A compiled and warmed candidate, with its own copy of what it donates."""

    def __init__(self, candidate: Candidate):
        self._donated = candidate.donated
        self._arguments = candidate.arguments
        if self._donated:
            self._arguments = (updates.copy_tree(self._arguments[0]), *self._arguments[1:])
        self._function = candidate.function
        self.compile_seconds, self.temporary_bytes = 0.0, None
        lower = getattr(candidate.function, "lower", None)
        if lower is not None:
            start = time.perf_counter()
            self._function = lower(*self._arguments).compile()
            self.compile_seconds = time.perf_counter() - start
            self.temporary_bytes = _temporary_bytes(self._function)
        self._calls = 1
        self.run()
        self._calls = min(math.ceil(_SHORTEST_RUN_S / max(self.run(), 1e-9)), _MOST_CALLS)

    def run(self) -> float:
        """Calls the function a few times in a row; returns the seconds a call took."""
        outputs = None
        start = time.perf_counter()
        for _ in range(self._calls):
            outputs = self._function(*self._arguments)
            if self._donated:
                self._arguments = (outputs[0], *self._arguments[1:])
        jax.block_until_ready(outputs)
        return (time.perf_counter() - start) / self._calls


def _temporary_bytes(compiled: Any) -> int | None:
    analysis = compiled.memory_analysis()
    # Not every backend has one.
    return None if analysis is None else int(analysis.temp_size_in_bytes)
