"""What the machine can do while a benchmark runs: two candidates that take turns with the others.

Measured in the same rounds, a share of the machine's rate means the same on a busy machine.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bellmax.experiments.benchmarks.runner import Candidate, Measurement, Ratio, ratio

_MATMUL = "machine: matmul"
_COPY = "machine: copy"


class Machine(NamedTuple):
    """The work of the two candidates.

    Attributes:
      matmul_size: n of an n x n x n product in float32.
      copy_size: float32 numbers that are read and written back, far more than caches hold.
    """

    matmul_size: int
    copy_size: int

    @property
    def matmul_flops(self) -> float:
        """Floating-point operations of the product: 2 n^3."""
        return 2.0 * self.matmul_size**3

    @property
    def copy_bytes(self) -> float:
        """Bytes read and bytes written, together."""
        return 8.0 * self.copy_size

    def candidates(self) -> list[Candidate]:
        """Returns a product of matrices, and a pass over memory in place (fresh pages would cost
        more than the copy).
        """
        matrix = jax.random.normal(jax.random.key(0), (self.matmul_size, self.matmul_size))
        numbers = jnp.ones((self.copy_size,), jnp.float32)
        return [
            Candidate(_MATMUL, jax.jit(jnp.matmul), (matrix, matrix)),
            Candidate(_COPY, jax.jit(lambda x: (-x,), donate_argnums=0), (numbers,), donated=True),
        ]

    def flops_per_second(self, measured: Mapping[str, Measurement]) -> float:
        """Returns the median rate of the product of matrices."""
        return self.matmul_flops / measured[_MATMUL].median

    def bytes_per_second(self, measured: Mapping[str, Measurement]) -> float:
        """Returns the median rate of memory."""
        return self.copy_bytes / measured[_COPY].median

    def share_of_matmul(
        self, measured: Mapping[str, Measurement], name: str, flops: float
    ) -> Ratio:
        """Returns a candidate's rate of operations as a share of the product's.

        Args:
          measured: measurements of one call, the machine's among them.
          name: the candidate.
          flops: its floating-point operations a call.

        Returns:
          The share, 1 for all that the machine can do.
        """
        return ratio(measured[_MATMUL], measured[name], scale=flops / self.matmul_flops)

    def times_memory_limit(
        self, measured: Mapping[str, Measurement], name: str, num_bytes: float
    ) -> Ratio:
        """Returns a candidate's time as a multiple of the time that its bytes alone would take.

        Args:
          measured: measurements of one call, the machine's among them.
          name: the candidate.
          num_bytes: bytes that a call must read and write, at the least.

        Returns:
          The multiple, 1 at the limit.
        """
        return ratio(measured[name], measured[_COPY], scale=self.copy_bytes / num_bytes)


def make(quick: bool) -> Machine:
    """Returns the machine's own candidates.

    Args:
      quick: small sizes, for a test of the code and not of the machine.

    Returns:
      Their sizes.
    """
    return Machine(256, 2**18) if quick else Machine(2048, 2**26)
