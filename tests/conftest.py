"""What all tests share: programs that compile fast or once, since almost none runs for long."""

import collections
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
_made_here = None
# Its three tests take minutes of many devices: begun last, they would end alone.
_FIRST = "test_devices.py"


def pytest_configure(config):
    """Decides how JAX compiles before it is imported, also in workers and processes of tests."""
    global _made_here
    if config.option.markexpr == "not slow":
        # Reproductions run long enough for optimised programs to pay.
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        # Two thirds of the time to compile. XLA stops at a flag that it does not know.
        flags = os.environ.get("XLA_FLAGS", "")
        if importlib.metadata.version("jaxlib").startswith("0.10.") and not flags:
            os.environ["XLA_FLAGS"] = _OLDER_EMITTERS
    if _CACHE not in os.environ:
        # Workers and processes share what they compile: a run that is resumed compiles nothing.
        _made_here = os.environ[_CACHE] = tempfile.mkdtemp(prefix="bellmax-jax-cache-")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would begin with the files of the most tests, whatever these take.
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Puts the scripts on several devices first, then whole files by their number of tests."""
    sizes = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name != _FIRST, -sizes[item.path], item.path))


def pytest_unconfigure():
    """Removes the compiled programs of this run."""
    if _made_here is not None:
        shutil.rmtree(_made_here, ignore_errors=True)


@pytest.fixture
def words_on_devices(tmp_path):
    """Runs a script on forced host devices; returns what it printed, word by word."""

    def run(
        script: pathlib.Path, *arguments: str, devices: int, threads: int, seconds: int = 500
    ) -> list[str]:
        flags = os.environ.get("XLA_FLAGS", "")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            "PJRT_NPROC": str(threads),
        }
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(tmp_path), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split()

    return run
