"""Two layouts of the same parameters on one mesh: one to train in, one to generate in.

    params = to_generation(mesh, params)      # inside a jitted step, before its decode loop
    resharder = make_resharder(mesh, params)  # or between programs
    generating = resharder.gather(params)
    params = resharder.slice(generating)

Training spreads parameters over fsdp and tensor. A decode loop uses all of them for every token: it
would send partial sums and rows through the groups of fsdp for every token. So for generation they
are spread over tensor alone and whole along fsdp, while rows stay over data and fsdp. Along each
dimension the device's part in training lies inside its part in generation: the way there is an
all-gather inside the groups of fsdp, of (f - 1) / f of the generation's bytes, and the way back is
a slice of what the device already has (HybridFlow's zero-redundancy layout). Generation's tensor
size is training's: a smaller one would want a fourth axis of the mesh that splits `tensor`.

References:
  Sheng et al., HybridFlow: A Flexible and Efficient RLHF Framework, 2024, section 5.
  https://arxiv.org/abs/2409.19256
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bellmax.agents import Params
from bellmax.experiments import mesh as mesh_lib


def _generation(sharding: NamedSharding) -> NamedSharding:
    spec = (None if axis in mesh_lib.BATCH_AXES else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def generation_sharding(
    mesh: Mesh, params: Params, rules: mesh_lib.Rules = mesh_lib.TRANSFORMER_RULES
) -> Any:
    """Returns where each parameter lies during generation: as in training, but whole along fsdp.

    Args:
      mesh: the mesh.
      params: pytree of arrays or of their shapes.
      rules: of the training layout, see `mesh.state_sharding`; what falls back there, because an
        axis does not divide its dimension, falls back here.

    Returns:
      A pytree of shardings, like `params`.
    """
    return jax.tree.map(_generation, mesh_lib.state_sharding(mesh, params, rules))


def to_generation(
    mesh: Mesh, params: Params, rules: mesh_lib.Rules = mesh_lib.TRANSFORMER_RULES
) -> Params:
    """Has parameters lie in the generation layout from here on, inside a jitted function.

    Where both layouts are one, such as on a single device, the program stays as it is.

    Args:
      mesh: the mesh.
      params: the parameters, in the training layout.
      rules: see `generation_sharding`.

    Returns:
      The same parameters.
    """

    def constrain(leaf, sharding):
        generation = _generation(sharding)
        if generation.is_equivalent_to(sharding, np.ndim(leaf)):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, generation)

    return jax.tree.map(constrain, params, mesh_lib.state_sharding(mesh, params, rules))


def spread_rows(mesh: Mesh, rows: Any) -> Any:
    """Has rows lie over data and fsdp from here on, inside a jitted function, where they divide.

    Rows that a program makes, or was compiled with, would lie on every device.

    Args:
      mesh: the mesh.
      rows: pytree of arrays, rows on the first axis.

    Returns:
      The same rows.
    """
    share = mesh_lib.row_share(mesh)
    if share == 1 or any(leaf.shape[0] % share for leaf in jax.tree.leaves(rows)):
        return rows
    return jax.lax.with_sharding_constraint(
        rows, NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
    )


class Move:
    """Moves parameters from one layout to another, some of them at a time.

    Each part is a program of its own, so that the first parts' old copies are gone before the last
    parts' new ones are there. What lies alike in both layouts stays where it is.

    Args:
      params: pytree of arrays or of their shapes.
      source: their shardings, a pytree like `params`.
      target: those to come, likewise.
      takes: whether the old copy is taken away.
      parts: most programs.
    """

    def __init__(self, params: Params, source: Any, target: Any, *, takes: bool, parts: int):
        self._leaves, self._tree = jax.tree.flatten(jax.eval_shape(lambda x: x, params))
        self._source, self._target = jax.tree.leaves(source), jax.tree.leaves(target)
        self._takes = takes
        moved = [
            place
            for place, leaf in enumerate(self._leaves)
            # A copy that may be taken away again shares nothing with what it was made from.
            if not (takes and self._target[place].is_equivalent_to(self._source[place], leaf.ndim))
        ]
        sizes = [self._bytes(self._target, place) for place in moved]
        self._parts = _split(moved, sizes, parts)
        self.programs = [
            jax.jit(_copy, out_shardings=[self._target[place] for place in part])
            for part in self._parts
        ]

    def __call__(self, params: Params) -> Params:
        """Returns the parameters in the new layout.

        Args:
          params: on the mesh, in the old layout.
        """
        leaves = self._tree.flatten_up_to(params)
        for part, program in zip(self._parts, self.programs, strict=True):
            old = [leaves[place] for place in part]
            for place, leaf in zip(part, program(old), strict=True):
                leaves[place] = leaf
            if self._takes:
                for leaf in old:
                    # It is freed when the program has read it. Donated, an array of another size
                    # than all results would be kept.
                    leaf.delete()
        return self._tree.unflatten(leaves)

    @functools.cached_property
    def compiled(self) -> list[jax.stages.Compiled]:
        """The programs, compiled, in the order in which they run."""
        old = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for leaf, sharding in zip(self._leaves, self._source, strict=True)
        ]
        return [
            program.lower([old[place] for place in part]).compile()
            for part, program in zip(self._parts, self.programs, strict=True)
        ]

    def least_bytes(self) -> int:
        """Returns the bytes that a device must receive: its new parts, less its old ones in them.

        Right between the layouts of this module, where one of the two parts holds the other.
        """
        return sum(
            max(self._bytes(self._target, place) - self._bytes(self._source, place), 0)
            for place in range(len(self._leaves))
        )

    def peak_bytes(self) -> int:
        """Returns the most bytes that a device holds at once while the parameters move.

        Both layouts' arrays, and what the compiler plans beside them.
        """
        places = range(len(self._leaves))
        held = sum(self._bytes(self._source, place) for place in places)
        peak = held
        for part, compiled in zip(self._parts, self.compiled, strict=True):
            analysis = compiled.memory_analysis()
            held += sum(self._bytes(self._target, place) for place in part)
            peak = max(peak, held + (0 if analysis is None else analysis.temp_size_in_bytes))
            if self._takes:
                held -= sum(self._bytes(self._source, place) for place in part)
        return peak

    def _bytes(self, shardings: list[NamedSharding], place: int) -> int:
        leaf = self._leaves[place]
        return math.prod(shardings[place].shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _copy(leaves):
    return [jnp.copy(leaf) for leaf in leaves]


def _split(places: Sequence[int], sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Neighbours together, in at most so many parts, none larger than a share and one member."""
    share, found, filled = sum(sizes) / parts, [], 0
    for place, size in zip(places, sizes, strict=True):
        if not found or filled >= share:
            found.append([])
            filled = 0
        found[-1].append(place)
        filled += size
    return found


class Resharder(NamedTuple):
    """The ways between the layouts, compiled once for parameters of one kind.

    Attributes:
      gather: from training to generation.
      slice: from generation to training; takes the generation's copy away.
    """

    gather: Move
    slice: Move


def make_resharder(
    mesh: Mesh,
    params: Params,
    rules: mesh_lib.Rules = mesh_lib.TRANSFORMER_RULES,
    *,
    donate: bool = False,
    parts: int = 8,
) -> Resharder:
    """Returns the ways between the layouts.

    Args:
      mesh: the mesh.
      params: pytree of arrays or of their shapes.
      rules: of the training layout.
      donate: whether `gather` takes the training's copy away, which `slice` brings back. Then a
        device holds one layout at a time, and of one part both.
      parts: most programs that a move is divided into where the old copy is taken away; more need
        less memory, fewer send larger messages.

    Returns:
      The two moves; they take and return parameters on the mesh.

    Raises:
      ValueError: `parts` is below 1.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}.")
    training = mesh_lib.state_sharding(mesh, params, rules)
    generation = generation_sharding(mesh, params, rules)
    return Resharder(
        gather=Move(params, training, generation, takes=donate, parts=parts if donate else 1),
        slice=Move(params, generation, training, takes=True, parts=parts),
    )
