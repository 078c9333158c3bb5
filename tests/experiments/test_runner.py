import math
import os
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import optimizers
from bellmax.experiments import errors, interruptions, mesh, metrics, progress, runner

OPTIMIZER = optimizers.skip_nonfinite(optax.sgd(0.1, momentum=0.9))


class State(NamedTuple):
    params: Any
    opt_state: Any
    step: Any


def first_state():
    params = {"w": jnp.arange(3.0)}
    return State(params, OPTIMIZER.init(params), jnp.zeros((), jnp.int32))


def train_step(state, batch, key):
    """Noise from the key, data from the batch: a resumed run must get both right."""

    def loss_fn(params):
        noise = jax.random.normal(key, (3,))
        return jnp.mean(batch["x"]) * jnp.sum(jnp.square(params["w"] - noise))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    row = {"loss": loss, "updates/skipped": optimizers.skipped_updates(opt_state)}
    return State(optax.apply_updates(state.params, updates), opt_state, state.step + 1), row


class Batches:
    """Batch n (from 0) holds n / 10; NaN where asked; something may happen before one is given."""

    def __init__(self, bad=(), before=None):
        self.next, self.bad, self.before = 0, bad, before or {}

    def __next__(self):
        n = self.next
        if n in self.before:
            self.before[n]()
        self.next += 1
        return {"x": np.full(2, math.nan if n in self.bad else n / 10, np.float32)}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def run(workdir, *, batches=None, evaluate=None, step=train_step, name="stage", **schedule):
    defaults = {"num_steps": 10, "log_every": 4, "evaluate_every": 4, "checkpoint_every": 3}
    return runner.run_stage(
        name=name,
        workdir=workdir,
        state=first_state(),
        train_step=step,
        batches=batches or Batches(),
        schedule=runner.Schedule(**{**defaults, "keep_checkpoints": 2, **schedule}),
        run_key=jax.random.key(7),
        mesh=mesh.make_mesh(),
        evaluate=evaluate,
    )


def rows(workdir):
    return [
        {k: v for k, v in row.items() if k != "wall_time_s"}
        for row in metrics.read_metrics(workdir)
    ]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def expected_losses(num_steps):
    """The loop by hand: keys by step, batches in order."""
    state, losses = first_state(), []
    for n in range(num_steps):
        batch = {"x": np.full(2, n / 10, np.float32)}
        key = jax.random.fold_in(jax.random.key(7), n)
        state, row = train_step(state, batch, key)
        losses.append(float(row["loss"]))
    return state, losses


def test_steps_keys_windows_and_evaluations(tmp_path):
    seen = []

    def evaluate(state, step):
        seen.append((step, int(state.step)))
        return {"score": float(step)}

    final = run(tmp_path, evaluate=evaluate)
    state, losses = expected_losses(10)
    np.testing.assert_allclose(final.params["w"], state.params["w"], rtol=1e-5)
    # At the start, every fourth step, and at the end.
    assert seen == [(0, 0), (4, 4), (8, 8), (10, 10)]
    logged = {row["step"]: row["loss"] for row in rows(tmp_path) if "loss" in row}
    for step, window in {4: losses[:4], 8: losses[4:8], 10: losses[8:]}.items():
        assert logged.pop(step) == pytest.approx(np.mean(window), rel=1e-5)
    assert not logged
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "stage").iterdir())
    assert kept == [9, 10]


def test_a_finished_stage_is_restored_without_a_step(tmp_path):
    final = run(tmp_path)
    before = rows(tmp_path)

    def refuse(*_):
        raise AssertionError("stepped")

    again = run(tmp_path, batches=Batches(before={10: refuse}), step=refuse, evaluate=refuse)
    assert_same(again, final)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("crash_at", [1, 5, 8])
def test_a_crash_and_a_rerun_equal_one_run(tmp_path, crash_at):
    def crash():
        raise RuntimeError("power failure")

    def evaluate(state, step):
        return {"w": float(state.params["w"].sum())}

    whole = run(tmp_path / "whole", evaluate=evaluate)
    with pytest.raises(RuntimeError, match="power failure"):
        run(tmp_path / "cut", batches=Batches(before={crash_at: crash}), evaluate=evaluate)
    assert_same(run(tmp_path / "cut", evaluate=evaluate), whole)
    # Bit for bit, the averages of windows that the crash cut in two included.
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(tmp_path, number, code):
    whole = run(tmp_path / "whole")
    ask = Batches(before={5: lambda: os.kill(os.getpid(), number)})
    before = signal.getsignal(number)
    with pytest.raises(interruptions.Stopped, match="stopped at step 6, which is saved") as stopped:
        run(tmp_path / "cut", batches=ask)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert (tmp_path / "cut" / "checkpoints" / "stage" / "6").is_dir()
    assert_same(run(tmp_path / "cut"), whole)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_diverging_loss_ends_the_run(tmp_path):
    def unguarded(state, batch, key):
        del key
        return state._replace(step=state.step + 1), {"loss": jnp.mean(batch["x"])}

    with pytest.raises(errors.UserError, match="the loss is nan at step 8; the last checkpoint is"):
        run(tmp_path, step=unguarded, batches=Batches(bad=[7]))
    # The row that shows it is written.
    assert math.isnan(rows(tmp_path)[-1]["loss"])


def test_skipped_updates_are_counted_and_forgiven(tmp_path):
    run(tmp_path, batches=Batches(bad=[1, 3, 9]))
    counts = [row["updates/skipped"] for row in rows(tmp_path)]
    assert counts == [2.0, 2.0, 3.0]


def test_nothing_but_skipped_updates_ends_the_run(tmp_path):
    with pytest.raises(errors.UserError, match="the last 5 updates were not finite"):
        run(tmp_path, batches=Batches(bad=range(2, 10)), log_every=1)
    assert rows(tmp_path)[-1]["step"] == 7


def test_progress_is_plain_without_a_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    run(tmp_path)
    printed = capfd.readouterr().err
    assert "stage: step 4/10, loss" in printed
    assert "steps/s" in printed
    assert "s left" in printed
    assert "\x1b" not in printed
    run(tmp_path)
    assert "stage: finished before, restored from step 10." in capfd.readouterr().err
