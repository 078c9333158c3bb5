"""The programs that training steps and evaluations become, and where activations lie on a mesh.

Parameters say where they lie, batches too, and XLA finds places for everything between them. Left
alone it lets a table of embeddings that is sharded by its columns decide: every device then holds
all rows of a batch and a part of each vector, computes attention for all of them, and the axis fsdp
works as a slower axis tensor. Here the stream of every layer is told to lie as its rows do, over
data and fsdp; parameters are then gathered layer by layer, where they are used.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bellmax.agents.networks import blocks
from bellmax.experiments import mesh as mesh_lib


@contextlib.contextmanager
def rows_stay(mesh: Mesh) -> Iterator[None]:
    """Keeps the rows of a transformer's stream where a batch has them, in what is traced inside.

    Networks know nothing of devices: their embeddings and blocks are met as they are called. A
    stream whose rows the mesh cannot divide is left alone, and so is a mesh of one device.

    Args:
      mesh: the devices.

    Yields:
      Nothing.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
    share = mesh_lib.row_share(mesh)

    def stay(hidden: jax.Array) -> jax.Array:
        if hidden.shape[0] % share:
            return hidden
        return jax.lax.with_sharding_constraint(hidden, sharding)

    def intercept(call, arguments, keywords, context):
        outputs = call(*arguments, **keywords)
        if context.method_name != "__call__":
            return outputs
        if isinstance(context.module, nn.Embed):
            return stay(outputs)
        if isinstance(context.module, blocks.Block):
            hidden, cache = outputs
            return stay(hidden), cache
        return outputs

    if mesh.size == 1:
        yield
        return
    with nn.intercept_methods(intercept):
        yield


def jit_rows(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Any:
    """Compiles a function of parameters and rows, such as an evaluation, as steps are compiled.

    Args:
      function: of arrays on the mesh.
      mesh: the devices.
      **options: those of `jax.jit`.

    Returns:
      The jitted function.
    """

    @functools.wraps(function)
    def placed(*arguments):
        with rows_stay(mesh):
            return function(*arguments)

    return jax.jit(placed, **options)


def jit_step(
    train_step: Callable[[Any, Any, Any], tuple[Any, Any]], mesh: Mesh, shardings: Any
) -> Any:
    """Compiles a step of the loop, lazily, as `jax.jit` does.

    Args:
      train_step: `(state, batch, key) -> (state, metrics)`; the state has an integer `step`.
      mesh: the devices.
      shardings: where each array of the state lies, before and after.

    Returns:
      A jitted `(state, batch, run_key) -> (state, metrics)` that donates the state; step n uses
      `fold_in(run_key, n)`.
    """

    def keyed_step(state, batch, run_key):
        return train_step(state, batch, jax.random.fold_in(run_key, state.step))

    return jit_rows(keyed_step, mesh, donate_argnums=0, out_shardings=(shardings, None))
