"""A dry run: where every array of a step lies, and what the step needs, with nothing allocated.

    report = examine(program, mesh)      # a step of shapes, lowered and compiled
    print_report(report)

The step is compiled for the devices of the mesh as they are: hosts in a simulation, or chips that a
compiler knows without having them (`simulated_devices`). Its memory is that compiler's plan. On
the CPU bfloat16 products are computed in float32, and so are what they keep and what they send:
such a plan is an upper estimate for other devices.
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bellmax.experiments import collectives as collectives_lib
from bellmax.experiments import errors, metrics, step_program
from bellmax.experiments import mesh as mesh_lib

# Fields of agents' states, by what a person asks for; the first on a leaf's path decides.
_GROUPS = {
    "params": "parameters",
    "value_params": "critic",
    "reference_params": "reference",
    "behaviour_params": "other policies",
    "opponent_params": "other policies",
    "judge_params": "judge",
    "opt_state": "optimiser",
}
_OTHER = "counters"


class Program(NamedTuple):
    """A step of training, as shapes.

    Attributes:
      name: what it is, for people.
      state: the state, a pytree of `jax.ShapeDtypeStruct`.
      batch: a whole batch over all devices, likewise; rows are on the first axes.
      step: `(state, batch, key) -> (state, metrics)`.
    """

    name: str
    state: Any
    batch: Any
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


class Placed(NamedTuple):
    """Arrays of one role and shape: one parameter, or the same one of several layers.

    Attributes:
      name: its path; `*` stands for the number of a layer.
      copies: how many there are.
      shape: of one.
      dtype: of one.
      axes: axis of the mesh that each dimension is spread over, None for none.
      bytes_per_device: of all of them together.
    """

    name: str
    copies: int
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[Any, ...]
    bytes_per_device: int


class Memory(NamedTuple):
    """The compiler's plan of a program's memory on one device, bytes.

    Attributes:
      arguments: what goes in, a step's state and batch.
      outputs: what comes out, its new state and metrics.
      reused: of the outputs, what is written over arguments.
      temporaries: the most that is alive between them at a time.
    """

    arguments: int
    outputs: int
    reused: int
    temporaries: int

    @property
    def total(self) -> int:
        """What the program needs in all."""
        return self.arguments + self.outputs - self.reused + self.temporaries


class Report(NamedTuple):
    """What a dry run found.

    Attributes:
      name: the program's.
      mesh_shape: devices along each axis.
      parameters: the policy's parameters.
      state_bytes: bytes on one device of each part of the state.
      whole_bytes: bytes of each part, once.
      memory: the plan; None where the compiler gives none.
      collectives: what the step sends.
      compile_seconds: tracing and compilation.
    """

    name: str
    mesh_shape: Mapping[str, int]
    parameters: list[Placed]
    state_bytes: dict[str, int]
    whole_bytes: dict[str, int]
    memory: Memory | None
    collectives: list[collectives_lib.Collective]
    compile_seconds: float


def _group(path: str) -> str:
    return next((_GROUPS[part] for part in path.split("/") if part in _GROUPS), _OTHER)


def _named(state: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(mesh_lib.path_name(path), leaf) for path, leaf in leaves]


def device_bytes(leaf: Any) -> int:
    """Returns the bytes that one device holds of an array.

    Args:
      leaf: an array or its shape, with a sharding.

    Returns:
      Bytes of the largest part.
    """
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * _item_bytes(leaf)


def _item_bytes(leaf: Any) -> int:
    return np.dtype(leaf.dtype).itemsize


def parameters(state: Any) -> list[Placed]:
    """Returns the policy's parameters of a state, the same ones of all layers together.

    Args:
      state: pytree of arrays or shapes, with shardings.

    Returns:
      One entry a parameter, in the order of the state.
    """
    found: dict[tuple[Any, ...], Placed] = {}
    for path, leaf in _named(state):
        if _group(path) != "parameters":
            continue
        name = re.sub(r"layers_\d+", "layers_*", path.split("params/", 1)[-1])
        axes = tuple(leaf.sharding.spec)
        axes += (None,) * (len(leaf.shape) - len(axes))
        key = (name, leaf.shape, str(leaf.dtype), axes)
        before = found.get(key, Placed(*key[:1], 0, *key[1:], 0))
        found[key] = before._replace(
            copies=before.copies + 1, bytes_per_device=before.bytes_per_device + device_bytes(leaf)
        )
    return list(found.values())


def examine(program: Program, mesh: Mesh) -> Report:
    """Places and compiles a step, and reads from the compiled program what it needs.

    Args:
      program: the step.
      mesh: its devices.

    Returns:
      What was found. No array of the state or the batch has been made.

    Raises:
      UserError: the batch cannot be spread over the mesh.
    """
    share = mesh_lib.row_share(mesh)
    for leaf in jax.tree.leaves(program.batch):
        if leaf.shape[0] % share:
            raise errors.UserError(
                f"The rows of a batch, {leaf.shape[0]}, must be a multiple of the {share} devices "
                "that rows are spread over: give --simulate_rows or config.train.batch_size."
            )
    shardings = mesh_lib.state_sharding(mesh, program.state)
    state = mesh_lib.with_shardings(program.state, shardings)
    rows = NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
    batch = mesh_lib.with_shardings(program.batch, rows)
    key = mesh_lib.with_shardings(
        jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec())
    )
    start = time.perf_counter()
    compiled = (
        step_program.jit_step(program.step, mesh, shardings).lower(state, batch, key).compile()
    )
    seconds = time.perf_counter() - start
    state_bytes: dict[str, int] = {}
    whole_bytes: dict[str, int] = {}
    for path, leaf in _named(state):
        group = _group(path)
        state_bytes[group] = state_bytes.get(group, 0) + device_bytes(leaf)
        size = math.prod(leaf.shape) * _item_bytes(leaf)
        whole_bytes[group] = whole_bytes.get(group, 0) + size
    return Report(
        name=program.name,
        mesh_shape=dict(mesh.shape),
        parameters=parameters(state),
        state_bytes=state_bytes,
        whole_bytes=whole_bytes,
        memory=memory_plan(compiled),
        collectives=collectives_lib.collectives(compiled),
        compile_seconds=seconds,
    )


def memory_plan(compiled: jax.stages.Compiled) -> Memory | None:
    """Returns what a compiled program needs on one device.

    Args:
      compiled: from `jax.jit(f).lower(...).compile()`.

    Returns:
      The plan; None where the compiler gives none.
    """
    plan: Any = compiled.memory_analysis()
    if plan is None:
        return None
    return Memory(
        arguments=int(plan.argument_size_in_bytes),
        outputs=int(plan.output_size_in_bytes),
        reused=int(plan.alias_size_in_bytes),
        temporaries=int(plan.temp_size_in_bytes),
    )


def readable(size: float) -> str:
    """Returns bytes for people, in powers of 1000.

    Args:
      size: bytes.

    Returns:
      For example `6.74 GB`.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def traffic(found: list[collectives_lib.Collective]) -> dict[str, tuple[int, float, bool]]:
    """Returns what a step sends, by kind.

    Args:
      found: its collectives.

    Returns:
      For each kind how often one runs in a step, the bytes that a device receives by them, and
      whether that is all: False where one is in a loop of unknown length, counted once.
    """
    sums: dict[str, tuple[int, float, bool]] = {}
    for one in found:
        times, size, whole = sums.get(one.kind, (0, 0.0, True))
        runs = 1 if one.executions is None else one.executions
        sums[one.kind] = (
            times + runs,
            size + runs * one.moved_bytes,
            whole and one.executions is not None,
        )
    return dict(sorted(sums.items()))


def _axes_text(axes: tuple[Any, ...]) -> str:
    return "(" + ", ".join("-" if axis is None else str(axis) for axis in axes) + ")"


def print_report(report: Report) -> None:
    """Prints three tables: parameters, memory and collectives.

    Args:
      report: what to print.
    """
    size = "x".join(str(number) for number in report.mesh_shape.values())
    print(f"{report.name}; mesh {size} ({', '.join(report.mesh_shape)})")
    metrics.print_table(
        "Parameters",
        [
            {
                "parameter": one.name,
                "count": one.copies,
                "shape": " x ".join(map(str, one.shape)),
                "dtype": one.dtype,
                "spread over": _axes_text(one.axes),
                "bytes a device": readable(one.bytes_per_device),
            }
            for one in report.parameters
        ],
    )
    held = sum(report.state_bytes.values())
    rows = [
        {"": name, "a device": readable(part), "in all": readable(report.whole_bytes[name])}
        for name, part in report.state_bytes.items()
    ]
    if report.memory is not None:
        rows += [
            {"": "batch", "a device": readable(report.memory.arguments - held), "in all": ""},
            {
                "": "temporaries of the step",
                "a device": readable(report.memory.temporaries),
                "in all": "",
            },
            {"": "the step needs", "a device": readable(report.memory.total), "in all": ""},
        ]
    metrics.print_table("Memory", rows)
    sent = traffic(report.collectives) or {"none": (0, 0.0, True)}
    metrics.print_table(
        "Collectives of a step",
        [
            {
                "kind": kind,
                "times": times if whole else f"at least {times}",
                "received by a device": readable(received)
                if whole
                else f"at least {readable(received)}",
            }
            for kind, (times, received, whole) in sent.items()
        ],
    )
    print(f"Compiled in {report.compile_seconds:.1f} s. Nothing was allocated or trained.")
