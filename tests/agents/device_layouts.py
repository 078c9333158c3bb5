"""Run by tests/test_devices.py on forced host devices: each layout must equal one device.

Its arguments are a folder, which it does not need, and agents, all of them where none is named. The
devices are those of one process, or of several that the environment joins.
Every `device_layouts_AGENT.py` beside this file has a `make_case`, which returns a step
`(state, batch, key) -> (state, metrics)` for one device, the same step that sums over an axis of
devices and learns in parts, the state to start from, the batch, and how far apart results may be.
Without an axis, both are steps of one device (`test_accumulation.py`).
"""

import functools
import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bellmax.experiments import mesh as mesh_lib

AXIS, STEPS = "devices", 3
CASES = sorted(pathlib.Path(__file__).parent.glob("device_layouts_*.py"))


def take_steps(step, state, batch, make_key=jax.random.key):
    metrics = {}
    for number in range(STEPS):
        state, metrics = step(state, batch, make_key(number))
    return jax.device_get((state, metrics))


def on_sharded_jit(step, start, batch, mesh):
    """The compiler partitions the plain step."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    placed = jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, rows, lambda part: x[part]), batch
    )
    make_key = jax.jit(jax.random.key, out_shardings=everywhere)
    return take_steps(jax.jit(step), jax.device_put(start, everywhere), placed, make_key)


def on_shard_map(step, start, batch, mesh):
    split, same = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(same, split, same), out_specs=same)
    return on_sharded_jit(mapped, start, batch, mesh)


def on_pmap(step, start, batch):
    # Each process gives and gets what its own devices hold.
    count, first = jax.local_device_count(), jax.process_index() * jax.local_device_count()
    parts = jax.tree.map(
        lambda x: x.reshape(jax.device_count(), -1, *x.shape[1:])[first : first + count], batch
    )
    copies = jax.tree.map(lambda x: jnp.stack([x] * count), start)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None))
    state, metrics = copies, {}
    for number in range(STEPS):
        state, metrics = mapped(state, parts, jax.random.key(number))
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[-1].data)[0], (state, metrics))


def main():
    mesh_lib.initialize_distributed()
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    names = [f"device_layouts_{name}" for name in sys.argv[2:]]
    scripts = [path for path in CASES if not names or path.stem in names]
    assert len(scripts) == (len(names) or len(CASES)) > 0
    for script in scripts:
        make_case = runpy.run_path(str(script))["make_case"]
        one, spread, start, batch, atol = make_case(AXIS, accumulate_steps=1)
        _, spread_in_parts, *_ = make_case(AXIS)
        _, in_parts, *_ = make_case(None)
        expected = take_steps(jax.jit(one), start, batch)
        assert np.isfinite(expected[1]["loss"])
        layouts = {
            "jit": on_sharded_jit(one, start, batch, mesh),
            "jit_in_parts": on_sharded_jit(in_parts, start, batch, mesh),
            "shard_map": on_shard_map(spread, start, batch, mesh),
            "pmap_in_parts": on_pmap(spread_in_parts, start, batch),
        }
        for name, found in layouts.items():
            equal = functools.partial(
                np.testing.assert_allclose,
                rtol=2e-5,
                atol=atol,
                err_msg=f"{script.stem} under {name}",
            )
            jax.tree.map(equal, found, expected)
            print(f"{script.stem}/{name}")


if __name__ == "__main__":
    main()
