"""Trains a language policy on its own completions, decided by a judge; then lets policies meet.

    python -m bellmax.experiments.reason --config=nash_md --workdir=runs/nash
    python -m bellmax.experiments.reason --config=nash_md:online_ipo --workdir=runs/ipo \
        --config.train.num_steps=800
    python -m bellmax.experiments.reason --config=mtpo --workdir=runs/mtpo
    python -m bellmax.experiments.reason --config=rloo --workdir=runs/rloo
    python -m bellmax.experiments.reason --config=gsm8k --workdir=runs/gsm8k \
        --config.data.path=train.jsonl --config.data.held_out_path=test.jsonl

Stages: a supervised warm start, which is the reference; judges fitted to preference pairs where the
config asks for one; one stage a method. Configs whose `data.source` is "dialogue" train on whole
conversations instead (`dialogue_training`), and those with "token_task" or "gsm8k" on problems
whose answers are checked (`task_training`, `text_training`). The folder of the run receives
checkpoints, `metrics.jsonl`, TensorBoard events, `result.json`, `winner_matrix.png` and
`learning_curves.png`. The same command resumes a run that was stopped, bit for bit.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bellmax.agents import networks
from bellmax.experiments import (
    announcement,
    dialogue_config,
    dialogue_training,
    dry_run_language,
    errors,
    language_run,
    metrics,
    reason_config,
    reason_report,
    reason_stages,
    task_config,
    task_training,
    text_config,
    text_training,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.data import sources


def train(config: reason_config.ReasonConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Runs all stages and writes tables and figures.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      The final table, one row a policy, the reference first.

    Raises:
      UserError: data or config are wrong, or training has diverged.
    """
    run = reason_stages.prepare(config, workdir)
    _announce(run)
    reference = language_run.warm_start(run)
    judge, rewards = reason_stages.make_judges(run, reference)
    meeting = reason_stages.make_arena(run, reference, judge)
    policies = [reference]
    names, taus = config.loss.names, config.loss.taus
    for name, tau in zip(names, taus, strict=True):
        policy = reason_stages.optimise(run, name, tau, reference, judge, rewards, meeting)
        run.save_policy(name, policy)
        policies.append(policy)
    wins = meeting.matrix(policies)
    rows = reason_report.final_rows(workdir, names, taus, wins)
    if jax.process_index() == 0:
        reason_report.save_figures(workdir, names, wins)
    metrics.write_json(workdir / "result.json", {"rows": rows})
    metrics.print_table("Policies after the last step", reason_report.table(rows))
    return rows


def _announce(run: reason_stages.ReasonRun) -> None:
    train, loss = run.config.train, run.config.loss
    params = jax.eval_shape(functools.partial(networks.init, run.network), jax.random.key(0))
    buckets = run.config.data.bucket_lengths
    exact = run.gold is not None
    lines = (
        f"policy: {networks.num_parameters(params):,} parameters, vocabulary "
        f"{run.network.vocab_size}",
        sources.describe("pairs", run.data.train, buckets),
        sources.describe("held out", run.data.held_out, buckets),
        f"judge: {loss.judge}; evaluation: "
        f"{'exact, by the law of the bench' if exact else 'sampled, by the same judge'}",
        f"steps: {train.warm_start_steps} of warm start, then {train.num_steps} each of "
        f"{', '.join(loss.names)}; {train.batch_size} prompts a step, "
        f"{train.num_opponents + 1} completions each",
    )
    announcement.announce(lines, mesh=run.mesh, workdir=run.workdir)


# What `data.source` says of how a run goes, where it is not prompts and a judge.
_FLOWS: dict[str, tuple[type, Callable[[Any, pathlib.Path], Any]]] = {
    dialogue_config.SOURCE: (dialogue_config.DialogueConfig, dialogue_training.train),
    task_config.SOURCE: (task_config.TaskConfig, task_training.train),
    text_config.SOURCE: (text_config.TextConfig, text_training.train),
}
_FLAGS = config_lib.RunFlags("reason", simulates=True) if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, simulation = _FLAGS.read_config(), _FLAGS.simulation()
    source = config.to_dict()["data"]["source"]
    kind, trains = _FLOWS.get(source, (reason_config.ReasonConfig, train))
    parsed = config_lib.to_dataclass(kind, config)
    if simulation is not None:
        dry_run_language.run(parsed, simulation)
        return
    config, workdir = _FLAGS.read()
    _FLAGS.join_processes()
    config_lib.save_run_config(workdir, config)
    trains(parsed, workdir)


if __name__ == "__main__":
    errors.run(main)
