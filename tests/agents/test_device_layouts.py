"""The step of every agent is the same on every layout of devices."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("device_layouts.py")


@pytest.mark.xdist_group("devices")
def test_every_device_layout_takes_the_step_of_one_device():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "16",
    }
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    agents = [path.stem for path in sorted(SCRIPT.parent.glob("device_layouts_*.py"))]
    assert len(agents) >= 4
    assert done.stdout.split() == [
        f"{agent}/{layout}" for agent in agents for layout in ("jit", "shard_map", "pmap")
    ]
