"""Training in the dialogue game: every method in turn, from the same network, evaluated exactly.

    rows = train(DialogueConfig(...), workdir)

A method samples conversations from its own policy. Its law over utterances at every prefix is a
table, and win-rates between tables are sums (`envs.dialogue_exact`, `dialogue_solutions`).
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from bellmax.agents import Params, mtpo, networks
from bellmax.envs import dialogue_exact
from bellmax.experiments import (
    announcement,
    dialogue_config,
    dialogue_methods,
    dialogue_solutions,
    mesh,
    metrics,
    numbered,
    plots,
    runner,
)
from bellmax.experiments.dialogue_config import DialogueConfig


def train(config: DialogueConfig, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every method, or what is left of it, and compares them exactly.

    Args:
      config: the run.
      workdir: its folder, which exists; receives checkpoints, `metrics.jsonl`, TensorBoard events,
        `result.json`, `learning_curves.png` and `winner_matrix.png`.

    Returns:
      One row a method: `method`, what `dialogue_solutions.score` returns, and `win_rate/NAME`
      against each method.

    Raises:
      UserError: the config is wrong, training has diverged, or a checkpoint does not fit.
    """
    dialogue_config.check(config)
    keys, game = config.train, dialogue_config.make_game(config.data)
    devices = mesh.of_config(keys)
    trainers = {
        name: dialogue_methods.make_trainer(config, name, devices) for name in config.loss.methods
    }
    schedule = runner.make_schedule(keys, keys.num_steps)
    everywhere = NamedSharding(devices, PartitionSpec())
    root = jax.random.key(config.seed)
    tables, solutions, rows = {}, None, []
    for name, trainer in trainers.items():
        state = trainer.agent.init(jax.random.fold_in(root, 0))
        if solutions is None:
            _announce(config, workdir, state, devices)
            reference = jax.jit(trainer.table)(state.reference_params)
            solutions = dialogue_solutions.solve(game, reference, alpha=config.loss.alpha)
        table = jax.jit(trainer.table, out_shardings=everywhere)
        state = runner.run_stage(
            name=name,
            workdir=workdir,
            state=state,
            train_step=trainer.train_step,
            batches=runner.SameBatches(numbered.local_rows(keys.batch_size)),
            schedule=schedule,
            run_key=numbered.named_key(config.seed, name),
            mesh=devices,
            evaluate=_evaluation(solutions, table),
        )
        tables[name] = np.asarray(table(state.params["policy"]))
        rows.append({"method": name, **_score(solutions, tables[name])})
    win_rate = jax.jit(dialogue_exact.win_rate)
    wins = np.array(
        [[float(win_rate(game, a, b)) for b in tables.values()] for a in tables.values()]
    )
    metrics.print_table("Exact values after the last step", rows)
    for row, against in zip(rows, wins, strict=True):
        row.update({f"win_rate/{name}": float(p) for name, p in zip(tables, against, strict=True)})
    metrics.write_json(workdir / "result.json", {"rows": rows})
    if jax.process_index() == 0:
        _save_figures(workdir, wins, config.loss.methods)
    return rows


def _announce(config: DialogueConfig, workdir: pathlib.Path, state: mtpo.State, devices) -> None:
    data, keys = config.data, config.train
    lines = (
        f"policy: {networks.num_parameters(state.reference_params):,} parameters",
        f"game: {data.num_types} types of student, {data.num_turns} turns of "
        f"{data.utterance_length} words; evaluation: exact, over all conversations",
        f"steps: {keys.num_steps} each of {', '.join(config.loss.methods)}; {keys.batch_size} "
        f"conversations a step, {config.loss.num_rivals} rivals each",
    )
    announcement.announce(lines, mesh=devices, workdir=workdir)


_scored = jax.jit(dialogue_solutions.score)


def _score(solutions: dialogue_solutions.Solutions, table: np.ndarray) -> dict[str, float]:
    found = _scored(solutions, jnp.asarray(table))
    return {name: float(value) for name, value in found.items()}


def _evaluation(solutions: dialogue_solutions.Solutions, table: Callable[[Params], Array]):
    def evaluate(state: mtpo.State, step: int) -> Mapping[str, float]:
        del step
        # Through NumPy: on several processes every one of them holds the whole table.
        found = _score(solutions, np.asarray(table(state.params["policy"])))
        return {f"exact/{name}": value for name, value in found.items()}

    return evaluate


def _save_figures(workdir: pathlib.Path, wins: np.ndarray, methods: tuple[str, ...]) -> None:
    rows = [row for row in metrics.read_metrics(workdir) if "exact/win_rate/reference" in row]
    panels = []
    for name, label in (
        ("win_rate/reference", "exact win-rate against the reference"),
        ("asks_first", "probability of asking first"),
    ):
        series = []
        for method in methods:
            points = [row for row in rows if row["stage"] == method]
            steps = [row["step"] for row in points]
            series.append(plots.Series(method, steps, [row[f"exact/{name}"] for row in points]))
        panels.append(plots.Panel("Dialogue game", "step", label, series))
    plots.save_figure(workdir / "learning_curves.png", panels)
    plots.save_matrix(workdir / "winner_matrix.png", "P(row beats column), exact", methods, wins)
