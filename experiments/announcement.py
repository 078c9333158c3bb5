"""What a binary says on standard error before it begins."""

import pathlib
import platform
import sys
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

import bellmax


def versions() -> str:
    """Returns what runs: the versions of bellmax, JAX and Python."""
    python = platform.python_version()
    return f"bellmax {bellmax.__version__}, jax {jax.__version__}, Python {python}"


def announce(lines: Sequence[str], *, mesh: Mesh, workdir: pathlib.Path) -> None:
    """Says on standard error what is about to run; the first process alone speaks.

    Args:
      lines: what the run is made of.
      mesh: its devices.
      workdir: its folder.
    """
    if jax.process_index() != 0:
        return
    first = (
        versions(),
        f"devices: {jax.device_count()} {jax.devices()[0].platform}, mesh {dict(mesh.shape)}, "
        f"processes: {jax.process_count()}",
    )
    print("\n".join((*first, *lines, f"workdir: {workdir}")), file=sys.stderr, flush=True)
