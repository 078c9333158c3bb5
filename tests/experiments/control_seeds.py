"""Run by tests/test_devices.py with 2 forced host devices: a seed on each equals both on one."""

import pathlib
import runpy

import jax
from jax.sharding import AxisType

from bellmax.experiments import control_methods, mesh


def main():
    assert jax.device_count() == 2
    tests = runpy.run_path(str(pathlib.Path(__file__).with_name("test_control.py")))
    control_methods.SOURCES["line"] = tests["line"]
    config = tests["make_config"](**tests["SEEDS"])
    spread = tests["windows"](config, mesh.make_mesh(data=2))
    print("spread")
    one = jax.make_mesh(
        (1, 1, 1), mesh.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1]
    )
    tests["same_seeds"](spread, tests["windows"](config, one))
    print("alike")


if __name__ == "__main__":
    main()
