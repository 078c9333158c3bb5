"""What a `control` run says at its start and shows at its end: table and learning curves."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bellmax.agents import networks
from bellmax.experiments import metrics, plots, statistics
from bellmax.experiments.control_config import ControlConfig
from bellmax.experiments.control_policy_config import OffPolicyConfig, RolloutConfig

_SEED = "evaluation/return_seed_"


def describe_replay(config: ControlConfig | OffPolicyConfig, seeds: Any) -> Sequence[str]:
    """Returns what a run that learns from a replay is made of, in lines.

    Args:
      config: the run.
      seeds: the states of all seeds.
    """
    keys, agent = config.train, seeds.agent
    learnt = agent.params if isinstance(config, ControlConfig) else agent[:2]
    outputs = ""
    if isinstance(config, ControlConfig):
        outputs = f", {config.model.num_outputs} {config.model.law} outputs an action"
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(seeds.replay))
    return (
        _environments(config),
        f"network: {networks.num_parameters(learnt) // keys.num_seeds:,} parameters{outputs}",
        f"replay: {keys.replay_size:,} transitions a seed, {size / 1e6:.0f} MB in all",
        _steps(config, f"{keys.num_steps} x {keys.updates_per_step} updates"),
    )


def describe_rollouts(config: RolloutConfig, seeds: Any) -> Sequence[str]:
    """Returns what a run that learns from its own rollouts is made of, in lines.

    Args:
      config: the run.
      seeds: the states of all seeds.
    """
    keys, loss = config.train, config.loss
    count = networks.num_parameters(seeds.agent.params) // keys.num_seeds
    updates = " and ".join(
        f"{epochs} x {parts}" for epochs, parts in zip(loss.epochs, loss.minibatches, strict=True)
    )
    return (
        _environments(config),
        f"networks: {count:,} parameters",
        f"rollouts: {keys.env_steps_per_round:,} steps, {updates} updates on each",
        _steps(config, f"{keys.num_rollouts} rollouts"),
    )


def _environments(config: ControlConfig | OffPolicyConfig | RolloutConfig) -> str:
    return f"environment: {config.data.name}, {config.train.num_environments} of them a seed"


def _steps(config: ControlConfig | OffPolicyConfig | RolloutConfig, rounds: str) -> str:
    keys = config.train
    return (
        f"steps: {keys.num_env_steps:,} environment steps of each of {keys.num_seeds} seeds, "
        f"{rounds}, by each of {', '.join(config.loss.names)}"
    )


def seed_columns(returns: Float[np.ndarray, " S"]) -> dict[str, float]:
    """Returns one metric a seed, as `evaluations` reads them back.

    Args:
      returns: mean return of each seed. [S].

    Returns:
      Metrics by name.
    """
    return {f"{_SEED}{seed}": float(value) for seed, value in enumerate(returns)}


def evaluations(
    workdir: pathlib.Path, stage: str
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, "E S"]]:
    """Returns the evaluations of a method.

    Args:
      workdir: folder of the run.
      stage: the method's name.

    Returns:
      Environment steps of a seed [E], and the mean return of every seed [E, S].
    """
    steps, returns = [], []
    for row in metrics.read_metrics(workdir):
        if row["stage"] == stage and f"{_SEED}0" in row:
            steps.append(row["env_steps"])
            count = sum(key.startswith(_SEED) for key in row)
            returns.append([row[f"{_SEED}{seed}"] for seed in range(count)])
    return np.array(steps), np.array(returns)


def final_rows(workdir: pathlib.Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row a method.

    Args:
      workdir: folder of the run.
      names: the methods.

    Returns:
      Rows: method, interquartile mean over seeds of the last return and of the average over the
      evaluations, each with its 95% bootstrap interval, and both of every seed.
    """
    rows = []
    for name in names:
        _, returns = evaluations(workdir, name)
        row: dict[str, Any] = {"method": name}
        # The evaluation before training says nothing of the method.
        for label, scores in (("last", returns[-1]), ("average", returns[1:].mean(axis=0))):
            found = statistics.bootstrap(scores[:, None])
            row |= {f"{label}_return": found.value, f"{label}_interval": [found.low, found.high]}
            row[f"{label}_returns"] = scores.tolist()
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the columns that people read.

    Args:
      rows: from `final_rows`.

    Returns:
      Method, and both returns with their intervals.
    """
    shown = []
    for row in rows:
        line = {"method": row["method"]}
        for label in ("last", "average"):
            low, high = row[f"{label}_interval"]
            line[f"{label} return"] = f"{row[f'{label}_return']:.4g} ({low:.4g} to {high:.4g})"
        shown.append(line)
    return shown


def panel(workdir: pathlib.Path, title: str, names: Sequence[str]) -> plots.Panel:
    """Returns learning curves: interquartile means over seeds, and 95% intervals.

    Args:
      workdir: folder of the run.
      title: the environment.
      names: the methods.

    Returns:
      The panel.
    """
    series = []
    for name in names:
        steps, returns = evaluations(workdir, name)
        found = [statistics.bootstrap(row[:, None], num_samples=500) for row in returns]
        middle, low, high = (np.array(column) for column in zip(*found, strict=True))
        band = (low, high) if returns.shape[1] > 1 else (None, None)
        series.append(plots.Series(name, steps, middle, *band))
    return plots.Panel(title, "environment steps", "return of greedy episodes", series)
