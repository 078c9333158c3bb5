"""Aligns a language policy with preference pairs: supervised warm start, then any pairwise losses.

    python -m bellmax.experiments.align --config=gpo --workdir=runs/gpo
    python -m bellmax.experiments.align --config=gpo:hinge --workdir=runs/hinge
    --config.train.num_steps=800

The folder of the run receives checkpoints, `metrics.jsonl`, TensorBoard events, `result.json`,
`trade_off.png` and `learning_curves.png`; a run that began from a checkpoint in Hugging Face's
layout (`config.model.checkpoint`) leaves each policy in `policies` in the same layout. The same
command resumes a run that was stopped, bit for bit.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bellmax.agents import networks
from bellmax.experiments import (
    align_config,
    align_report,
    align_stages,
    announcement,
    dry_run_language,
    errors,
    gold,
    language_run,
    metrics,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import sources


def train(config: align_config.AlignConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Runs all stages and writes tables and figures.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      The final table, one row a loss.

    Raises:
      UserError: data or config are wrong, or training has diverged.
    """
    run = align_stages.prepare(config, workdir)
    _announce(run)
    reference = language_run.warm_start(run)
    cached = None if config.train.live_reference else align_stages.cached_reference(run, reference)
    for name, beta in zip(config.loss.names, config.loss.betas, strict=True):
        policy = align_stages.optimise(run, name, beta, reference, cached)
        run.save_policy(name, policy)
    frontier = None
    if run.gold is not None:
        log_probs = run.gold.completion_log_probs(reference)
        frontier = gold.optimal_frontier(run.gold, log_probs, np.geomspace(20.0, 0.1, 40))
    rows = align_report.final_rows(workdir, config.loss.names, config.loss.betas)
    if jax.process_index() == 0:
        align_report.save_figures(workdir, config.loss.names, frontier)
    metrics.write_json(workdir / "result.json", {"rows": rows})
    metrics.print_table("Held-out results after the last step", align_report.table(rows))
    return rows


def _announce(run: align_stages.AlignRun) -> None:
    train = run.config.train
    params = jax.eval_shape(functools.partial(networks.init, run.network), jax.random.key(0))
    buckets = run.config.data.bucket_lengths
    lines = (
        f"policy: {networks.num_parameters(params):,} parameters, vocabulary "
        f"{run.network.vocab_size}",
        sources.describe("train", run.data.train, buckets),
        sources.describe("held out", run.data.held_out, buckets),
        f"steps: {train.warm_start_steps} of warm start, then {train.num_steps} each of "
        f"{', '.join(run.config.loss.names)}; {train.batch_size} rows a step",
    )
    announcement.announce(lines, mesh=run.mesh, workdir=run.workdir)


_FLAGS = config_lib.RunFlags("align", simulates=True) if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    simulation = _FLAGS.simulation()
    if simulation is not None:
        parsed = config_lib.to_dataclass(align_config.AlignConfig, _FLAGS.read_config())
        dry_run_language.run(parsed, simulation)
        return
    config, workdir = _FLAGS.read()
    parsed = config_lib.to_dataclass(align_config.AlignConfig, config)
    _FLAGS.join_processes()
    config_lib.save_run_config(workdir, config)
    train(parsed, workdir)


if __name__ == "__main__":
    errors.run(main)
