"""Whole runs of `horizon`: what they learn and write, and that stopping them changes nothing."""

import json
import pathlib
import runpy
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.configs.horizon import base
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    errors,
    horizon,
    horizon_config,
    horizon_evaluation,
    horizon_methods,
    horizon_sources,
    horizon_training,
    metrics,
)
from bellmax.experiments.data import transitions
from bellmax.experiments.horizon_methods import Model

TINY = {
    "model": {"hidden_sizes": (8,), "time_features": 4, "baseline_sizes": (8,)},
    "data": {"num_transitions": 500},
    "loss": {"names": ("td2_cfm", "gan"), "discounts": (0.5, 0.9), "flow_steps": 2},
    "train": {
        "num_updates": 40,
        "updates_per_step": 10,
        "batch_size": 16,
        "evaluation_states": 3,
        "evaluation_samples": 8,
        "likelihood_samples": 4,
        "evaluation_flow_steps": 3,
        "likelihood_steps": 3,
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 4,
    },
}
STAGES = ("td2_cfm_0.5", "gan_0.5", "td2_cfm_0.9", "gan_0.9")


def make_config(**groups):
    config = base.get_config()
    config.update(TINY)
    config.update(groups)
    return config_lib.to_dataclass(horizon_config.HorizonConfig, config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("horizon")
    return workdir, horizon.train(make_config(), workdir)


def test_everything_is_written(finished):
    workdir, rows = finished
    assert [(row["method"], row["discount"]) for row in rows] == [
        ("truth", 0.5),
        ("truth", 0.9),
        ("td2_cfm", 0.5),
        ("gan", 0.5),
        ("td2_cfm", 0.9),
        ("gan", 0.9),
    ]
    assert json.loads((workdir / "result.json").read_text())["rows"] == rows
    for name in ("samples", "learning_curves", "horizons"):
        assert (workdir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    logged = metrics.read_metrics(workdir)
    for stage in STAGES:
        mine = [row for row in logged if row["stage"] == stage]
        assert [row["updates"] for row in mine if "evaluation/emd" in row] == [0, 20, 40]
        assert [row["updates/done"] for row in mine if "loss" in row] == [10.0] * 4
        assert ("evaluation/nll" in mine[0]) == stage.startswith("td2")
    assert all(np.isfinite(v) for row in logged for v in row.values() if isinstance(v, float))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(finished, tmp_path):
    """Killed in the middle of its third model."""
    workdir, rows = finished
    stopped = tmp_path / "stopped"
    shutil.copytree(workdir, stopped)
    for step in (3, 4):
        shutil.rmtree(stopped / "checkpoints" / "td2_cfm_0.9" / str(step))
    shutil.rmtree(stopped / "checkpoints" / "gan_0.9")
    assert horizon.train(make_config(), stopped) == rows


def test_batches_go_on_from_a_position_and_are_shared_by_processes():
    source = horizon_sources.make_source(make_config().data, num_states=2, key=jax.random.key(0))
    sizes = {"batch_size": 6, "updates_per_step": 2, "seed": 3}
    whole = horizon_training.Batches(source.transitions, **sizes)
    first, second = next(whole), next(whole)
    assert first.observations.shape == (6, 2, 2)
    assert not np.array_equal(first.observations, second.observations)
    parts = []
    for process in range(3):
        part = horizon_training.Batches(
            source.transitions, **sizes, process_index=process, process_count=3
        )
        part.set_state({"window": 1})
        parts.append(next(part).next_observations)
        assert part.get_state() == {"window": 2}
    np.testing.assert_array_equal(np.concatenate(parts), second.next_observations)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reach_top_left", "loop"])
def test_the_maze_pairs_transitions_with_the_policy_and_its_future(task):
    config = make_config(
        data={"source": "maze", "task": task, "num_transitions": 640, "standardise": True}
    )
    source = horizon_sources.make_source(config.data, num_states=4, key=jax.random.key(0))
    rows = source.transitions
    assert rows.observations.shape == (640, 4)
    assert rows.next_actions is not None
    assert rows.next_actions.shape == (640, 2)
    truth = source.truth(0.5, 4000, jax.random.key(1))
    # A state is next with probability 1/2: half of the samples are the first of the rollout.
    first = np.mean(np.all(truth.samples == truth.samples[:, :1], axis=-1), axis=1)
    assert truth.samples.shape == (4, 4000, 4)
    assert first.max() < 0.6
    # The value is that of the samples' mean reward, up to four standard errors of [0, 1] rewards.
    found = np.asarray(source.reward_fn(jnp.asarray(truth.samples))).mean(axis=1) / 0.5
    np.testing.assert_allclose(found, truth.values, atol=4 / 0.5 / 2 / 4000**0.5)
    scale = horizon_evaluation.scale_of(source, standardise=True)
    both = jnp.concatenate([rows.observations, rows.next_observations])
    np.testing.assert_allclose(scale.to_model(both).std(axis=0), 1, rtol=1e-3)
    states = scale.from_model(scale.to_model(rows.observations))
    np.testing.assert_allclose(states, rows.observations, atol=1e-6)
    low, high = (scale.from_model(end) for end in horizon_evaluation.range_of(source, scale))
    np.testing.assert_allclose(low, rows.next_observations.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(high, rows.next_observations.max(axis=0), atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
def test_diffusions_keep_to_the_data_where_they_are_told_to(clip):
    config = make_config(loss={"num_levels": 50, "clip_to_data": clip})
    low, high = jnp.array([-0.1, 0.5]), jnp.array([0.1, 0.6])
    model = horizon_methods.make_model(
        config, "td_dd", 0.5, point_size=2, condition_size=3, data_range=(low, high)
    )
    params = model.agent.init(jax.random.key(0)).params
    samples = model.sample(params, jax.random.normal(jax.random.key(1), (20, 2)), jnp.ones((20, 3)))
    within = (samples >= low - 1e-6) & (samples <= high + 1e-6)
    assert np.all(within) if clip else not np.all(within)


@pytest.mark.slow
def test_a_policy_is_trained_first_and_then_evaluated(tmp_path):
    config = make_config(
        data={"source": "maze", "task": "square", "policy": "td3", "num_transitions": 640},
        loss={"names": ("td2_cfm",), "discounts": (0.5,)},
        model={"policy_sizes": (8,)},
        train={"num_updates": 10, "policy_updates": 40, "evaluate_every": 4},
    )
    rows = horizon.train(config, tmp_path)
    assert [row["method"] for row in rows] == ["truth", "td2_cfm"]
    mine = [row for row in metrics.read_metrics(tmp_path) if row["stage"] == "policy"]
    values = [row["policy/value"] for row in mine if "policy/value" in row]
    assert len(values) == 2
    # The policy has changed, and with it what it is worth.
    assert values[0] != values[1]


def test_a_policy_s_value_is_that_of_its_rollouts():
    config = make_config(data={"source": "maze", "task": "loop", "num_transitions": 100})
    source = horizon_sources.make_source(config.data, num_states=5, key=jax.random.key(0))
    assert source.with_policy is not None
    assert source.value_of is not None

    def push(states):
        return jnp.broadcast_to(jnp.array([1.0, 0.0]), (*states.shape[:-1], 2))

    pushed = source.with_policy(push)
    assert pushed.transitions.next_actions is not None
    np.testing.assert_array_equal(pushed.transitions.next_actions[:, 0], 1)
    np.testing.assert_array_equal(pushed.actions[:, 0], 1)
    values = pushed.truth(0.99, 2, jax.random.key(1)).values
    np.testing.assert_allclose(source.value_of(push), values.mean(), rtol=2e-3)


def test_the_maze_learns_from_a_file(tmp_path):
    keys = {"source": "maze", "task": "loop", "num_transitions": 100}
    collected = horizon_sources.make_source(
        make_config(data=keys).data, num_states=2, key=jax.random.key(0)
    ).transitions
    table = transitions.TransitionTable(*(np.asarray(leaf) for leaf in collected[:3]))
    transitions.write_npz(tmp_path / "maze.npz", table)
    transitions.write_npz(tmp_path / "other.npz", table._replace(actions=np.zeros((100, 1))))

    def read(name):
        keys.update({"path": str(tmp_path / name), "cache_dir": str(tmp_path / "cache")})
        config = make_config(data=keys)
        return horizon_sources.make_source(config.data, num_states=2, key=jax.random.key(1))

    jax.tree.map(np.testing.assert_array_equal, read("maze.npz").transitions, collected)
    with pytest.raises(errors.UserError, match="observations of 4 features and actions of 2"):
        read("other.npz")


def test_a_model_that_is_the_truth_measures_as_well_as_fresh_samples():
    """The exact law of S' = .8 S + .5 eps at discount 0 is normal: in other units, too."""
    config = make_config(
        data={"source": "linear_gaussian", "standardise": True, "num_transitions": 5000},
        train={"evaluation_samples": 256, "likelihood_samples": 256, "evaluation_states": 4},
    )
    source = horizon_sources.make_source(config.data, num_states=4, key=jax.random.key(0))
    scale = horizon_evaluation.scale_of(source, standardise=True)
    mean, deviation = (float(leaf[0]) for leaf in scale)

    def moments(condition):
        here = condition * deviation + mean
        return (0.8 * here - mean) / deviation, 0.5 / deviation

    def sample(params, noise, condition):
        centre, width = moments(condition)
        return centre + width * noise

    def density(params, points, condition):
        centre, width = moments(condition)
        return jax.scipy.stats.norm.logpdf(points, centre, width)[..., 0]

    truth = source.truth(0.0, 256, jax.random.key(1))
    agent: Any = None
    model = Model(agent, 1, sample, density)
    evaluation = horizon_evaluation.Evaluation(
        model, source, truth, scale, 0.0, config.train, jax.random.key(2)
    )
    found = evaluation(())
    floor = horizon_evaluation.floor(source, truth, 0.0, jax.random.key(3))
    assert found["evaluation/emd"] < 2 * floor["evaluation/emd"] < 0.2
    assert abs(found["evaluation/energy_distance"]) < 0.02
    # The entropy of N(., .25); four standard errors of 1,024 samples.
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
    np.testing.assert_allclose(found["evaluation/nll"], entropy, atol=4 * 0.71 / 32)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"seed": -1}, "config.seed must be at least 0"),
        ({"train": {"accumulate_steps": 3}}, "config.train.accumulate_steps must divide"),
        ({"train": {"batch_size": 0}}, "config.train.batch_size must be at least 1, got 0"),
        ({"train": {"num_updates": 45}}, "config.train.num_updates must be a multiple of"),
        ({"train": {"evaluation_samples": 1}}, "evaluation_samples must be at least 2"),
        ({"train": {"likelihood_samples": 9}}, "likelihood_samples must be at most"),
        ({"loss": {"names": ()}}, "config.loss.names must hold distinct values"),
        ({"loss": {"discounts": (0.5, 0.5)}}, "config.loss.discounts must hold distinct"),
        ({"loss": {"discounts": (1.0,)}}, r"config.loss.discounts must be in \[0, 1\), got 1.0"),
        ({"loss": {"beta": -1.0}}, "config.loss.beta must be at least 0"),
        ({"loss": {"target_decay": 1.5}}, "config.loss.target_decay must be in"),
        ({"loss": {"names": ("td2_cfn",)}}, "Did you mean 'td2_cfm'"),
        ({"loss": {"path": "curvy"}}, "Did you mean 'curved'"),
        ({"data": {"source": "noisy_circel"}}, "Did you mean 'noisy_circle'"),
        ({"data": {"task": "loop"}}, "task must be empty for noisy_circle"),
        ({"data": {"source": "maze", "task": "lop"}}, "Did you mean 'loop'"),
        ({"data": {"source": "maze", "task": "square"}}, "config.data: "),
        ({"data": {"source": "maze", "task": "loop", "policy": "sac"}}, "policy must be one of"),
        ({"train": {"policy_updates": 45}}, "config.train.policy_updates must be a multiple of"),
        ({"train": {"policy_learning_rate": 0.0}}, "policy_learning_rate must be positive"),
        ({"train": {"policy_target_decay": 2.0}}, "config.train.policy_target_decay must be in"),
        ({"model": {"time_features": 3}}, "config.model: time_features must be even"),
        ({"model": {"baseline_sizes": (0,)}}, "config.model: hidden_sizes must hold"),
        ({"optimizer": {"eps": 0.0}}, "config.optimizer.eps must be positive"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_key(groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        horizon.train(make_config(**groups), tmp_path)


@pytest.mark.slow
def test_the_command_line(run_main, tmp_path):
    overrides = {
        "loss.names": "('td_dd','vae')",
        "loss.discounts": "(0.5,)",
        "loss.diffusion_steps": 2,
        "loss.num_levels": 50,
        "model.hidden_sizes": "(8,)",
        "model.baseline_sizes": "(8,)",
        "data.num_transitions": 100,
        "train.num_updates": 4,
        "train.updates_per_step": 2,
        "train.batch_size": 8,
        "train.evaluation_states": 2,
        "train.evaluation_samples": 4,
        "train.likelihood_samples": 2,
        "train.likelihood_steps": 2,
        "train.evaluation_diffusion_steps": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    code, text = run_main(
        "--config=td_flow:ring", f"--workdir={tmp_path}", *flags, binary="horizon"
    )
    assert code == 0, text
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["truth", "td_dd", "vae"]


@pytest.mark.slow
def test_two_processes_equal_one_of_two_devices(tmp_path):
    """The command itself, with a policy that is trained and parameters that are spread."""
    two_as_one = runpy.run_path(str(pathlib.Path(__file__).with_name("loopback.py")))["two_as_one"]
    groups = {
        **TINY,
        "optimizer": {"warmup_steps": 0},
        "data": {"num_transitions": 500, "policy": "td3", "standardise": True},
        "loss": {**TINY["loss"], "names": "('td2_dd','gan')", "discounts": "(0.5,)"}
        | {"diffusion_steps": 2, "num_levels": 50, "clip_to_data": True},
        "train": {**TINY["train"], "policy_updates": 20, "mesh_fsdp": 2}
        | {"evaluation_diffusion_steps": 2},
    }
    flags = [
        f"--config.{key}.{name}={value}"
        for key, keys in groups.items()
        for name, value in keys.items()
    ]
    command = ("-m", "bellmax.experiments.horizon", "--config=td_flow:maze_loop", *flags)
    rows = two_as_one(tmp_path, *command, rel=1e-3, abs=1e-4)
    assert {row["stage"] for row in rows} == {"policy", "td2_dd_0.5", "gan_0.5"}
