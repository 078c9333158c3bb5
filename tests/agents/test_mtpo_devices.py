"""The MTPO agent's step is the same on every layout of devices."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.xdist_group("devices")
def test_every_device_layout_takes_the_step_of_one_device():
    script = pathlib.Path(__file__).with_name("device_layouts_mtpo.py")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "16",
    }
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["gspmd", "shard_map", "pmap"]
