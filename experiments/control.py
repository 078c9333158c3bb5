"""Trains agents that play: acting, remembering and learning in one program, several seeds at once.

    python -m bellmax.experiments.control --config=c51_q_lambda --workdir=runs/lake
    python -m bellmax.experiments.control --config=c51_q_lambda:minatar_breakout \
        --workdir=runs/breakout --config.train.num_seeds=10
    python -m bellmax.experiments.control --config=ppo --workdir=runs/ppo

One stage a method, each from the same start on the same number of environment steps. What they
learn from is the config's: laws of returns from a replay, policies from a replay, or policies from
their own rollouts. The folder of the run receives checkpoints with the replay, `metrics.jsonl`,
TensorBoard events, `result.json` and `learning_curves.png`. The same command resumes a run that was
stopped, bit for bit.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from bellmax.experiments import (
    announcement,
    control_config,
    control_methods,
    control_policies,
    control_policy_config,
    control_report,
    control_training,
    errors,
    mesh,
    metrics,
    plots,
    runner,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments.control_config import ControlConfig
from bellmax.experiments.control_policy_config import OffPolicyConfig, RolloutConfig

Config = ControlConfig | RolloutConfig | OffPolicyConfig


class _Flow(NamedTuple):
    """What is trained on what.

    Attributes:
      kind: the config's dataclass.
      check: refuses what no single key shows to be wrong.
      make_setup: `(config, place, environment)` to what the loop needs.
      describe: `(config, seeds)` to lines that are said at the start.
      alike: whether methods differ in their updates alone, and start and play alike.
    """

    kind: type
    check: Callable[[Any], None]
    make_setup: Callable[..., control_training.Setup]
    describe: Callable[..., Sequence[str]]
    alike: bool = True


# What the key `flow` says; configs without it learn laws of returns from a replay.
_FLOWS = {
    None: _Flow(
        ControlConfig,
        control_config.check,
        control_methods.make_setup,
        control_report.describe_replay,
    ),
    control_policy_config.REPLAY: _Flow(
        OffPolicyConfig,
        control_policy_config.check,
        control_policies.make_replay_setup,
        control_report.describe_replay,
    ),
    control_policy_config.ROLLOUTS: _Flow(
        RolloutConfig,
        control_policy_config.check,
        control_policies.make_rollout_setup,
        control_report.describe_rollouts,
        alike=False,
    ),
}


def parse(config: Any) -> Config:
    """Returns a config as the dataclass of its flow.

    Args:
      config: a ConfigDict.

    Returns:
      The dataclass.

    Raises:
      UserError: a key is unknown or missing or has the wrong type, or there is no such flow.
    """
    flow = config.to_dict().get("flow")
    if flow not in _FLOWS:
        raise config_lib.unknown("config.flow", flow, [name for name in _FLOWS if name])
    return config_lib.to_dataclass(_FLOWS[flow].kind, config)


def train(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Trains every method, or what is left of it, and writes table and figure.

    Args:
      config: the run.
      workdir: its folder, which exists.

    Returns:
      The final table, one row a method.

    Raises:
      UserError: the config is wrong, training has diverged, or a checkpoint does not fit.
    """
    (flow,) = (flow for flow in _FLOWS.values() if isinstance(config, flow.kind))
    flow.check(config)
    keys = config.train
    environment = control_methods.make_environment(config.data)
    names = config.loss.names
    # All of them first: a wrong name is found before the first is trained.
    setups = [flow.make_setup(config, place, environment) for place in range(len(names))]
    devices = mesh.of_config(keys)
    control_training.check_spread(keys.num_seeds, devices)
    schedule = runner.make_schedule(keys, keys.num_steps)
    start_key, run_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)

    def compiled(setup):
        return (
            control_training.start(setup, keys.num_seeds),
            control_training.evaluation(setup, keys, devices, evaluation_key),
        )

    # Once for all methods, where that is right.
    start, evaluate = compiled(setups[0])
    for place, (name, setup) in enumerate(zip(names, setups, strict=True)):
        if place > 0 and not flow.alike:
            start, evaluate = compiled(setup)
        state = start(start_key)
        if place == 0:
            announcement.announce(flow.describe(config, state.seeds), mesh=devices, workdir=workdir)
        runner.run_stage(
            name=name,
            workdir=workdir,
            state=state,
            train_step=control_training.train_step(setup, keys, devices),
            batches=runner.SameBatches(),
            schedule=schedule,
            run_key=run_key,
            mesh=devices,
            evaluate=evaluate,
            sharding=control_training.sharding,
        )
    rows = control_report.final_rows(workdir, names)
    if jax.process_index() == 0:
        panel = control_report.panel(workdir, config.data.name, names)
        plots.save_figure(workdir / "learning_curves.png", [panel])
    metrics.write_json(workdir / "result.json", {"rows": rows})
    metrics.print_table(
        f"{config.data.name}: interquartile mean over {keys.num_seeds} seeds, 95% interval",
        control_report.table(rows),
    )
    return rows


_FLAGS = config_lib.RunFlags("control") if __name__ == "__main__" else None


def main(argv: Sequence[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise errors.UserError(f"Unknown arguments: {' '.join(argv[1:])}.")
    assert _FLAGS is not None
    config, workdir = _FLAGS.read()
    parsed = parse(config)
    _FLAGS.join_processes()
    config_lib.save_run_config(workdir, config)
    train(parsed, workdir)


if __name__ == "__main__":
    errors.run(main)
