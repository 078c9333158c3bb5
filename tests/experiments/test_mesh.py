import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bellmax.experiments import errors, mesh


def environment(devices, **variables):
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": "16",
        **variables,
    }


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, tiny_overrides):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    overrides = tiny_overrides(train={"mesh_fsdp": 2, "num_steps": 4})
    command = [sys.executable, "-P", "-m", "bellmax.experiments.align", "--config=gpo:logistic"]

    def start(folder, devices, **variables):
        return subprocess.Popen(
            [*command, *overrides, f"--workdir={tmp_path / folder}"],
            env=environment(devices, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )

    pair = [
        start(
            "two",
            4,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(rank),
        )
        for rank in range(2)
    ]
    printed = []
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        printed.append((out, err))
    # Process 0 alone talks.
    assert "processes: 2" in printed[0][1]
    assert "Held-out results" in printed[0][0]
    # The collective library announces itself everywhere.
    assert all(line.startswith("[Gloo]") for line in printed[1][0].splitlines())

    alone = start("one", 8)
    _, err = alone.communicate(timeout=300)
    assert alone.returncode == 0, err[-3000:]
    results = [
        json.loads((tmp_path / folder / "result.json").read_text())["rows"][0]
        for folder in ("two", "one")
    ]
    for name, value in results[1].items():
        if isinstance(value, float) and name != "wall_time_s":
            assert results[0][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_one_process_joins_nobody(monkeypatch):
    def refuse(**_):
        raise AssertionError("initialised")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    for variable in ("BELLMAX_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    mesh.initialize_distributed()
    # Left over from somewhere: without an address it says nothing.
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    mesh.initialize_distributed()


def test_the_environment_names_the_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    mesh.initialize_distributed()
    assert calls == [{"num_processes": 4, "process_id": 0}]

    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(errors.UserError, match="JAX_PROCESS_ID must be a whole number"):
        mesh.initialize_distributed()


def test_half_an_environment_is_an_error_and_no_hang(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    for variable in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(variable, raising=False)

    def half(*, num_processes, process_id):
        assert num_processes is None
        assert process_id is None
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", half)
    with pytest.raises(errors.UserError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        mesh.initialize_distributed()


def test_sizes_must_fit():
    assert dict(mesh.make_mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh.make_mesh(data=1, fsdp=-1).shape["fsdp"] == 1
    for sizes in ({"data": 2}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": -2}, {"tensor": 3}):
        with pytest.raises(errors.UserError, match="does not fit 1 devices"):
            mesh.make_mesh(**sizes)


def test_rules_go_by_the_end_of_the_path():
    devices = mesh.make_mesh()
    tree = {
        "mean": {"layers_0": {"mlp": {"up": {"kernel": np.zeros((4, 6))}}}},
        "layers": {"attention": {"output": {"kernel": np.zeros((3, 4, 4))}}},
        "factored": {"mlp": {"down": {"kernel": np.zeros(4)}}},
        "final_norm": {"scale": np.zeros(4)},
        "step": np.zeros(()),
    }
    specs = jax.tree.map(lambda s: s.spec, mesh.state_sharding(devices, tree))
    assert specs["mean"]["layers_0"]["mlp"]["up"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert specs["layers"]["attention"]["output"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    for name in ("factored", "final_norm"):
        assert jax.tree.leaves(specs[name], is_leaf=lambda x: isinstance(x, PartitionSpec)) == [
            PartitionSpec()
        ]
    assert specs["step"] == PartitionSpec()
    own = [(r"scale$", PartitionSpec("data"))]
    sharding = mesh.state_sharding(devices, tree, own)["final_norm"]["scale"]
    assert sharding.spec == PartitionSpec("data")
