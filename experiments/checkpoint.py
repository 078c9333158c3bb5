"""Checkpoints: a state and the position in its data, saved together, asynchronously, by Orbax."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bellmax.experiments import errors


class Checkpointer:
    """Saves and restores one stage; arrays come back with the sharding of the state they meet.

    A save returns once the arrays are copied; the files are complete when their folder appears, so
    a run killed while saving resumes from the checkpoint before. What it left is removed.

    Args:
      directory: the stage's folder, made if it is missing.
      keep: checkpoints that are kept, at least 1.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int):
        self._directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=handlers
        )

    def latest_step(self) -> int | None:
        """Returns the step of the last whole checkpoint, or None."""
        return self._manager.latest_step()

    def last_on_disk(self) -> int | None:
        """Returns the step of the last checkpoint that is whole now, asking nobody but the disk.

        Saves under way do not count, as they do in `latest_step`.
        """
        steps = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
        return max(steps, default=None)

    def save(self, step: int, state: Any, data_position: dict[str, Any]) -> None:
        """Starts to save; a checkpoint of this step that is there stays.

        Args:
          step: optimiser steps taken.
          state: pytree of arrays.
          data_position: the iterator's own state, for JSON.
        """
        if self._manager.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Returns what was saved at a step.

        Args:
          step: one for which there is a checkpoint.
          like: a state of the same structure, shapes, dtypes and sharding, or its shapes.

        Returns:
          The state and the data position.

        Raises:
          UserError: the checkpoint is of another network, optimiser or run.
        """
        self._check_fits(step, like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().split("\n", 1)[0][:300]
            raise self._misfit(step, reason) from error
        return restored["state"], restored["data"]

    def _check_fits(self, step: int, like: Any) -> None:
        # Before Orbax reads anything: its own errors leave threads that complain at the exit.
        stored, expected = (
            {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf))
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (self._manager.item_metadata(step)["state"], like)
        )
        for name in sorted(stored.keys() | expected.keys()):
            if stored.get(name) != expected.get(name):
                there, here = (
                    f"has shape {shapes[name]}" if name in shapes else "is missing"
                    for shapes in (stored, expected)
                )
                raise self._misfit(step, f"{name} {there} there and {here} in this run")

    def _misfit(self, step: int, reason: str) -> errors.UserError:
        return errors.UserError(
            f"The checkpoint of step {step} in {self._directory} does not fit this run's state: it "
            f"is of another run, network or optimiser ({reason}). Give another --workdir."
        )

    def wait(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and frees what they used."""
        self._manager.close()
