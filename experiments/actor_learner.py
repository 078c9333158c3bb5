"""Generation and training on disjoint halves of the devices, generation one step behind.

    roles = make_roles(fsdp=2)
    loop = Loop(roles, state, act=act, update=update, params_of=lambda state: state.params)
    result = loop.run(state, num_steps=100, key=key)

While the learner takes an update, the actor makes the next batch with the parameters from before
it: every batch but the first is of a policy that is exactly one update old when it is learnt from,
however long either side takes. In between there is one exchange: a program over all devices in
which each of the learner's sends its part of the parameters to the actor's in the same place, which
sends back its part of the batch. JAX moves the arrays; nothing else connects the two. The halves
may be two groups of processes, each of which runs its own programs alone, or lie in one process.

The actor keeps parameters as the learner does (fsdp and tensor) and gathers them into
`resharding`'s generation layout where it acts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax.agents import Metrics, Params, updates
from bellmax.experiments import errors, resharding
from bellmax.experiments import mesh as mesh_lib

AXIS = "role"
_LEARNER, _ACTOR = 0, 1


class Roles(NamedTuple):
    """Two halves of the devices.

    Attributes:
      mesh: all devices, with a first axis `role` of size 2.
      learner: the first half, with the axes of `mesh.make_mesh`.
      actor: the second half, likewise.
    """

    mesh: Mesh
    learner: Mesh
    actor: Mesh

    def here(self, role: int) -> bool:
        """Returns whether this process has devices of a role, 0 the learner's and 1 the actor's."""
        return any(d.process_index == jax.process_index() for d in self.mesh.devices[role].flat)


def make_roles(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Roles:
    """Divides the devices among a learner and an actor; where there are processes, between two.

    Args:
      data: devices of each half along the axis data; -1 for all that the others leave.
      fsdp: along the axis fsdp.
      tensor: along the axis tensor.

    Returns:
      The halves.

    Raises:
      UserError: the sizes do not multiply to half the number of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    half, rest = divmod(len(devices), 2)
    if rest:
        raise errors.UserError(
            f"A learner and an actor need an even number of devices, got {len(devices)}."
        )
    sizes = mesh_lib.divide(half, data=data, fsdp=fsdp, tensor=tensor)
    grid = np.array(devices).reshape(2, *sizes)
    kinds = (AxisType.Auto,) * 3
    return Roles(
        Mesh(grid, (AXIS, *mesh_lib.AXES), axis_types=(AxisType.Auto, *kinds)),
        Mesh(grid[_LEARNER], mesh_lib.AXES, axis_types=kinds),
        Mesh(grid[_ACTOR], mesh_lib.AXES, axis_types=kinds),
    )


class Result(NamedTuple):
    """What a process has at the end.

    Attributes:
      state: the learner's state after the last update; None where there is no learner.
      metrics: of every update, in order; empty where there is no learner.
    """

    state: Any
    metrics: list[Metrics]


class _Slot:
    """Arrays that cross, with a first axis of size 2 over all devices and of size 1 in a half."""

    def __init__(self, roles: Roles, shapes: Any, shardings: Any):
        self._shapes = shapes

        def on(mesh, axis):
            return jax.tree.map(
                lambda sharding: NamedSharding(mesh, PartitionSpec(axis, *sharding.spec)), shardings
            )

        self._everywhere = on(roles.mesh, AXIS)
        self.halves = on(roles.learner, None), on(roles.actor, None)
        self.specs = jax.tree.map(lambda sharding: sharding.spec, self._everywhere)

    def nothing(self, role: int) -> Any:
        """What a half sends that only receives, the first time."""

        def zeros():
            return jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), self._shapes)

        return jax.jit(zeros, out_shardings=self.halves[role])()

    def join(self, sides: Sequence[Any]) -> Any:
        """The halves that are here as one array over all devices; no byte moves."""

        def one(shape, sharding, *leaves):
            parts = [shard.data for leaf in leaves for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays((2, *shape.shape), sharding, parts)

        return jax.tree.map(one, self._shapes, self._everywhere, *sides)

    def half(self, tree: Any, role: int) -> Any:
        """One half of an array over all devices; no byte moves."""

        def one(shape, sharding, leaf):
            parts = [s.data for s in leaf.addressable_shards if s.device in sharding.device_set]
            return jax.make_array_from_single_device_arrays((1, *shape.shape), sharding, parts)

        return jax.tree.map(one, self._shapes, self.halves[role], tree)


def _lifted(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _lowered(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


class Loop:
    """The programs of both roles and of the exchange between them.

    Args:
      roles: the halves of the devices.
      state: the first state or its shapes, the same on every process.
      act: `(params, step, key) -> batch`: makes batch `step`, from 0; rows on the first axis.
      update: `(state, batch, key) -> (state, metrics)`.
      params_of: what `act` needs of a state.
      rules: where parameters lie in each half, see `mesh.state_sharding`.

    Raises:
      ValueError: rows that `act` makes cannot be spread evenly.
    """

    def __init__(
        self,
        roles: Roles,
        state: Any,
        *,
        act: Callable[[Params, Int[Array, ""], PRNGKeyArray], Any],
        update: Callable[[Any, Any, PRNGKeyArray], tuple[Any, Metrics]],
        params_of: Callable[[Any], Params],
        rules: mesh_lib.Rules = mesh_lib.TRANSFORMER_RULES,
    ):
        self._roles = roles
        shapes = jax.eval_shape(params_of, state)
        batch = jax.eval_shape(act, shapes, jnp.int32(0), jax.random.key(0))
        share = mesh_lib.row_share(roles.learner)
        for leaf in jax.tree.leaves(batch):
            if leaf.ndim < 1 or leaf.shape[0] % share:
                raise ValueError(
                    f"act must make arrays whose first axis is a multiple of the {share} devices "
                    f"that a half spreads rows over, got shape {leaf.shape}."
                )
        rows = NamedSharding(roles.learner, PartitionSpec(mesh_lib.BATCH_AXES))
        self._batch = _Slot(roles, batch, jax.tree.map(lambda _: rows, batch))
        self._params = _Slot(roles, shapes, mesh_lib.state_sharding(roles.learner, shapes, rules))
        placed = mesh_lib.state_sharding(roles.learner, state, rules)

        def acting(params, step, key):
            params = resharding.to_generation(roles.actor, _lowered(params), rules)
            return _lifted(act(params, step, jax.random.fold_in(key, step)))

        def learning(state, batch, step, key):
            state, metrics = update(state, _lowered(batch), jax.random.fold_in(key, step))
            return state, _lifted(params_of(state)), metrics

        def exchange(params, batch):
            return (
                jax.lax.ppermute(params, AXIS, [(_LEARNER, _ACTOR)]),
                jax.lax.ppermute(batch, AXIS, [(_ACTOR, _LEARNER)]),
            )

        self.act = jax.jit(acting, out_shardings=self._batch.halves[_ACTOR])
        self.learn = jax.jit(
            learning,
            donate_argnums=0,
            out_shardings=(placed, self._params.halves[_LEARNER], None),
        )
        specs = self._params.specs, self._batch.specs
        # What a half only receives into may be written over.
        self.exchange = jax.jit(
            jax.shard_map(exchange, mesh=roles.mesh, in_specs=specs, out_specs=specs),
            donate_argnums=(0, 1),
        )
        # Copies: the given state is not donated. Not by `device_put`, which compares the values of
        # all processes.
        self._place = jax.jit(updates.copy_tree, out_shardings=placed)
        self._offers = [
            jax.jit(lambda state: _lifted(params_of(state)), out_shardings=half)
            for half in self._params.halves
        ]

    def run(self, state: Any, *, num_steps: int, key: PRNGKeyArray) -> Result:
        """Takes the learner through its updates.

        Args:
          state: the first state, the same on every process; copied.
          num_steps: updates N, at least 1.
          key: randomness; split in two, of which batch n uses `fold_in` of the first and n, and
            update n of the second. Consumed.

        Returns:
          What this process has.

        Raises:
          ValueError: `num_steps` is below 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        act_key, update_key = jax.random.split(key)
        learns, acts = (self._roles.here(role) for role in (_LEARNER, _ACTOR))
        metrics: list[Metrics] = []
        # What this process holds of either half: parameters to offer and batch received; parameters
        # to act with and batch made.
        offered = received = acting = made = None
        if learns:
            offered, received = self._offers[_LEARNER](state), self._batch.nothing(_LEARNER)
            learnt = self._place(state)
        else:
            learnt = None
        if acts:
            acting = self._offers[_ACTOR](state)
        for step in range(num_steps + 1):
            if acts and step < num_steps:
                made = self.act(acting, np.int32(step), act_key)
            if learns and step > 0:
                learnt, offered, found = self.learn(
                    learnt, received, np.int32(step - 1), update_key
                )
                metrics.append(found)
            if step < num_steps:
                params, batch = self.exchange(
                    self._params.join([*[offered] * learns, *[acting] * acts]),
                    self._batch.join([*[received] * learns, *[made] * acts]),
                )
                received = self._batch.half(batch, _LEARNER) if learns else None
                acting = self._params.half(params, _ACTOR) if acts else None
                # Both wait for it anyway; and forced host devices deadlock if much is under way.
                jax.block_until_ready((params, batch))
        return Result(learnt, metrics)
