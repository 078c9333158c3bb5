"""Whole runs of `control`: what they learn and write, and that stopping them changes nothing."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.configs.control import base
from bellmax.envs import ArraySpec, DiscreteSpec, Environment, TimeStep
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    control,
    control_config,
    control_loop,
    control_methods,
    control_report,
    control_training,
    errors,
    mesh,
    metrics,
    runner,
)

TINY = {
    "model": {"hidden_sizes": (8,), "num_outputs": 5},
    "optimizer": {"learning_rate": 1e-2},
    "data": {"source": "line", "name": "line"},
    "loss": {
        "names": ("q_lambda",),
        "trace_decays": (0.7,),
        "mixings": (0.7,),
        "target_every": 10,
        "discount": 0.9,
    },
    "train": {
        "num_seeds": 2,
        "num_env_steps": 1000,
        "num_environments": 2,
        "env_steps_per_update": 2,
        "updates_per_step": 50,
        "batch_size": 16,
        "sequence_length": 3,
        "replay_size": 300,
        "learning_starts": 60,
        "priority_exponent": 0.6,
        "epsilon_env_steps": 300,
        "evaluation_episodes": 3,
        "evaluation_steps": 20,
        "evaluate_every": 2,
        "checkpoint_every": 3,
        "keep_checkpoints": 4,
    },
}


class Place(NamedTuple):
    cell: jax.Array
    time: jax.Array


def line(name):
    """Right at the end pays 1, left in the first cell 0.1 and ends; eight steps truncate."""
    del name

    def show(place, reward, terminated):
        seen = jax.nn.one_hot(place.cell, 4)
        return place, TimeStep(seen, reward, terminated, ~terminated & (place.time >= 8))

    def reset(key, params):
        del key, params
        zero = jnp.zeros((), jnp.int32)
        return show(Place(zero, zero), jnp.zeros(()), jnp.zeros((), bool))

    def step(key, place, action, params):
        del key, params
        gives_up = (place.cell == 0) & (action == 0)
        cell = jnp.where(action == 1, place.cell + 1, jnp.maximum(place.cell - 1, 0))
        reward = 1.0 * (cell == 3) + 0.1 * gives_up
        return show(Place(cell, place.time + 1), reward, gives_up | (cell == 3))

    return Environment(reset, step, (), ArraySpec((4,)), DiscreteSpec(2))


def make_config(**groups):
    config = base.get_config()
    for changes in (TINY, groups):
        config.update(changes)
    return config_lib.to_dataclass(control_config.ControlConfig, config)


@pytest.fixture(autouse=True, scope="module")
def _line():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(control_methods.SOURCES, "line", line)
        yield


def train(config, workdir):
    """Returns the rows and the last state of the (only) method."""
    states = []
    with pytest.MonkeyPatch.context() as patch:
        run_stage = runner.run_stage

        def watched(**arguments):
            states.append(run_stage(**arguments))
            return states[-1]

        patch.setattr(runner, "run_stage", watched)
        rows = control.train(config, workdir)
    return rows, jax.device_get(states[-1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("control")
    return workdir, *train(make_config(), workdir)


def test_the_best_actions_are_learnt_and_everything_is_written(finished):
    workdir, (row,), state = finished
    assert row["method"] == "q_lambda"
    # Giving up at once pays 0.1, the end 1.
    assert row["last_returns"] == [1.0, 1.0]
    assert row["last_interval"] == [1.0, 1.0]
    assert int(state.step) == 10
    np.testing.assert_array_equal(state.seeds.env_steps, [500, 500])
    # 60 of 1000 environment steps go by before learning starts: the thirtieth update is the first.
    assert make_config().train.num_updates == 471
    np.testing.assert_array_equal(state.seeds.agent.step, [471, 471])
    assert json.loads((workdir / "result.json").read_text())["rows"][0]["last_return"] == 1.0
    assert (workdir / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    logged = metrics.read_metrics(workdir)
    steps, returns = control_report.evaluations(workdir, "q_lambda")
    np.testing.assert_array_equal(steps, [0, 200, 400, 600, 800, 1000])
    np.testing.assert_allclose(row["average_returns"], returns[1:].mean(axis=0), rtol=1e-6)
    trained = [row for row in logged if "loss" in row]
    assert [row["env_steps"] for row in trained] == list(range(100, 1001, 100))
    assert [row["updates/done"] for row in trained] == [42.0] + [100.0] * 9
    assert all(np.isfinite(v) for row in logged for v in row.values() if isinstance(v, float))
    # A thousand steps have gone through a replay of three hundred.
    assert state.seeds.replay.is_full.all()


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(finished, tmp_path):
    """Killed after its sixth step was saved and before the ninth was: replay and all come back."""
    workdir, rows, state = finished
    stopped = tmp_path / "stopped"
    shutil.copytree(workdir, stopped)
    (stopped / "result.json").unlink()
    for step in (9, 10):
        shutil.rmtree(stopped / "checkpoints" / "q_lambda" / str(step))
    resumed_rows, resumed = train(make_config(), stopped)
    equal(resumed, state)
    assert resumed_rows == rows

    def curve(folder):
        return [
            {k: v for k, v in row.items() if k != "wall_time_s"}
            for row in metrics.read_metrics(folder)
        ]

    assert curve(stopped) == curve(workdir)


@pytest.mark.slow
def test_killing_a_run_changes_nothing(processes):
    """SIGKILL at two random moments, then to the end: the bits of an undisturbed run."""
    overrides = {
        "model.hidden_sizes": "(16,)",
        "train.num_seeds": 2,
        "train.num_env_steps": 8000,
        "train.updates_per_step": 50,
        "train.batch_size": 8,
        "train.learning_starts": 200,
        "train.replay_size": 1000,
        "train.evaluate_every": 5,
        "train.checkpoint_every": 2,
    }
    runs = processes(
        "bellmax.experiments.control",
        "--config=c51_q_lambda:cartpole",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    )
    runs.finish("whole")
    moments = [runs.kill_at_a_random_moment("cut") for _ in range(2)]
    assert not (runs.folder / "cut" / "result.json").exists()
    runs.finish("cut")
    runs.assert_same("cut", "whole", ", ".join(moments))


def windows(config, devices):
    """Trains without files for three windows, and returns the seeds."""
    environment = control_methods.make_environment(config.data)
    setup = control_methods.make_setup(config, 0, environment)
    state = control_training.start(setup, config.train.num_seeds)(jax.random.key(0))
    state = jax.device_put(state, control_training.sharding(devices, state))
    step = jax.jit(control_training.train_step(setup, config.train, devices))
    for number in range(3):
        state, _ = step(state, (), jax.random.key(number))
    return jax.device_get(state.seeds)


SEEDS = {
    "model": {"hidden_sizes": ()},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "train": {
        "priority_exponent": 0.0,
        "updates_per_step": 20,
        "replay_size": 40,
        "learning_starts": 12,
    },
}


def same_seeds(found, expected):
    """Each seed of one state went the way of the same seed of another, up to rounding."""
    count = len(found.env_steps)
    for stored, wanted in zip(
        *(jax.tree.leaves(s.replay.experience) for s in (found, expected)), strict=True
    ):
        np.testing.assert_allclose(stored, wanted[:count], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[:count], rtol=1e-4, atol=1e-5),
        found.agent.params,
        expected.agent.params,
    )


def test_a_seed_learns_alone_what_it_learns_among_others():
    devices = mesh.make_mesh()
    among = windows(make_config(**SEEDS), devices)
    one = {**SEEDS, "train": {**SEEDS["train"], "num_seeds": 1}}
    same_seeds(windows(make_config(**one), devices), among)
    assert among.agent.step.tolist() == [55, 55]
    assert not np.array_equal(*among.agent.params["output"]["kernel"])
    assert not np.array_equal(*among.replay.experience.action)


def test_the_command_line_trains_quantiles_on_the_lake(run_main, tmp_path):
    overrides = {
        "loss.names": "('retrace',)",
        "loss.trace_decays": "(1.0,)",
        "loss.mixings": "(0.8,)",
        "model.hidden_sizes": "()",
        "model.num_outputs": 3,
        "train.num_seeds": 1,
        "train.num_env_steps": 80,
        "train.updates_per_step": 10,
        "train.batch_size": 4,
        "train.learning_starts": 24,
        "train.replay_size": 60,
        "train.evaluation_episodes": 2,
        "train.evaluation_steps": 10,
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    code, text = run_main("--config=qr_q_lambda", f"--workdir={tmp_path}", *flags, binary="control")
    assert code == 0, text
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert row["method"] == "retrace"
    trained = [row for row in metrics.read_metrics(tmp_path) if "loss" in row]
    assert [row["updates/done"] for row in trained] == [5.0, 10.0]
    assert 0 < trained[-1]["loss"] < 10
    # Another law does not go on from there.
    code, text = run_main("--config=c51_q_lambda", f"--workdir={tmp_path}", binary="control")
    assert code == 2
    assert "holds another run" in text


@pytest.mark.parametrize("name", control_methods.TRACES)
@pytest.mark.parametrize("law", control_config.LAWS)
def test_every_method_and_law_makes_a_window(name, law):
    """Traced, not run: the state keeps its shapes and types."""
    config = make_config(
        model={"law": law, "noisy": True, "dueling": True},
        loss={"names": (name,), "kind": "cramer"},
        train={"updates_per_step": 1},
    )
    environment = control_methods.make_environment(config.data)
    setup = control_methods.make_setup(config, 0, environment)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(control_training.start(setup, 2), key)
    step = control_training.train_step(setup, config.train, mesh.make_mesh())
    after, found = jax.eval_shape(lambda state, key: step(state, (), key), state, key)

    def types(tree):
        # Weak types too: another one would have the step compiled twice.
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    assert types(after) == types(state)
    assert set(found) == {
        "loss",
        "grad_norm",
        "updates/skipped",
        "updates/done",
        "q/mean",
        "traces/mean",
        "episodes/return",
        "episodes/length",
        "episodes/count",
        "env_steps",
    }


def test_exploration_declines_over_environment_steps():
    config = make_config(
        model={"hidden_sizes": ()}, train={"epsilon_start": 0.8, "epsilon_end": 0.2}
    )
    environment = control_methods.make_environment(config.data)
    setup = control_methods.make_setup(config, 0, environment)
    params = {"output": {"kernel": jnp.ones((4, 10)), "bias": jnp.arange(10.0)}}
    state = setup.agent.init(jax.random.key(0), params=params)

    def epsilon(updates):
        assert setup.behaviour is not None
        probs = setup.behaviour(
            state._replace(step=jnp.asarray(updates)), jnp.ones((1, 4)), jax.random.key(0)
        )
        return 2 * float(probs.min())

    # 300 environment steps, 2 an update.
    assert [epsilon(n) for n in (0, 75, 150, 500)] == pytest.approx([0.8, 0.5, 0.2, 0.2])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"train": {"num_seeds": 0}}, "config.train.num_seeds must be at least 1, got 0"),
        ({"train": {"updates_per_step": -3}}, "config.train.updates_per_step must be at least 1"),
        ({"train": {"learning_starts": 0}}, "config.train.learning_starts must be at least 1"),
        ({"train": {"env_steps_per_update": 3}}, "config.train.env_steps_per_update must be a mul"),
        ({"train": {"replay_size": 59}}, "config.train.replay_size must hold .* 60, got 59"),
        ({"train": {"replay_size": 7, "learning_starts": 1}}, "config.train.replay_size .* 8, got"),
        (
            {"train": {"replay_size": 60, "learning_starts": 59}},
            None,  # Whole steps of both environments, and room for them.
        ),
        (
            {"train": {"num_env_steps": 100, "learning_starts": 200}},
            "config.train.num_env_steps must be above the 200 environment steps",
        ),
        ({"train": {"epsilon_start": 1.5}}, r"config.train.epsilon_start must be in \[0, 1\]"),
        ({"train": {"epsilon_end": -0.1}}, r"config.train.epsilon_end must be in \[0, 1\]"),
        ({"train": {"priority_exponent": 1.1}}, "config.train.priority_exponent must be in"),
        ({"train": {"importance_exponent": -1.0}}, "config.train.importance_exponent must be in"),
        ({"train": {"num_seeds": 3, "mesh_data": 7}}, "mesh data=7"),
        ({"loss": {"target_every": 0}}, "config.loss.target_every must be at least 1, got 0"),
        ({"loss": {"names": ()}}, "config.loss.names must hold distinct methods"),
        ({"loss": {"names": ("q_lambda", "q_lambda")}}, "config.loss.names must hold distinct"),
        ({"loss": {"names": ("q_lamda",)}}, "config.loss.names holds 'q_lamda'.*mean 'q_lambda'"),
        ({"loss": {"mixings": (0.5, 0.6)}}, "config.loss.mixings must hold one value for each"),
        ({"loss": {"trace_decays": (1.2,)}}, r"config.loss.trace_decays must be in \[0, 1\]"),
        ({"loss": {"mixings": (-0.2,)}}, r"config.loss.mixings must be in \[0, 1\], got -0.2"),
        ({"loss": {"discount": 1.1}}, r"config.loss: discount must be in \[0, 1\], got 1.1"),
        ({"loss": {"kind": "clip"}}, "config.loss: kind must be one of"),
        ({"model": {"law": "quantil"}}, "config.model.law must be one of.*mean 'quantile'"),
        ({"model": {"law": "quantile"}, "loss": {"kappa": -1.0}}, "config.loss: kappa must be at"),
        ({"model": {"v_min": 2.0}}, "config.model must have .* v_min below v_max"),
        ({"model": {"num_outputs": 1}}, "config.model must have num_outputs of at least 2"),
        ({"model": {"hidden_sizes": (0,)}}, "config.model: hidden_sizes must hold sizes"),
        ({"model": {"conv_channels": (4,)}}, "config.model: observation_shape must be"),
        ({"data": {"source": "tabula"}}, "config.data.source must be one of.*mean 'tabular'"),
        ({"data": {"source": "tabular", "name": "lake"}}, "config.data: name must be one of"),
        ({"data": {"sticky_actions": 1.0}}, r"config.data.sticky_actions must be in \[0, 1\)"),
        ({"optimizer": {"name": "adams"}}, "config.optimizer.name is 'adams'"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_key(groups, message, tmp_path, monkeypatch):
    def stop(*_):
        raise errors.UserError("nothing is wrong")

    monkeypatch.setattr(control_training, "start", stop)
    with pytest.raises(errors.UserError, match=message or "nothing is wrong"):
        control.train(make_config(**groups), tmp_path)


def test_seeds_that_cannot_be_spread_are_refused(monkeypatch, tmp_path):
    class Devices:
        shape = {"data": 2, "fsdp": 1, "tensor": 1}  # noqa: RUF012

    monkeypatch.setattr(mesh, "make_mesh", lambda **_: Devices)
    with pytest.raises(errors.UserError, match="num_seeds must be a multiple of the 2 devices"):
        control.train(make_config(train={"num_seeds": 3}), tmp_path)


def test_skipped_updates_of_any_seed_are_counted(monkeypatch):
    """A seed that begins to skip is told of, though another has skipped more."""
    config = make_config()
    devices = mesh.make_mesh()

    def window(setup, state, key, *, num_updates):
        del setup, key, num_updates
        count = state.agent
        return state._replace(agent=count + 1), {
            "loss": count,
            "updates/skipped": count,
            "updates/done": count,
        }

    monkeypatch.setattr(control_loop, "train_window", window)
    setup: control_loop.Setup = None  # pyright: ignore[reportAssignmentType]
    step = control_training.train_step(setup, config.train, devices)
    counts = jnp.array([7.0, 1.0])
    none = jnp.zeros(2)
    seeds = control_loop.State(counts, none, none, none, none)  # pyright: ignore
    _, found = step(control_training.State(jnp.zeros((), jnp.int32), seeds), (), jax.random.key(0))
    assert float(found["updates/skipped"]) == 8.0
    assert float(found["loss"]) == 4.0
