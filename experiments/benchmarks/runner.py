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

# A run of a compiled function lasts about this long: short ones are called several times in a row.
_SHORTEST_RUN_S = 0.02
_MOST_CALLS = 64


class Machine(NamedTuple):
    """What the machine can do, as `machine.measure_machine` found it.

    Attributes:
      matmul_flops: floating-point operations a second of a float32 product of matrices.
      copy_bytes: bytes a second, read and written together, of a pass over memory in place.
    """

    matmul_flops: float
    copy_bytes: float


class Candidate(NamedTuple):
    """A function to time.

    Attributes:
      name: what tables call it.
      function: a function of arrays, which `measure` jits; or a peer.
      arguments: its arguments, which stay as they are.
      carried: whether the first argument is donated; the function then returns a tuple that begins
        with the first argument of its next call.
      compiled: whether to jit it; False for a peer that returns when its work is done.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    carried: bool = False
    compiled: bool = True


class Timing(NamedTuple):
    """What the runs of one candidate showed.

    Attributes:
      name: the candidate's.
      seconds: a call's time in each run, in the order of the runs.
      compile_seconds: tracing and compilation; 0 for a peer.
      temporary_bytes: the most that a call holds beside arguments and results, as the compiler
        planned it; None where that is not known.
    """

    name: str
    seconds: Sequence[float]
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


class Benchmark(NamedTuple):
    """A comparison; a module of this package that has one as `BENCHMARK` is found by its name.

    Attributes:
      name: the module's name.
      description: what is compared, one line.
      run: `(machine, quick, repeats) -> rows`, all with the same columns; `quick`: small shapes.
    """

    name: str
    description: str
    run: Callable[[Machine, bool, int], list[dict[str, Any]]]


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """Compares times run by run.

    Args:
      numerator: measured in the same call of `measure` as the other.
      denominator: what it is compared with.

    Returns:
      The ratio of their times; below 1 where the numerator is the faster one.
    """
    ratios = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def row(timing: Timing, baseline: Timing) -> dict[str, Any]:
    """Returns the columns that all tables begin with.

    Args:
      timing: the candidate's.
      baseline: what its times are divided by.

    Returns:
      Median time, ratio with its spread, temporary memory (10^6 bytes), time of compilation.
    """
    size = timing.temporary_bytes
    return {
        "": timing.name,
        "ms": 1e3 * timing.median,
        f"time / {baseline.name}": ratio(timing, baseline),
        "temporary MB": "-" if size is None else size / 1e6,
        "compile s": timing.compile_seconds,
    }


def measure(candidates: Sequence[Candidate], *, repeats: int) -> list[Timing]:
    """Compiles the candidates, warms them up, and runs them in turns: A B C A B C ...

    Args:
      candidates: what is compared, under distinct names.
      repeats: counted runs of each, at least 1.

    Returns:
      Timings, in order.

    Raises:
      ValueError: names repeat, or `repeats` is below 1.
    """
    names = [candidate.name for candidate in candidates]
    if repeats < 1 or len(set(names)) < len(names):
        raise ValueError(f"repeats must be at least 1 and names distinct: {repeats}, {names}.")
    prepared = [_Prepared(candidate) for candidate in candidates]
    for one in prepared:
        one.warm_up()
    rounds = [[one.run() for one in prepared] for _ in range(repeats)]
    return [
        Timing(name, seconds, one.compile_seconds, one.temporary_bytes)
        for name, one, seconds in zip(names, prepared, zip(*rounds, strict=True), strict=True)
    ]


class _Prepared:
    """A compiled candidate, with its own copy of what it donates."""

    def __init__(self, candidate: Candidate):
        self._candidate = candidate
        self._function, self._arguments = candidate.function, candidate.arguments
        self._calls = 1
        self.compile_seconds, self.temporary_bytes = 0.0, None
        if candidate.carried:
            self._arguments = (updates.copy_tree(self._arguments[0]), *self._arguments[1:])
        if candidate.compiled:
            donated = (0,) if candidate.carried else ()
            # Unused as well: the function may only write over what is carried.
            jitted = jax.jit(self._function, donate_argnums=donated, keep_unused=True)
            start = time.perf_counter()
            self._function = jitted.lower(*self._arguments).compile()
            self.compile_seconds = time.perf_counter() - start
            analysis = self._function.memory_analysis()
            # Not every backend has one.
            self.temporary_bytes = None if analysis is None else int(analysis.temp_size_in_bytes)

    def warm_up(self) -> None:
        """Runs once; a compiled function once more, to see how many calls make a run."""
        self.run()
        if self._candidate.compiled:
            self._calls = min(math.ceil(_SHORTEST_RUN_S / self.run()), _MOST_CALLS)

    def run(self) -> float:
        """Calls the function a few times in a row; returns the seconds a call took."""
        outputs = None
        start = time.perf_counter()
        for _ in range(self._calls):
            outputs = self._function(*self._arguments)
            if self._candidate.carried:
                self._arguments = (outputs[0], *self._arguments[1:])
            else:
                # Calls that do not wait for each other could run side by side.
                jax.block_until_ready(outputs)
        jax.block_until_ready(outputs)
        return (time.perf_counter() - start) / self._calls
