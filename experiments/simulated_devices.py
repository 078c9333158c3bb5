"""Devices that are not there: hosts in the place of accelerators, or chips known by their layout.

Both must be made before JAX has looked for devices, which its first computation does.
"""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from bellmax.experiments import errors
from bellmax.experiments import mesh as mesh_lib


def force(count: int) -> None:
    """Makes this process have so many devices, all of them its processor.

    Collectives of many devices on few cores wait for each other for ever where XLA has fewer
    threads than they need: it is told of twice as many processors as devices.

    Args:
      count: devices.

    Raises:
      UserError: JAX has its devices already, another number of them.
    """
    os.environ["PJRT_NPROC"] = str(max(2 * count, int(os.environ.get("PJRT_NPROC", "0"))))
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        # JAX refuses a change once it has devices.
        pass
    if jax.device_count() != count or jax.default_backend() != "cpu":
        raise errors.UserError(
            f"--simulate_devices={count} came too late: this process has {jax.device_count()} "
            f"{jax.default_backend()} devices already. Simulate in a process of its own, without "
            "--xla_force_host_platform_device_count in XLA_FLAGS."
        )


def topology_devices(name: str) -> list[Any]:
    """Returns the chips of a TPU slice that a compiler can work for, though none is here.

    Args:
      name: generation and layout, such as `v5e:4x4`.

    Returns:
      Its devices, which can be compiled for and nothing else.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    # What libtpu would otherwise ask a TPU's host, and wait for.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:
        # libtpu raises several kinds, and no module of it is there to name them.
        raise errors.UserError(
            f"--simulate_topology={name} is not known: {error}. Slices are named v5e:4x4 and the "
            "like; the compiler for them comes with pip install 'jax[tpu]', also where no TPU is."
        ) from error


def on_topology(mesh: Mesh, devices: list[Any]) -> Mesh:
    """Returns a mesh of the same shape on the chips of a slice.

    Args:
      mesh: of simulated hosts, as many.
      devices: from `topology_devices`.

    Returns:
      The mesh, laid out on the slice as JAX lays out meshes on a real one.
    """
    return jax.make_mesh(
        tuple(mesh.shape[axis] for axis in mesh_lib.AXES),
        mesh_lib.AXES,
        devices=devices,
        axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
    )
