"""The rates of the machine that figures stand beside."""

import jax
import jax.numpy as jnp

from bellmax.experiments.benchmarks import runner


def measure_machine(quick: bool, repeats: int) -> runner.Machine:
    """Measures the machine's rates: a product of two 2048 x 2048 matrices, and 256 MiB negated.

    The pass over memory is in place, as a donated update is: fresh pages cost more than the copy.

    Args:
      quick: small sizes.
      repeats: counted runs.

    Returns:
      Median rates.
    """
    size, count = (256, 2**18) if quick else (2048, 2**26)
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    matmul, copy = runner.measure(
        [
            runner.Candidate("matmul", jnp.matmul, (matrix, matrix)),
            runner.Candidate("copy", lambda x: (-x,), (jnp.ones(count),), carried=True),
        ],
        repeats=repeats,
    )
    return runner.Machine(2 * size**3 / matmul.median, 8 * count / copy.median)
