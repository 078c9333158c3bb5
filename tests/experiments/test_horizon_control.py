"""Tasks of the control suite as a source: truth by rollouts from states on the host, whole runs."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import TransitionBatch
from bellmax.configs.horizon import base
from bellmax.envs.adapters.dm_control_states import Steps
from bellmax.experiments import config as config_lib
from bellmax.experiments import errors, horizon, horizon_config, horizon_control, horizon_truth
from bellmax.experiments.data import transitions

TINY = {
    "model": {"hidden_sizes": (8,), "time_features": 4, "policy_sizes": (8,)},
    "data": {
        "source": "dm_control",
        "task": "cheetah_run",
        "policy": "td3",
        "num_transitions": 400,
        "standardise": True,
    },
    "loss": {"names": ("td2_cfm",), "discounts": (0.5,), "flow_steps": 2},
    "train": {
        "num_updates": 20,
        "updates_per_step": 10,
        "policy_updates": 20,
        "batch_size": 16,
        "evaluation_states": 2,
        "evaluation_samples": 8,
        "likelihood_samples": 4,
        "evaluation_flow_steps": 3,
        "likelihood_steps": 3,
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 1,
    },
}


def make_config(**data):
    config = base.get_config()
    config.update(TINY)
    config.update({"data": data})
    return config_lib.to_dataclass(horizon_config.HorizonConfig, config)


class Walk:
    """In the place of MuJoCo: actions move a state in units of 2^-40, and it pays where it is."""

    # What float32 cannot hold beside 1.
    UNIT = 2.0**-40

    def step(self, states, actions):
        moved = states + actions * self.UNIT
        seen = (moved - 1) / self.UNIT
        return Steps(moved, seen, seen[:, 0])


def test_truth_is_that_of_the_rollout_and_states_are_in_double_precision():
    """Away from 0 the place after k steps is x + k sign(x), and V = x / (1 - g) + s / (1 - g)^2."""
    simulator: Any = Walk()
    seen = np.array([[4.0], [-2.0]])
    rows = jnp.full((3, 1), -7.0)
    source = horizon_truth.of_policy(
        jnp.sign,
        rows=TransitionBatch(rows, rows, rows),
        states=jnp.asarray(seen, jnp.float32),
        reward_fn=lambda states: states[..., 0],
        rollout=horizon_control.rollout_from(simulator, 1 + seen * simulator.UNIT),
    )
    np.testing.assert_array_equal(source.transitions.next_actions, np.full((3, 1), -1))
    np.testing.assert_array_equal(source.actions, np.sign(seen))
    # More than once: rollouts begin anew.
    for discount in (0.0, 0.5, 0.8):
        truth = source.truth(discount, 2000, jax.random.key(0))
        values = seen / (1 - discount) + np.sign(seen) / (1 - discount) ** 2
        np.testing.assert_allclose(truth.values, values[:, 0], rtol=2e-3)
        taken = (truth.samples[..., 0] - seen) * np.sign(seen)
        np.testing.assert_array_equal(taken, np.round(taken))
        # Geometric from 1, with mean 1 / (1 - g) and deviation g^.5 / (1 - g): four errors.
        error = 4 * discount**0.5 / (1 - discount) / 2000**0.5
        np.testing.assert_allclose(taken.mean(axis=1), 1 / (1 - discount), atol=error)
        np.testing.assert_allclose((taken == 1).mean(axis=1), 1 - discount, atol=2 / 2000**0.5)
    value_of = source.value_of
    assert value_of is not None
    found = jax.jit(lambda: value_of(horizon_truth.still(1)))()
    np.testing.assert_allclose(found, 1 / (1 - horizon_truth.POLICY_DISCOUNT), rtol=2e-4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"task": "walker_wakl"}, "config.data: task must be one of .* Did you mean 'walker_walk'"),
        ({"policy": "scripted"}, "config.data: policy must be td3 for dm_control"),
        ({}, r"config.data.source: cheetah needs .* pip install 'bellmax\[dm-control\]'"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_the_key(data, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    with pytest.raises(errors.UserError, match=message):
        horizon.train(make_config(**data), tmp_path)


def test_files_of_another_body_are_refused(tmp_path):
    pytest.importorskip("dm_control.suite", reason="needs the extra 'dm-control'")
    rows = np.zeros((10, 24), np.float32)
    table = transitions.TransitionTable(rows, rows[:, :6], rows)
    transitions.write_npz(tmp_path / "walker.npz", table)
    config = make_config(path=str(tmp_path / "walker.npz"))
    with pytest.raises(errors.UserError, match=r"17 features and actions of 6, .* has 24 and 6"):
        horizon.train(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["walker_walk", "cheetah_run", "quadruped_walk"])
def test_a_whole_run(tmp_path, task):
    """Collects, trains a policy and a model; what was collected is kept and not collected anew."""
    pytest.importorskip("dm_control.suite", reason="needs the extra 'dm-control'")
    config = make_config(task=task)
    rows = horizon.train(config, tmp_path)
    assert [row["method"] for row in rows] == ["truth", "td2_cfm"]
    measures = [row[key] for row in rows for key in ("emd", "energy_distance", "value_mse")]
    assert np.isfinite(measures).all()
    kept = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    assert horizon.train(config, tmp_path) == rows
    assert [path.stat().st_mtime_ns for path in kept] == times
