"""Solves games, trees of conversations and laws of returns exactly: who converges, and how fast.

    python -m bellmax.experiments.tabular --config=nash_md --workdir=runs/nash_md
    python -m bellmax.experiments.tabular --config=nash_md:cycle --workdir=runs/cycle \
        --config.games.tau=0.05
    python -m bellmax.experiments.tabular --config=mtpo --workdir=runs/mtpo
    python -m bellmax.experiments.tabular --config=dcfp --workdir=runs/dcfp
    python -m bellmax.experiments.tabular --config=q_lambda --workdir=runs/q_lambda

The folder of the run receives `metrics.jsonl`, TensorBoard events, `result.json` and figures:
`convergence.png` of games and trees. Everything is computed in float64. A run takes seconds to a
minute or two and keeps no checkpoints: the same command starts from the beginning and writes its
files anew.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bellmax.agents import tabular
from bellmax.experiments import (
    announcement,
    errors,
    metrics,
    plots,
    progress,
    tabular_config,
    tabular_fixed_points,
    tabular_games,
    tabular_q_lambda,
    tabular_trees,
)
from bellmax.experiments import config as config_lib


def solve(config: tabular_config.TabularConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Solves what the config names and writes tables and figure.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      What `result.json` holds: rows of games, of trees, and of the comparison of policies on trees.

    Raises:
      UserError: the config is wrong, or a file of a measured game is.
    """
    tabular_config.check(config)
    tabular_games.check_methods(config)
    tabular_trees.check_methods(config)
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    with jax.enable_x64(True):
        # All of them first: a wrong name is found before the first is solved.
        games = {name: tabular_games.make_game(name, config) for name in config.games.names}
        trees = {name: tabular_trees.make_tree(name, config) for name in config.trees.names}
        game_rows, panels = [], []
        for name, game in games.items():
            progress.say(f"{name}: {game.num_actions} actions, {', '.join(config.games.methods)}")
            rows, panel = _solve_game(name, game, config, workdir)
            game_rows += rows
            panels.append(panel)
        tree_rows, comparisons = [], []
        for name, tree in trees.items():
            progress.say(f"{name}: {tree.horizon} turns, {', '.join(config.trees.methods)}")
            rows, compared, panel = _solve_tree(name, tree, config, workdir)
            tree_rows += rows
            comparisons += compared
            panels.append(panel)
    plots.save_figure(workdir / "convergence.png", panels, columns=min(3, len(panels)))
    result = {"games": game_rows, "trees": tree_rows, "policies": comparisons}
    metrics.write_json(workdir / "result.json", result)
    metrics.print_table("Games after the last step", game_rows)
    metrics.print_table("Trees after the last step", tree_rows)
    metrics.print_table("Equilibrium of conversations against other policies", comparisons)
    return result


def _write(workdir: pathlib.Path, stage: str, steps: np.ndarray, series: dict[str, np.ndarray]):
    """Writes a method's metrics, and returns the last of each."""
    writer = metrics.MetricsWriter(workdir, stage)
    rows = [{key: float(values[i]) for key, values in series.items()} for i in range(len(steps))]
    for step, row in zip(steps, rows, strict=True):
        writer.write(int(step), row)
    writer.close()
    return rows[-1]


def _solve_game(name, game, config: tabular_config.TabularConfig, workdir: pathlib.Path):
    games, train = config.games, config.train
    steps = tabular_config.points(train.num_steps, train.num_points)
    equilibrium = tabular.regularised_nash(*game, tau=games.tau)
    rows, curves = [], {}
    for method in games.methods:
        policies = tabular_games.METHODS[method](game, games, train.num_steps)
        found = tabular_games.evaluate(game, equilibrium, policies, games.tau)
        found = {key: values[steps] for key, values in found.items()}
        last = _write(workdir, f"{name}.{method}".replace(":", "_"), steps, found)
        kls = found["kl/equilibrium"]
        slope = tabular_games.slope(steps, kls, floor=1e-26)
        rows.append({"game": name, "method": method, **last, "slope": slope})
        curves[method] = (steps, kls)
    return rows, tabular_games.panel(name, games.tau, curves)


def _solve_tree(name, tree, config: tabular_config.TabularConfig, workdir: pathlib.Path):
    alpha, train = config.trees.alpha, config.train
    steps = tabular_config.points(train.num_steps, train.num_points)
    equilibrium = tabular.multi_turn_equilibrium(*tree, alpha=alpha)
    others = tabular_trees.baselines(tree, equilibrium, alpha)
    rows, curves = [], {}
    for method in config.trees.methods:
        policies = tabular_trees.METHODS[method](*tree, alpha=alpha, num_steps=train.num_steps)
        kls = tabular_trees.divergences(tree, equilibrium, policies)[steps]
        stage = f"{name}.{method}".replace(":", "_")
        last = _write(workdir, stage, steps, {"kl/equilibrium": kls})
        rows.append(
            {
                "tree": name,
                "method": method,
                **last,
                "bound": float(tabular_trees.bound(tree, steps[-1:], alpha)[0]),
                "slope": tabular_games.slope(steps, kls, floor=1e-14),
            }
        )
        curves[method] = (steps, kls)
        others[method] = policies[-1]
    compared = tabular_trees.compare(tree, others, equilibrium, alpha)
    compared = [{"tree": name, **row} for row in compared]
    return rows, compared, tabular_trees.panel(name, tree, alpha, curves)


AnyConfig = tabular_config.TabularConfig | tabular_fixed_points.Config | tabular_q_lambda.Config


def parse(config: ml_collections.ConfigDict) -> AnyConfig:
    """Returns the run that a config describes; its groups say of which kind it is.

    Args:
      config: the config.

    Returns:
      A frozen dataclass.

    Raises:
      UserError: a key is missing, unknown or of the wrong type.
    """
    kinds = {"fixed_points": tabular_fixed_points.Config, "operators": tabular_q_lambda.Config}
    for group, kind in kinds.items():
        if group in config:
            return config_lib.to_dataclass(kind, config)
    return config_lib.to_dataclass(tabular_config.TabularConfig, config)


def run(config: AnyConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs a config of any kind.

    Args:
      config: from `parse`.
      workdir: folder of the run, which exists.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: the config is wrong.
    """
    if isinstance(config, tabular_fixed_points.Config):
        return tabular_fixed_points.solve(config, workdir, progress.say)
    if isinstance(config, tabular_q_lambda.Config):
        return tabular_q_lambda.solve(config, workdir, progress.say)
    return solve(config, workdir)


_FLAGS = config_lib.RunFlags("tabular") if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and solves."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, workdir = _FLAGS.read()
    parsed = parse(config)
    config_lib.save_run_config(workdir, config)
    progress.say(
        f"{announcement.versions()}, {jax.devices()[0].platform}, float64; workdir: {workdir}"
    )
    run(parsed, workdir)


if __name__ == "__main__":
    errors.run(main, resumes=False)
