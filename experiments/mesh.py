"""Devices: one mesh with axes data, fsdp and tensor, and which parameter lies where."""

import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bellmax.experiments import errors
from bellmax.experiments.processes import initialize_distributed as initialize_distributed

AXES = ("data", "fsdp", "tensor")
# Rows of a batch are spread over both: fsdp shards parameters, and every device still needs rows of
# its own.
BATCH_AXES = ("data", "fsdp")

Rules = Sequence[tuple[str, PartitionSpec]]

# By the end of a parameter's path, so that an optimiser's averages lie where their parameters do.
TRANSFORMER_RULES: Rules = (
    (r"embedder/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"unembedder/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"attention/(query|key|value)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"mlp/(gate|up)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias$", PartitionSpec("tensor")),
    (r"attention/output/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"mlp/down/kernel$", PartitionSpec("tensor", "fsdp")),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns the mesh of all devices.

    Args:
      data: devices along the axis that only rows are spread over; -1 for all that the others leave.
      fsdp: devices along the axis that rows and parameters are spread over; -1 likewise.
      tensor: devices along the axis that single products are spread over; -1 likewise.

    Returns:
      A mesh with axes data, fsdp and tensor.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = divide(jax.device_count(), data=data, fsdp=fsdp, tensor=tensor)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


class Sizes(Protocol):
    """What a config's train group says of the mesh; see `make_mesh`."""

    @property
    def mesh_data(self) -> int:
        """Devices along the axis data."""
        ...

    @property
    def mesh_fsdp(self) -> int:
        """Devices along the axis fsdp."""
        ...

    @property
    def mesh_tensor(self) -> int:
        """Devices along the axis tensor."""
        ...


def of_config(keys: Sizes) -> Mesh:
    """Returns the mesh that a config asks for.

    Args:
      keys: its train group.

    Returns:
      As `make_mesh`.

    Raises:
      UserError: as `make_mesh`.
    """
    return make_mesh(data=keys.mesh_data, fsdp=keys.mesh_fsdp, tensor=keys.mesh_tensor)


def row_share(mesh: Mesh) -> int:
    """Returns the number of devices that rows are spread over, which must divide theirs.

    Args:
      mesh: the mesh.
    """
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def divide(count: int, *, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """Returns the sizes of a mesh's axes, with the one that was left open.

    Args:
      count: devices.
      data: along this axis, or -1.
      fsdp: likewise.
      tensor: likewise.

    Returns:
      The three sizes.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0 and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise errors.UserError(
            f"The mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {count} devices: "
            "sizes must multiply to their number, and at most one may be -1, for the rest."
        )
    return sizes[0], sizes[1], sizes[2]


def path_name(path: Sequence[Any]) -> str:
    """Returns a leaf's path as text, parts joined by '/'.

    Args:
      path: a key path of `jax.tree_util`.

    Returns:
      For example `params/layers_0/mlp/up/kernel`.
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _specification(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    for pattern, specification in rules:
        if re.search(pattern, path):
            if len(shape) < len(specification):
                continue  # A summary of the parameter, such as a factored average.
            # A scanned layer has a leading axis that the rule does not know.
            axes = (None,) * (len(shape) - len(specification)) + tuple(specification)
            fitting = (
                axis if axis is not None and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(axes, shape, strict=True)
            )
            return PartitionSpec(*fitting)
    return PartitionSpec()


def state_sharding(mesh: Mesh, state: Any, rules: Rules = TRANSFORMER_RULES) -> Any:
    """Returns where each array of a state lies.

    Args:
      mesh: the mesh.
      state: pytree of arrays or of their shapes.
      rules: pairs of a regular expression on the leaf's path and a specification; the first that is
        found counts, and what none finds lies on every device. An axis of the mesh that does not
        divide its dimension is dropped.

    Returns:
      A pytree of shardings, like `state`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _specification(path_name(path), np.shape(leaf), mesh, rules)
        ),
        state,
    )


def place_state(mesh: Mesh, state: Any, rules: Rules = TRANSFORMER_RULES) -> Any:
    """Puts a state onto the mesh, where `state_sharding` says.

    Args:
      mesh: the mesh.
      state: pytree of arrays, the same on every process.
      rules: see `state_sharding`.

    Returns:
      The state on the mesh.
    """
    return jax.device_put(state, state_sharding(mesh, state, rules))


def move_state(state: Any, shardings: Any) -> Any:
    """Puts a state where it is to lie, and frees what it was made of.

    Args:
      state: pytree of arrays; donated.
      shardings: a sharding for each.

    Returns:
      The state in its place.
    """
    moved = jax.device_put(state, shardings)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        # Where a device holds all of an array, or held its part before, both may be one memory,
        # which goes when the new one does.
        spread = not new.sharding.is_fully_replicated
        if isinstance(old, jax.Array) and len(old.sharding.device_set) == 1 and spread:
            old.delete()
    return moved


def with_shardings(state: Any, shardings: Any) -> Any:
    """Returns the shapes of a state that say where they lie.

    Args:
      state: pytree of arrays or shapes.
      shardings: a sharding for each, or one for all.

    Returns:
      A pytree of `jax.ShapeDtypeStruct`.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda leaf: one, state)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Assembles a global batch from the rows that each process loaded.

    Args:
      mesh: the mesh.
      batch: pytree of host arrays, this process's rows on the first axis.

    Returns:
      The batch, its rows spread over the axes data and fsdp.

    Raises:
      UserError: the rows cannot be spread evenly.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    share = row_share(mesh)
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[0] * jax.process_count() % share:
            raise errors.UserError(
                f"config.train.batch_size must be a multiple of the {share} devices that rows are "
                f"spread over, got {leaf.shape[0] * jax.process_count()}."
            )
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def gather(tree: Any) -> Any:
    """Brings global arrays to every process's host.

    Args:
      tree: pytree of arrays, spread over devices and processes or not.

    Returns:
      The same tree of whole NumPy arrays.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree
    )
