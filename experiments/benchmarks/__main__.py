"""Runs speed and memory comparisons.

    python -m bellmax.experiments.benchmarks --list
    python -m bellmax.experiments.benchmarks adan train_step --repeats=9 --workdir=DIR

Times are medians. A figure such as `1.05 (0.98-1.2)` is a ratio over neighbouring runs: median,
least and greatest. Without names, all comparisons run, which takes a few minutes.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Sequence

import jax
from absl import flags

from bellmax.experiments import errors, metrics
from bellmax.experiments.benchmarks import registry
from bellmax.experiments.benchmarks.benchmark import Benchmark, Options, Report

_FLAGS = flags.FLAGS


def _define_flags() -> None:
    flags.DEFINE_bool("list", False, "List the comparisons and stop.")
    flags.DEFINE_bool("quick", False, "Small shapes: tests the code and not the machine.")
    flags.DEFINE_integer("repeats", 7, "Runs of each candidate.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder for NAME.json, with every run; none by default.")


def _show(benchmark: Benchmark, report: Report) -> None:
    metrics.print_table(f"{benchmark.name}: {benchmark.description}", report.rows)
    machine, measured = report.machine, report.measured
    print(
        f"machine: matmul {machine.flops_per_second(measured) / 1e9:.4g} GFLOP/s (float32, "
        f"n = {machine.matmul_size}), copy {machine.bytes_per_second(measured) / 1e9:.4g} GB/s "
        "(read and written, in place)"
    )
    for note in report.notes:
        print(note)
    print(flush=True)


def _save(workdir: pathlib.Path, benchmark: Benchmark, report: Report, options: Options) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    value = {
        "name": benchmark.name,
        "description": benchmark.description,
        "quick": options.quick,
        "device": f"{device.device_kind} ({device.platform}), {platform.machine()}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "matmul_flops_per_second": report.machine.flops_per_second(report.measured),
        "copy_bytes_per_second": report.machine.bytes_per_second(report.measured),
        "rows": report.rows,
        "notes": report.notes,
        "measured": {name: one._asdict() for name, one in report.measured.items()},
    }
    metrics.write_json(workdir / f"{benchmark.name}.json", value)


def main(argv: Sequence[str]) -> None:
    """Reads the flags and runs what they name."""
    selected = registry.select(list(argv[1:]))
    if _FLAGS.list:
        metrics.print_table(
            "Benchmarks", [{"name": one.name, "compares": one.description} for one in selected]
        )
        return
    options = Options(quick=_FLAGS.quick, repeats=_FLAGS.repeats)
    for benchmark in selected:
        print(f"{benchmark.name}: {options.repeats} runs of each", file=sys.stderr, flush=True)
        report = benchmark.run(options)
        _show(benchmark, report)
        if _FLAGS.workdir is not None:
            _save(pathlib.Path(_FLAGS.workdir), benchmark, report, options)


if __name__ == "__main__":
    _define_flags()
    errors.run(main)
