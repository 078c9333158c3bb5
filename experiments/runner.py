"""The loop that every binary shares: batches, steps, metrics, evaluation, checkpoints, progress."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from bellmax.agents import Metrics
from bellmax.experiments import errors, interruptions, processes, progress, step_program
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.checkpoint import Checkpointer
from bellmax.experiments.metrics import MetricsWriter

# Forced host devices deadlock when many steps with collectives are under way: wait this often at
# least.
_MOST_STEPS_UNDER_WAY = 16
# So many steps without an update, or as many as make a row, and training has ended by itself.
_MOST_SKIPPED_IN_A_ROW = 5


class Batches(Protocol):
    """An iterator of host batches whose position can be saved, such as Grain's."""

    def __next__(self) -> Any:
        """Returns this process's rows of the next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...


class SameBatches:
    """The data of a stage that makes its own, such as by acting: one batch, again and again."""

    def __init__(self, batch: Any = ()):
        """Makes the iterator.

        Args:
          batch: what every step gets; nothing by default.
        """
        self._batch = batch

    def __next__(self) -> Any:
        """Returns the batch."""
        return self._batch

    def get_state(self) -> dict[str, Any]:
        """Returns no position: a step's randomness comes from its key."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes nowhere."""


class Schedule(NamedTuple):
    """How often things happen in a stage, in steps.

    Attributes:
      num_steps: steps of the stage.
      log_every: steps whose metrics are averaged into one row.
      evaluate_every: steps between evaluations; the first is at step 0, the last at the end.
      checkpoint_every: steps between checkpoints; there is one at the end always.
      keep_checkpoints: checkpoints that are kept.
    """

    num_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int


def make_schedule(keys: Any, num_steps: int) -> Schedule:
    """Returns the schedule of a stage from the `train` group of a config.

    Args:
      keys: has the fields of `Schedule` but the first.
      num_steps: steps of the stage.
    """
    names = Schedule._fields[1:]
    return Schedule(num_steps, *(getattr(keys, name) for name in names))


def run_stage(
    *,
    name: str,
    workdir: pathlib.Path,
    state: Any,
    train_step: Callable[[Any, Any, PRNGKeyArray], tuple[Any, Metrics]],
    batches: Batches,
    schedule: Schedule,
    run_key: PRNGKeyArray,
    mesh: Mesh,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    sharding: Callable[[Mesh, Any], Any] = mesh_lib.state_sharding,
) -> Any:
    """Trains one stage, or what is left of it, and returns its last state.

    A stage that was killed goes on from its last checkpoint, bit for bit: state, position in the
    data and keys (step n uses `fold_in(run_key, n)`) are those of a run that was not. A stage that
    has finished is restored.

    Args:
      name: the stage's name; its checkpoints are in `workdir/checkpoints/NAME`.
      workdir: folder of the run.
      state: the first state, with an integer `step`; donated.
      train_step: an agent's `update`; jitted here, with the state donated.
      batches: this process's batches, from the first.
      schedule: how often things happen.
      run_key: the root key of the stage.
      mesh: the devices.
      evaluate: `(state, step) -> scalars by name`; may print.
      sharding: `(mesh, state) -> shardings`, where each array of the state lies.

    Returns:
      The state after the last step.

    Raises:
      UserError: a checkpoint does not fit, or training has diverged.
      Stopped: a signal asked for it (`interruptions`); the stage is saved.
    """
    checkpointer = Checkpointer(workdir / "checkpoints" / name, keep=schedule.keep_checkpoints)
    processes.remember_saved(lambda: _last_on_disk(name, checkpointer))
    shardings = sharding(mesh, state)
    start = checkpointer.latest_step()
    position: dict[str, Any] = {"window": [], "skipped": 0.0, "skipped_in_a_row": 0}
    if start is None:
        state = mesh_lib.move_state(state, shardings)
    else:
        like = mesh_lib.with_shardings(state, shardings)
        for leaf in jax.tree.leaves(state):
            # Two states may be more than the memory holds.
            if isinstance(leaf, jax.Array):
                leaf.delete()
        state, position = checkpointer.restore(start, like)
        batches.set_state(position["batches"])
    if start is not None and start >= schedule.num_steps:
        checkpointer.close()
        progress.say(f"{name}: finished before, restored from step {start}.")
        return state
    if start is not None:
        progress.say(f"{name}: goes on from the checkpoint of step {start}.")
    writer = MetricsWriter(workdir, name, resume_step=start)
    step = step_program.jit_step(train_step, mesh, shardings)
    loop = _Loop(name, state, step, batches, schedule, run_key, mesh, writer, checkpointer)
    try:
        with (
            interruptions.during_a_stage(),
            progress.Progress(name, schedule.num_steps, unit="steps") as shown,
        ):
            loop.run(start, position, evaluate, shown)
        checkpointer.wait()
    except Exception as error:
        if jax.process_count() > 1 and processes.is_lost(error):
            # Closing would wait for a save that the lost process takes no part in.
            processes.leave(1, str(error))
        raise
    finally:
        checkpointer.close()
        writer.close()
    return loop.state


def _last_on_disk(name: str, checkpointer: Checkpointer) -> str:
    step = checkpointer.last_on_disk()
    if step is None:
        return f"{name} has no checkpoint yet"
    return f"the last checkpoint of {name} is of step {step}"


class _Loop:
    """The moving parts of a stage."""

    def __init__(self, name, state, step, batches, schedule, run_key, mesh, writer, saver):
        self.state, self._step = state, step
        self._name, self._batches, self._schedule = name, batches, schedule
        self._run_key, self._mesh, self._writer, self._saver = run_key, mesh, writer, saver
        self._agreement = processes.Agreement()

    def run(self, start, position, evaluate, shown):
        window: list[Metrics] = list(position["window"])
        self._skipped = position["skipped"]
        self._skipped_in_a_row = position["skipped_in_a_row"]
        schedule = self._schedule
        first = 0 if start is None else start
        if start is None and evaluate is not None:
            self._writer.write(0, evaluate(self.state, 0))
        shown.at(first, None)
        for step in range(first + 1, schedule.num_steps + 1):
            batch = mesh_lib.place_batch(self._mesh, next(self._batches))
            self.state, metrics = self._step(self.state, batch, self._run_key)
            window.append(metrics)
            last = step == schedule.num_steps
            logs = step % schedule.log_every == 0 or last
            if len(window) % _MOST_STEPS_UNDER_WAY == 0:
                jax.block_until_ready(metrics)
            if logs:
                self._log(window, step, shown)
                window = []
            else:
                shown.at(step, None)
            if evaluate is not None and (step % schedule.evaluate_every == 0 or last):
                self._writer.write(step, evaluate(self.state, step))
            wish = self._agreement.after_step()
            stop = wish != interruptions.NO_WISH
            if step % schedule.checkpoint_every == 0 or last or stop:
                self._save(step, window)
            if stop:
                self._saver.wait()
                said = (
                    f"{self._name}: stopped at step {step}, which is saved; the same command goes "
                    "on from there."
                )
                raise interruptions.Stopped(said if jax.process_index() == 0 else "", wish)

    def _save(self, step: int, window: list[Metrics]) -> None:
        # What the next row needs as well, so that a resumed run writes the rows of one that was not
        # stopped.
        position = {
            "batches": self._batches.get_state(),
            "window": [{k: float(v) for k, v in m.items()} for m in jax.device_get(window)],
            "skipped": self._skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }
        self._saver.save(step, self.state, position)

    def _log(self, window: list[Metrics], step: int, shown: progress.Progress) -> None:
        fetched = jax.device_get(window)
        row = {key: float(np.mean([float(m[key]) for m in fetched])) for key in fetched[0]}
        if "updates/skipped" in row:
            # A count, not a rate: its mean over a window would mean nothing.
            row["updates/skipped"] = float(fetched[-1]["updates/skipped"])
        self._writer.write(step, row)
        shown.at(step, f"loss {row['loss']:.4f}")
        skipped = 0.0
        for metrics in fetched:
            count = float(metrics.get("updates/skipped", 0.0))
            skipped, self._skipped = count - self._skipped, count
            # A step may be many updates: it was in vain if all of them were skipped.
            in_vain = skipped > 0 and skipped >= float(metrics.get("updates/done", 1.0))
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if in_vain else 0
        if self._skipped_in_a_row >= max(self._schedule.log_every, _MOST_SKIPPED_IN_A_ROW):
            raise self._diverged(
                step, f"the last {self._skipped_in_a_row} updates were not finite and were skipped"
            )
        loss = float(fetched[-1]["loss"])
        # A step that the optimiser left out has done no harm; any other has.
        if not np.isfinite(loss) and skipped <= 0:
            raise self._diverged(step, f"the loss is {loss}")

    def _diverged(self, step: int, what: str) -> errors.UserError:
        saved = self._saver.latest_step()
        kept = "there is no checkpoint yet" if saved is None else f"the last checkpoint is {saved}"
        return errors.UserError(
            f"{self._name}: {what} at step {step}; {kept}. Lower the learning rate, clip "
            "gradients, or look at the data."
        )
