"""Runs speed and memory comparisons.

    python -m bellmax.experiments.benchmarks --list
    python -m bellmax.experiments.benchmarks adan train_step --repeats=9 --workdir=DIR
    python -m bellmax.experiments.benchmarks large_models --profile=DIR

Times are medians. A figure such as `1.05 (0.98-1.2)` is a ratio over neighbouring runs: median,
least and greatest. Without names all comparisons run, which takes a few minutes.
"""

import contextlib
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from bellmax.experiments import benchmarks, discovery, errors, metrics
from bellmax.experiments.benchmarks import machine as machine_lib
from bellmax.experiments.benchmarks import runner

_FLAGS = flags.FLAGS


def _define_flags() -> None:
    flags.DEFINE_bool("list", False, "List the comparisons and stop.")
    flags.DEFINE_bool("quick", False, "Small shapes: tests the code and not the machine.")
    flags.DEFINE_integer("repeats", 7, "Counted runs of each candidate.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder for a NAME.json each; none by default.")
    flags.DEFINE_string(
        "profile", None, "Folder for a trace of each comparison, which Perfetto and XProf read."
    )


def benchmark_names() -> list[str]:
    """Returns the names of all comparisons, sorted: the modules that have a `BENCHMARK`."""
    return list(discovery.find(benchmarks, "BENCHMARK"))


def load(name: str) -> runner.Benchmark:
    """Returns a comparison.

    Args:
      name: one of `benchmark_names()`.

    Returns:
      The comparison.

    Raises:
      UserError: there is no such comparison; the nearest name is suggested.
    """
    return discovery.pick(discovery.find(benchmarks, "BENCHMARK"), name, kind="benchmark")


def _save(workdir: pathlib.Path, name: str, machine: runner.Machine, rows: list[Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    value = {
        "name": name,
        "quick": _FLAGS.quick,
        "repeats": _FLAGS.repeats,
        "device": f"{device.device_kind} ({device.platform}), {platform.machine()}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "machine": machine._asdict(),
        # A ratio is a list: median, least, greatest.
        "rows": rows,
    }
    metrics.write_json(workdir / f"{name}.json", value)


def _traced(name: str) -> contextlib.AbstractContextManager[None]:
    if _FLAGS.profile is None:
        return contextlib.nullcontext()
    return jax.profiler.trace(pathlib.Path(_FLAGS.profile) / name)


def main(argv: Sequence[str]) -> None:
    """Reads the flags and runs what they name."""
    selected = [load(name) for name in list(argv[1:]) or benchmark_names()]
    if _FLAGS.list:
        rows = [{"name": one.name, "compares": one.description} for one in selected]
        metrics.print_table("Benchmarks", rows)
        return
    for benchmark in selected:
        print(f"{benchmark.name} ...", file=sys.stderr, flush=True)
        # Once a comparison, since other work on the machine comes and goes.
        machine = machine_lib.measure_machine(_FLAGS.quick, _FLAGS.repeats)
        with _traced(benchmark.name):
            rows = benchmark.run(machine, _FLAGS.quick, _FLAGS.repeats)
        metrics.print_table(f"{benchmark.name}: {benchmark.description}", rows)
        print(
            f"machine: float32 matmul {machine.matmul_flops / 1e9:.4g} GFLOP/s, "
            f"copy in place {machine.copy_bytes / 1e9:.4g} GB/s\n",
            flush=True,
        )
        if _FLAGS.workdir is not None:
            _save(pathlib.Path(_FLAGS.workdir), benchmark.name, machine, rows)


if __name__ == "__main__":
    _define_flags()
    errors.run(main, resumes=False)
