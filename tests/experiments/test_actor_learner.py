"""Learner and actor on halves of the devices, one update apart."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from bellmax.experiments import actor_learner, errors

SCRIPT = pathlib.Path(__file__).parent / "device_actor_learner.py"


def start(devices, *arguments):
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": "16",
    }
    return subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_words(process):
    try:
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return out.split()[-1]


@pytest.mark.slow
def test_halves_of_one_process_equal_a_loop_by_hand():
    assert last_words(start(8)) == "learnt"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_equal_a_loop_by_hand(count):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = [start(8 // count, port, str(rank), str(count)) for rank in range(count)]
    words = [last_words(process) for process in group]
    assert words == ["learnt"] * (count // 2) + ["acted"] * (count // 2)


def halves(monkeypatch, count):
    """As many devices as are asked for, all of them the one that is here."""
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * count)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(3, {}), (1, {}), (8, {"data": 8}), (8, {"data": -1, "fsdp": 3}), (8, {"data": 0})],
)
def test_sizes_must_fit_half_of_the_devices(monkeypatch, count, sizes):
    halves(monkeypatch, count)
    said = f"an even number of devices, got {count}" if count % 2 else "does not fit 4 devices"
    with pytest.raises(errors.UserError, match=said):
        actor_learner.make_roles(**sizes)


def make_loop(rows):
    device = jax.local_devices()[0]
    grid = [[[[device]]], [[[device]]]]
    axes = actor_learner.AXIS, "data", "fsdp", "tensor"
    mesh = jax.sharding.Mesh(grid, axes)
    half = jax.sharding.Mesh(grid[0], axes[1:])
    return actor_learner.Loop(
        actor_learner.Roles(mesh, half, half),
        {"weight": jnp.zeros(2)},
        act=lambda params, step, key: rows,
        update=lambda state, batch, key: (state, {}),
        params_of=lambda state: state,
    )


def test_every_array_of_a_batch_has_rows():
    with pytest.raises(ValueError, match="first axis is a multiple of the 1 devices"):
        make_loop(jnp.zeros(()))


def test_at_least_one_update():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        make_loop(jnp.zeros(2)).run({}, num_steps=0, key=jax.random.key(0))
