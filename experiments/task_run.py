"""What every stage of a run on a token task shares, and its first checks."""

import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from bellmax.agents import language, networks
from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import (
    language_config,
    language_run,
    mesh,
    numbered,
    runner,
    task_config,
    task_data,
    task_methods,
)
from bellmax.experiments.task_config import TaskConfig


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
    """

    config: TaskConfig
    workdir: pathlib.Path
    task: task_data.Task
    network: networks.TransformerConfig
    model: language.LanguageModel
    mesh: Mesh
    held_out: TokenProblem

    def key(self, stage: str) -> PRNGKeyArray:
        """Returns a stage's root key, by its name: a method trains alike alone and among others."""
        return numbered.named_key(self.config.seed, stage)

    def stage(self, name: str, num_steps: int, batch_size: int) -> dict[str, Any]:
        """Returns what all stages tell the runner."""
        return {
            "name": name,
            "workdir": self.workdir,
            "batches": runner.SameBatches(numbered.local_rows(batch_size)),
            "schedule": runner.make_schedule(self.config.train, num_steps),
            "run_key": self.key(name),
            "mesh": self.mesh,
        }


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
    network = language_config.make_network(config.model, task.vocab_size)
    train, loss = config.train, config.loss
    for rate in (train.warm_start_learning_rate, *loss.learning_rates):
        language_run.make_stage_optimizer(config, 1, rate or config.optimizer.learning_rate)
    for name, beta in zip(loss.names, loss.betas, strict=True):
        task_methods.make_method(name, beta, loss, task)
    return TaskRun(
        config=config,
        workdir=workdir,
        task=task,
        network=network,
        model=language_config.make_model(network),
        mesh=mesh.make_mesh(data=train.mesh_data, fsdp=train.mesh_fsdp, tensor=train.mesh_tensor),
        held_out=task_data.held_out(task, config.data, jax.random.key(config.seed)),
    )
