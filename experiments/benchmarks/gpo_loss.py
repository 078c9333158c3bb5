"""The GPO losses and their gradients, against what reading and writing alone would take.

A call reads two log-ratios a pair and writes two gradients: 16 bytes a pair in float32. Gradients
go where those of the last call were, as they do inside a training step; fresh memory would cost
more than the loss. `same traffic` reads and writes the same bytes and computes next to nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.experiments.benchmarks import machine as machine_lib
from bellmax.experiments.benchmarks import runner
from bellmax.experiments.benchmarks.benchmark import Benchmark, Options, Report, milliseconds

_FLOOR = "same traffic"
_FUNCTIONS = (
    losses.logistic,
    losses.hinge,
    losses.squared,
    losses.exponential,
    losses.truncated_quadratic,
    losses.savage,
)


def _candidate(name: str, step: Any, pairs: tuple[jax.Array, jax.Array]) -> runner.Candidate:
    def into(outputs: tuple[jax.Array, jax.Array], *pairs: jax.Array) -> tuple[Any, jax.Array]:
        del outputs  # Only their memory is used.
        loss, gradients = step(*pairs)
        return gradients, loss

    jitted = jax.jit(into, donate_argnums=0, keep_unused=True)
    return runner.Candidate(name, jitted, (pairs, *pairs), donated=True)


def _mean_loss(convex_fn: losses.ConvexFn) -> Any:
    def mean_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return jnp.mean(losses.gpo_loss(chosen, rejected, convex_fn=convex_fn, beta=0.1))

    return jax.value_and_grad(mean_loss, argnums=(0, 1))


def _same_traffic(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, Any]:
    margin = chosen - rejected
    return margin[0], (margin, -margin)


def run(options: Options) -> Report:
    """Measures every convex function over a million pairs.

    Args:
      options: how to run.

    Returns:
      Times, and multiples of the memory limit.
    """
    num_pairs = 2**12 if options.quick else 2**20
    keys = jax.random.split(jax.random.key(0))
    pairs = (
        10 * jax.random.normal(keys[0], (num_pairs,)),
        10 * jax.random.normal(keys[1], (num_pairs,)),
    )
    machine = machine_lib.make(options.quick)
    candidates = [_candidate(_FLOOR, _same_traffic, pairs)]
    candidates += [_candidate(f.__name__, _mean_loss(f), pairs) for f in _FUNCTIONS]
    measured = runner.measure([*candidates, *machine.candidates()], repeats=options.repeats)
    num_bytes = 16.0 * num_pairs
    rows = [
        {
            "": candidate.name,
            "ms": milliseconds(measured[candidate.name]),
            "ns a pair": 1e9 * measured[candidate.name].median / num_pairs,
            "time / memory limit": machine.times_memory_limit(measured, candidate.name, num_bytes),
            f"time / {_FLOOR}": runner.ratio(measured[candidate.name], measured[_FLOOR]),
            "compile s": measured[candidate.name].compile_seconds,
        }
        for candidate in candidates
    ]
    notes = [
        f"memory limit: {num_bytes / 1e6:.3g} MB at the machine's copy rate; what fits in a cache "
        "may be below it."
    ]
    return Report(rows, notes, measured, machine)


BENCHMARK = Benchmark(
    name="gpo_loss",
    description="value and gradients of each convex function over 2^20 pairs",
    run=run,
)
