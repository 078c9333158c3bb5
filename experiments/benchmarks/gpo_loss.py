"""The GPO losses and their gradients, against what reading and writing alone would take.

A call reads two log-ratios a pair and writes two gradients: 16 bytes a pair in float32. Gradients
go where those of the last call were, as they do inside a training step; fresh memory would cost
more than the loss. `same traffic` reads and writes the same bytes and computes next to nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.experiments.benchmarks import runner

_BYTES_A_PAIR = 16
_FUNCTIONS = (
    losses.logistic,
    losses.hinge,
    losses.squared,
    losses.exponential,
    losses.truncated_quadratic,
    losses.savage,
)


def _loss_and_gradients(convex_fn: losses.ConvexFn) -> Callable[..., Any]:
    def mean_loss(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean(losses.gpo_loss(*pair, convex_fn=convex_fn, beta=0.1))

    def step(outputs: tuple[jax.Array, jax.Array], pair: tuple[jax.Array, jax.Array]):
        del outputs  # Only their memory is used.
        loss, gradients = jax.value_and_grad(mean_loss)(pair)
        return gradients, loss

    return step


def _same_traffic(outputs: tuple[jax.Array, jax.Array], pair: tuple[jax.Array, jax.Array]):
    del outputs
    margin = pair[0] - pair[1]
    return (margin, -margin), margin[0]


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares every convex function over 2^20 pairs.

    Args:
      machine: measured rates.
      quick: fewer pairs.
      repeats: counted runs.

    Returns:
      One row a candidate. The memory limit is the traffic at the machine's rate for arrays that no
      cache holds; arrays that a cache does hold may be faster.
    """
    num_pairs = 2**12 if quick else 2**20
    chosen, rejected = 10 * jax.random.normal(jax.random.key(0), (2, num_pairs))
    pair = (chosen, rejected)
    functions = {"same traffic": _same_traffic}
    functions |= {convex_fn.__name__: _loss_and_gradients(convex_fn) for convex_fn in _FUNCTIONS}
    timings = runner.measure(
        [runner.Candidate(name, f, (pair, pair), carried=True) for name, f in functions.items()],
        repeats=repeats,
    )
    limit = _BYTES_A_PAIR * num_pairs / machine.copy_bytes
    return [
        runner.row(timing, timings[0])
        | {"ns a pair": 1e9 * timing.median / num_pairs, "x memory limit": timing.median / limit}
        for timing in timings
    ]


BENCHMARK = runner.Benchmark(
    name="gpo_loss",
    description="loss and gradients of each convex function over 2^20 pairs",
    run=run,
)
