"""The loop of rollouts, with agents and environments that are seen through; and whole tiny runs."""

import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import Agent, rollouts
from bellmax.experiments import (
    control_loop,
    control_methods,
    control_rollouts,
    metrics,
)

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("control_policy_cases.py")))
make_config, reach, train = CASES["make_config"], CASES["reach"], CASES["train"]
LINE = runpy.run_path(str(pathlib.Path(__file__).with_name("test_control_loop.py")))["line"]


def counting_agent():
    """Its state counts updates; the loss of an update is how many choices of 1 the batch has."""

    def update(state, batch, key):
        del key
        total = jnp.sum(batch.actions * batch.advantages).astype(jnp.float32)
        return state + 1, {"loss": total, "updates/skipped": (state + 1).astype(jnp.float32)}

    return Agent(init=lambda key: jnp.zeros((), jnp.int32), act=None, update=update)


def make(environment, *, length=30, epochs=3, minibatches=1, **options):
    def decide(state, seen, key):
        right = 0.3 + 0.1 * seen[..., 0]
        choice = jax.random.bernoulli(key, right)
        log_probs = jnp.log(jnp.where(choice, right, 1 - right))
        return rollouts.Decision(choice.astype(jnp.int32), log_probs)

    return control_rollouts.Setup(
        environment=control_loop.prepare(environment),
        agent=counting_agent(),
        decide=decide,
        to_actions=lambda choices: choices,
        greedy=lambda state, seen: jnp.ones(seen.shape[:-1], jnp.int32),
        with_advantages=lambda state, batch: batch._replace(
            advantages=jnp.full(batch.rewards.shape, 1.0 + state)
        ),
        num_environments=2,
        rollout_length=length,
        epochs=epochs,
        minibatches=minibatches,
        **options,
    )


def test_rollouts_hold_episodes_as_they_were_played_and_go_on():
    length, limit = 3, 5
    setup = make(LINE(length, limit), reward_scale=0.5)

    @jax.jit
    def play(key):
        state = control_rollouts.init(setup, key)
        state, first = control_rollouts.play(setup, state, jax.random.fold_in(key, 1))
        state, second = control_rollouts.play(setup, state, jax.random.fold_in(key, 2))
        return state, first, second

    state, first, second = play(jax.random.key(0))
    assert int(state.env_steps) == 60
    np.testing.assert_array_equal(first.observations[:, -1], second.observations[:, 0])
    both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), first, second)
    seen = np.concatenate([first.observations, second.observations[:, 1:]], axis=1)
    cell, time = np.moveaxis(seen, -1, 0).astype(int)
    over = ((cell == length) | (time == limit))[:, :-1]
    np.testing.assert_array_equal(both.begins, over)
    taken = ~over
    np.testing.assert_array_equal(cell[:, 1:], np.where(over, 0, cell[:, :-1] + both.actions))
    np.testing.assert_array_equal(both.rewards, 0.5 * taken)
    terminated = taken & (cell[:, 1:] == length)
    np.testing.assert_array_equal(both.terminated, terminated)
    np.testing.assert_array_equal(both.truncated, taken & ~terminated & (time[:, 1:] == limit))
    right = 0.3 + 0.1 * cell[:, :-1]
    chances = np.where(both.actions == 1, right, 1 - right)
    np.testing.assert_allclose(np.exp(both.behaviour_log_probs), chances, rtol=1e-5)
    assert terminated.any()
    assert both.truncated.any()
    assert first.begins[:, 1:].any()


@pytest.mark.parametrize("minibatches", [1, 4])
def test_every_epoch_sees_every_step_once(minibatches):
    setup = make(LINE(3, 5), epochs=2, minibatches=minibatches)

    @jax.jit
    def play(key):
        state = control_rollouts.init(setup, key)
        _, batch = control_rollouts.play(setup, state, key)
        return batch, control_rollouts.learn(setup, jnp.asarray(5), batch, key)

    batch, (agent, found) = play(jax.random.key(0))
    assert int(agent) == 5 + 2 * minibatches
    # Advantages were estimated once, by the agent that the rollout met.
    sums = np.asarray(found["loss"]).reshape(2, minibatches).sum(axis=1)
    np.testing.assert_array_equal(sums, 6.0 * np.asarray(batch.actions).sum())


def test_windows_average_over_updates_and_count_them():
    setup = make(LINE(3, 5), epochs=2, minibatches=3)

    @jax.jit
    def window(key):
        state = control_rollouts.init(setup, key)
        return control_rollouts.train_window(setup, state, key, num_rounds=4)

    state, found = window(jax.random.key(0))
    assert float(found["updates/done"]) == 24.0
    assert float(found["updates/skipped"]) == 24.0
    assert int(state.agent) == 24
    assert int(state.env_steps) == 120
    assert float(found["episodes/count"]) == int(state.environments.episodes.sum()) > 20
    assert 2 <= float(found["episodes/return"]) <= 5


@pytest.fixture(autouse=True, scope="module")
def _reach():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(control_methods.SOURCES, "reach", reach)
        yield


# The best is to go right twice and stay: -.5, then 0. Never moving costs 6.
def test_a_run_learns_and_goes_on_after_being_stopped(tmp_path):
    one = {"names": ("mdpo",), "epochs": (8,), "minibatches": (1,)}
    config, workdir = make_config("rollouts", loss=one), tmp_path / "whole"
    workdir.mkdir()
    rows, state = train(config, workdir)
    assert min(rows[0]["last_returns"]) > -2
    assert int(state.step) == config.train.num_steps
    logged = metrics.read_metrics(workdir)
    assert all(np.isfinite(v) for row in logged for v in row.values() if isinstance(v, float))
    assert (workdir / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    stopped = tmp_path / "stopped"
    shutil.copytree(workdir, stopped)
    (stopped / "result.json").unlink()
    for folder in (stopped / "checkpoints" / "mdpo").iterdir():
        if folder.name.isdigit() and int(folder.name) > 8:
            shutil.rmtree(folder)
    again, resumed = train(config, stopped)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert again == rows
    assert json.loads((stopped / "result.json").read_text())["rows"] == rows
