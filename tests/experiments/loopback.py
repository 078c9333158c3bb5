"""Processes on loopback as one run, for test_faults.py and test_mesh.py, which run this file."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from bellmax.experiments import metrics

# A process that waits longer than this for another one hangs.
SECONDS = 900


class Group:
    """All processes of one run, started by one command each."""

    def __init__(
        self,
        folder: pathlib.Path,
        *command: str,
        count: int,
        devices: int,
        missing: tuple[int, ...] = (),
        **variables: str,
    ):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "PJRT_NPROC": "16",
            "BELLMAX_HEARTBEAT_SECONDS": "20",
            "BELLMAX_INITIALISATION_SECONDS": "60",
            **variables,
        }
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                # Where one process reads a program that the other compiles, Gloo loses patience.
                "JAX_ENABLE_COMPILATION_CACHE": "0",
            }
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-P", *command],
                env=environment | ({"JAX_PROCESS_ID": str(rank)} if count > 1 else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
            if rank not in missing
        ]

    def step(self) -> int:
        """The last step whose metrics are written."""
        try:
            rows = metrics.read_metrics(self.folder)
        except FileNotFoundError:
            return -1
        return max((row["step"] for row in rows), default=-1)

    def wait_for(self, step: int) -> None:
        until = time.monotonic() + SECONDS
        while self.step() < step and all(p.poll() is None for p in self.processes):
            assert time.monotonic() < until, "no progress"
            time.sleep(0.02)

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].send_signal(number)

    def end(self) -> list[tuple[int, str]]:
        """Waits for all; exit codes and standard errors."""
        ended = []
        try:
            for process in self.processes:
                _, stderr = process.communicate(timeout=SECONDS)
                ended.append((process.returncode, stderr))
        finally:
            for process in self.processes:
                process.kill()
        return ended

    def finish(self) -> None:
        for code, stderr in self.end():
            assert code == 0, stderr[-3000:]


def two_as_one(folder: pathlib.Path, *command: str, rel: float, abs: float) -> list[dict]:
    """Runs a command as two processes of a device and as one of two, and asserts equal metrics.

    Returns:
      The rows of the two processes.
    """
    rows = []
    for count, devices in ((2, 1), (1, 2)):
        workdir = folder / str(count)
        flag = f"--workdir={workdir}"
        Group(workdir, *command, flag, count=count, devices=devices).finish()
        rows.append(metrics.read_metrics(workdir))
    found, expected = rows
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            near = value if isinstance(value, str) else pytest.approx(value, rel=rel, abs=abs)
            assert row[name] == near or name == "wall_time_s", (name, row["step"])
    return found
