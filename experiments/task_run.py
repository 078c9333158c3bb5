"""What every stage of a run on a token task shares, and its first checks."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import Params, language, networks
from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import (
    language_config,
    language_run,
    mesh,
    numbered,
    pretrained,
    runner,
    task_config,
    task_data,
    task_methods,
)
from bellmax.experiments.task_config import TaskConfig
from bellmax.experiments.text_config import TextConfig
from bellmax.experiments.text_data import ProblemBatches, Table, TextRows
from bellmax.experiments.text_tasks import TextTask


class TaskRun(NamedTuple):
    """What every stage of a run shares.

    Attributes:
      config: the run's keys.
      workdir: folder of the run.
      task: the task.
      network: the network's shape.
      model: the network as functions.
      mesh: the devices.
      held_out: problems of the evaluation.
      train: problems of the training; None where they are drawn.
      stored: problems with completions that the methods learn from; None where they are sampled.
      about: what the problems are, in words.
    """

    config: TaskConfig | TextConfig
    workdir: pathlib.Path
    task: task_data.AnyTask
    network: networks.TransformerConfig
    model: language.LanguageModel
    mesh: Mesh
    held_out: TokenProblem
    train: Table | None = None
    stored: Table | None = None
    about: str = ""

    @property
    def chunk_size(self) -> int | None:
        """Tokens per chunk of the head, or None."""
        return self.config.model.chunk_size or None

    def key(self, stage: str) -> PRNGKeyArray:
        """Returns a stage's root key, by its name: a method trains alike alone and among others."""
        return numbered.named_key(self.config.seed, stage)

    def stage(
        self, name: str, num_steps: int, batch_size: int, table: Table | None
    ) -> dict[str, Any]:
        """Returns what all stages tell the runner; of a table its rows, else mere numbers."""
        batches = runner.SameBatches(numbered.local_rows(batch_size))
        if table is not None:
            batches = ProblemBatches(table, batch_size, seed=self.config.seed, name=name)
        return {
            "name": name,
            "workdir": self.workdir,
            "batches": batches,
            "schedule": runner.make_schedule(self.config.train, num_steps),
            "run_key": self.key(name),
            "mesh": self.mesh,
        }

    def save_policy(self, name: str, params: Params) -> None:
        """Writes a method's policy where the run began from a checkpoint, see `pretrained.save`."""
        folder = self.workdir / "policies" / name
        tokenizer = self.task.tokenizer if isinstance(self.task, TextTask) else None
        pretrained.save(self.config.model, self.network, params, folder, tokenizer=tokenizer)

    def problems(
        self, key: PRNGKeyArray, index: Int[Array, " B"], given: TextRows | None
    ) -> task_data.Problems:
        """Returns the problems of a step.

        Args:
          key: randomness of those that are drawn; consumed.
          index: numbers of the problems in the whole batch. [B].
          given: the step's rows of a table; None to draw the problems, see `task_data.draw`.
        """
        if given is not None:
            return task_data.Problems(given.problem, jnp.ones(index.shape, jnp.float32))
        assert isinstance(self.config, TaskConfig)
        assert isinstance(self.task, task_data.Task)
        return task_data.draw(self.task, key, index, difficulty=self.config.data.difficulty)


def prepare(config: TaskConfig, workdir: pathlib.Path) -> TaskRun:
    """Finds in a second what would else be found after the warm start.

    Args:
      config: the run.
      workdir: its folder.

    Returns:
      The run, ready to train.

    Raises:
      UserError: the config is wrong.
    """
    task_config.check(config)
    task = task_data.make_task(config.data)
    network = pretrained.network_shape(config.model, task.vocab_size)
    check_methods(config, task)
    return TaskRun(
        config=config,
        workdir=workdir,
        task=task,
        network=network,
        model=language_config.make_model(network),
        mesh=mesh.of_config(config.train),
        held_out=task_data.held_out(task, config.data, jax.random.key(config.seed)),
        about=f"task: {config.data.task} of difficulty {config.data.difficulty}",
    )


def check_methods(config: TaskConfig | TextConfig, task: task_data.AnyTask) -> None:
    """Refuses methods and optimisers that could not be made when their stage comes.

    Args:
      config: the run.
      task: what is learnt.

    Raises:
      UserError: a key is wrong, or the task has not what a method needs.
    """
    loss = config.loss
    for rate in (config.train.warm_start_learning_rate, *loss.learning_rates):
        language_run.make_stage_optimizer(config, 1, rate or config.optimizer.learning_rate)
    for name, beta in zip(loss.names, loss.betas, strict=True):
        task_methods.make_method(name, beta, loss, task)
