"""Every loss under pmap, shard_map and sharded jit on 8 forced host devices equals one device."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.xdist_group("devices")
def test_layouts_equal_one_device():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "16",
    }
    script = pathlib.Path(__file__).with_name("device_losses.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 8 devices" in done.stdout
