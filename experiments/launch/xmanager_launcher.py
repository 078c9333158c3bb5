r"""Launches a run with XManager: one container a node on Vertex AI, joined as one program.

    xmanager launch experiments/launch/xmanager_launcher.py -- --xm_wrap_late_bindings \
        --binary=align --nodes=2 --gpus=8 --workdir=/gcs/my-bucket/runs/gpo \
        --flag=--config=gpo --flag=--config.train.mesh_fsdp=16

XManager is no requirement of bellmax: `pip install xmanager`. See xmanager.md.
"""

import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

_PORT_OWNER = "workerpool0"


def job_arguments(workdir: str, overrides: Sequence[str]) -> list[str]:
    """Returns the arguments of the program, the same in every job of a run.

    Args:
      workdir: folder of the run, shared by all nodes.
      overrides: further flags, as they are typed.

    Returns:
      Arguments.
    """
    return [*overrides, f"--workdir={workdir}", "--distributed"]


def job_environment(rank: int, nodes: int, coordinator: str) -> dict[str, str]:
    """Returns what tells a process who it is; `processes.initialize_distributed` reads it.

    Args:
      rank: of the node, from 0.
      nodes: how many there are.
      coordinator: HOST:PORT of the first one, or what becomes it where the job runs.

    Returns:
      Environment variables.
    """
    return {
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(nodes),
        "JAX_PROCESS_ID": str(rank),
    }


def _define_flags() -> None:
    flags.DEFINE_string("binary", "align", "Module of bellmax.experiments.")
    flags.DEFINE_integer("nodes", 1, "Machines.", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "A100 GPUs of each.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder that all nodes share.", required=True)
    flags.DEFINE_multi_string("flag", [], "A flag of the binary; --config=NAME is one of them.")
    flags.DEFINE_string("image", "python:3.11", "Image that the container starts from.")


def launch() -> None:
    """Packages this checkout and adds one experiment with a job a node."""
    # Not at the top: every module of bellmax imports where XManager is not installed.
    xm: Any = importlib.import_module("xmanager.xm")
    xm_local: Any = importlib.import_module("xmanager.xm_local")
    utils: Any = importlib.import_module("xmanager.cloud.utils")
    values = flags.FLAGS
    checkout = pathlib.Path(__file__).resolve().parents[2]

    async def add() -> None:
        async with xm_local.create_experiment(experiment_title="bellmax") as experiment:
            container = xm.PythonContainer(
                path=str(checkout),
                base_image=values.image,
                docker_instructions=[
                    f"COPY {checkout.name}/ /bellmax",
                    "RUN pip install /bellmax 'jax[cuda12]'",
                    "WORKDIR /tmp",
                ],
                entrypoint=xm.CommandList(
                    [f'python -P -m bellmax.experiments.{values.binary} "$@"']
                ),
            )
            (executable,) = experiment.package(
                [xm.Packageable(executable_spec=container, executor_spec=xm_local.Vertex.Spec())]
            )
            group = xm.JobGroup()
            for rank in range(values.nodes):
                group.jobs[f"node_{rank}"] = xm.Job(
                    executable=executable,
                    executor=xm_local.Vertex(xm.JobRequirements(a100=values.gpus)),
                    args=job_arguments(values.workdir, values.flag),
                    env_vars=job_environment(
                        rank, values.nodes, utils.get_workerpool_address(_PORT_OWNER)
                    ),
                )
            await experiment.add(group)

    xm.run_in_asyncio_loop(add)()


if __name__ == "__main__":
    _define_flags()
    app.run(lambda _: launch())
