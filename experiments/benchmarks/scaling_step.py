"""The step that `scaling` takes, in a process of its own: weak scaling, or the bytes of a layout.

    python -m bellmax.experiments.benchmarks.scaling_step '{"kind": "layout", ...}'

A request and its answer are JSON, one line each. Processes that measure together are joined as
those of a run are, by the environment.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bellmax import losses
from bellmax.agents import PreferenceBatch, networks, optimizers, preference
from bellmax.configs.align import base
from bellmax.experiments import (
    align_config,
    collectives,
    dry_run,
    dry_run_language,
    language_config,
    simulated_devices,
    step_program,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments import mesh as mesh_lib


def program(network: networks.TransformerConfig, pairs: int, length: int) -> dry_run.Program:
    """Returns a DPO step with Adan on pairs whose reference is known.

    Args:
      network: the policy's shape.
      pairs: rows of a batch, over all devices.
      length: tokens of a completion with its prompt.

    Returns:
      The step, as shapes.
    """
    agent = preference.make(
        language_config.make_model(network),
        optimizers.adan(1e-4),
        loss_fn=preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=0.1)),
        init_params=functools.partial(networks.init, network),
        live_reference=False,
    )
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0)))
    batch = jax.eval_shape(lambda: _batch(pairs, length))
    return dry_run.Program("a DPO step", state, batch, agent.update)


def _batch(pairs: int, length: int) -> PreferenceBatch:
    tokens = jnp.ones((pairs, length), jnp.int32)
    mask, scores = jnp.ones((pairs, length), bool), jnp.zeros(pairs)
    index, weight = jnp.arange(pairs), jnp.ones(pairs)
    return PreferenceBatch(tokens, tokens, mask, mask, scores, scores, index, weight)


def layout(request: dict[str, Any]) -> dict[str, Any]:
    """Counts what the step sends in one layout of simulated devices.

    Args:
      request: `network`, `pairs`, `length` and the mesh's axes.

    Returns:
      Bytes that a device receives in a step, by kind.
    """
    axes = {axis: request[axis] for axis in mesh_lib.AXES}
    simulated_devices.force(int(np.prod(list(axes.values()))))
    network = networks.TransformerConfig(**request["network"])
    report = dry_run.examine(
        program(network, request["pairs"], request["length"]), mesh_lib.make_mesh(**axes)
    )
    return {kind: size for kind, (_, size, _) in dry_run.traffic(report.collectives).items()}


def published(request: dict[str, Any]) -> dict[str, Any]:
    """Counts what a step of a published model sends and needs on simulated hosts.

    Args:
      request: `size`, `pairs`, `length` and the mesh's axes.

    Returns:
      `received`, `needs` and `state`: bytes of a device.
    """
    axes = {axis: request[axis] for axis in mesh_lib.AXES}
    simulated_devices.force(int(np.prod(list(axes.values()))))
    keys = base.get_config()
    keys.update({"optimizer": {"name": "adamw"}, "train": {"live_reference": True}})
    config = config_lib.to_dataclass(align_config.AlignConfig, keys)
    simulation = config_lib.Simulation(0, "", request["size"], request["pairs"], request["length"])
    mesh = mesh_lib.make_mesh(**axes)
    report = dry_run.examine(dry_run_language.make_program(config, simulation, mesh), mesh)
    return {
        "received": sum(size for _, size, _ in dry_run.traffic(report.collectives).values()),
        "needs": 0 if report.memory is None else report.memory.total,
        "state": sum(report.state_bytes.values()),
    }


def _compiled(program: dry_run.Program, mesh: Mesh, rows: int) -> tuple[Any, Any, Any, Any, float]:
    """A compiled step on a mesh with a state and a batch of its own, and the bytes it receives."""
    shardings = mesh_lib.state_sharding(mesh, program.state)
    # Zeros would do for any program but one that divides by what is zero.
    state = jax.jit(
        lambda: jax.tree.map(
            lambda leaf: (
                jnp.full(leaf.shape, 1e-2, leaf.dtype)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else jnp.zeros(leaf.shape, leaf.dtype)
            ),
            program.state,
        ),
        out_shardings=shardings,
    )()
    rows_of = _batch(rows, program.batch.chosen_tokens.shape[1])
    sharding = NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
    if sharding.is_fully_addressable:
        batch = jax.device_put(rows_of, sharding)
    else:
        batch = mesh_lib.place_batch(mesh, rows_of)
    key = jax.jit(lambda: jax.random.key(0), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    step = step_program.jit_step(program.step, mesh, shardings).lower(state, batch, key).compile()
    received = sum(size for _, size, _ in dry_run.traffic(collectives.collectives(step)).values())
    return step, state, batch, key, received


def weak(request: dict[str, Any]) -> dict[str, Any]:
    """Times joined steps, and the same work side by side without a word between the processes.

    Both are measured in the same processes in turns, so that whatever else the machine does meets
    both alike.

    Args:
      request: `network`, `pairs` (of a process), `length`, `axis` (data or fsdp), `steps` (of a
        run), `repeats`.

    Returns:
      `joined` and `apart`, seconds a step of each run, and `received`, bytes of a joined step.
    """
    network = networks.TransformerConfig(**request["network"])
    pairs, length, count = request["pairs"], request["length"], jax.process_count()
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | {request["axis"]: count}
    whole = mesh_lib.make_mesh(**sizes)
    alone = Mesh(
        np.asarray(jax.local_devices()[:1]).reshape(1, 1, 1),
        mesh_lib.AXES,
        axis_types=whole.axis_types,
    )
    apart = list(_compiled(program(network, pairs, length), alone, pairs))
    joined = list(_compiled(program(network, pairs * count, length), whole, pairs))

    def run(one: list[Any]) -> float:
        step, state, batch, key, _ = one
        start = time.perf_counter()
        for _ in range(request["steps"]):
            state, _ = step(state, batch, key)
        jax.block_until_ready(state)
        one[1] = state
        return (time.perf_counter() - start) / request["steps"]

    times: dict[str, list[float]] = {"joined": [], "apart": []}
    for repeat in range(request["repeats"] + 1):
        for name, one in (("joined", joined), ("apart", apart)):
            _meet()
            seconds = run(one)
            # The first of each warms up.
            if repeat:
                times[name].append(seconds)
    return {**times, "received": joined[4]}


def _meet() -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("a run begins")


KINDS = {"layout": layout, "published": published, "weak": weak}


def main(arguments: Sequence[str]) -> None:
    """Reads a request, answers it on standard output."""
    request = json.loads(arguments[1])
    if request["kind"] == "weak":
        cores = sorted(os.sched_getaffinity(0))
        rank = int(os.environ.get("JAX_PROCESS_ID", "0"))
        # A core each, shared where there are too few: one process must not use its neighbour's.
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
        mesh_lib.initialize_distributed()
    print(json.dumps(KINDS[request["kind"]](request)), flush=True)


if __name__ == "__main__":
    main(sys.argv)
