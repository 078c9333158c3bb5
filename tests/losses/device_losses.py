"""Run by tests/test_devices.py with 8 forced host devices: each layout must equal one device.

The value is a sum over the batch; the gradients are those of all arguments, those that all
devices share included (the unembedding), whose gradient is a sum over devices.
"""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES, ROWS = 8, 16
CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("all_cases.py")))["CASES"]


def total(case, *inputs):
    return jnp.sum(case.function(*inputs))


def on_one(case, inputs):
    return jax.jit(jax.value_and_grad(functools.partial(total, case), case.real))(*inputs)


def on_pmap(case, inputs):
    """Every device has its rows; sums over devices are taken by hand."""
    rows = [i for i in range(len(inputs)) if i not in case.shared]
    split = [
        array.reshape(DEVICES, -1, *array.shape[1:]) if i in rows else array
        for i, array in enumerate(inputs)
    ]
    axes = tuple(0 if i in rows else None for i in range(len(inputs)))

    def step(*local):
        value, slopes = jax.value_and_grad(functools.partial(total, case), case.real)(*local)
        slopes = tuple(
            jax.lax.psum(slope, "devices") if i in case.shared else slope
            for i, slope in zip(case.real, slopes, strict=True)
        )
        return jax.lax.psum(value, "devices"), slopes

    value, slopes = jax.pmap(step, axis_name="devices", in_axes=axes)(*split)
    joined = tuple(
        slope[0] if i in case.shared else slope.reshape(-1, *slope.shape[2:])
        for i, slope in zip(case.real, slopes, strict=True)
    )
    return value[0], joined


def specs(case, count):
    return tuple(P() if i in case.shared else P("devices") for i in range(count))


def on_shard_map(case, inputs, mesh):
    """The sum over devices is differentiated from outside."""
    mapped = jax.shard_map(
        lambda *local: jax.lax.psum(total(case, *local), "devices"),
        mesh=mesh,
        in_specs=specs(case, len(inputs)),
        out_specs=P(),
    )
    return jax.jit(jax.value_and_grad(mapped, case.real))(*inputs)


def on_sharded_jit(case, inputs, mesh):
    """The compiler partitions the plain function."""
    layout = [NamedSharding(mesh, spec) for spec in specs(case, len(inputs))]
    placed = [jax.device_put(x, s) for x, s in zip(inputs, layout, strict=True)]
    return on_one(case, placed)


def main():
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    for name, case in CASES.items():
        if len(case.arguments) == 1:
            # A function of one array meets the same operations inside a loss of pairs.
            continue
        inputs = tuple(jnp.asarray(array) for array in case.make((ROWS,)))
        expected = on_one(case, inputs)
        layouts = {
            "pmap": on_pmap(case, inputs),
            "shard_map": on_shard_map(case, inputs, mesh),
            "jit": on_sharded_jit(case, inputs, mesh),
        }
        for layout, found in layouts.items():
            jax.tree.map(
                functools.partial(
                    np.testing.assert_allclose,
                    rtol=2e-5,
                    atol=2e-5,
                    err_msg=f"{name} under {layout}",
                ),
                found,
                expected,
            )
    print(f"every loss on {jax.device_count()} devices")


if __name__ == "__main__":
    main()
