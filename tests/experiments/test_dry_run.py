"""A dry run lists what lies where and allocates nothing; wrong questions get one paragraph."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from bellmax.agents import networks
from bellmax.experiments import collectives, dry_run, errors, mesh, model_sizes, step_program

HERE = pathlib.Path(__file__).parent


def in_a_process(*command):
    flags = os.environ.get("XLA_FLAGS", "").split()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
    }
    return subprocess.run(
        [sys.executable, "-P", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


# Llama 2: 6.7, 13.0 and 69.0 billion by its paper, to the last one by the shapes of its files.
PUBLISHED = {
    "0.5b": 494_032_768,
    "1.5b": 1_543_714_304,
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
}


@pytest.mark.parametrize("name", model_sizes.SIZES)
def test_sizes_have_the_published_number_of_parameters(name):
    init = functools.partial(networks.init, model_sizes.shape(name))
    assert networks.num_parameters(jax.eval_shape(init, jax.random.key(0))) == PUBLISHED[name]


def test_upper_case_is_the_same_size_and_an_unknown_one_suggests_the_nearest():
    assert model_sizes.shape("7B") is model_sizes.shape("7b")
    with pytest.raises(errors.UserError, match=r"--model_size holds '7c'.*'7b'.*There are: 0.5b"):
        model_sizes.shape("7c")


def test_bytes_are_readable():
    assert [dry_run.readable(size) for size in (0, 999, 1234, 6.742e9, 1.1e12)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "6.74 GB",
        "1.1 TB",
    ]


def test_traffic_adds_up_by_kind_and_owns_up_to_unknown_loops():
    found = [
        collectives.Collective("all-reduce", 4, 8, 12.0, 3),
        collectives.Collective("all-gather", 4, 8, 6.0, None),
        collectives.Collective("all-reduce", 2, 4, 4.0, 1),
    ]
    assert dry_run.traffic(found) == {
        "all-gather": (1, 6.0, False),
        "all-reduce": (4, 40.0, True),
    }


def test_memory_counts_what_is_written_over_once():
    assert dry_run.Memory(arguments=10, outputs=9, reused=8, temporaries=5).total == 16


class State(NamedTuple):
    params: Any
    opt_state: Any
    step: Any


def test_one_device_holds_all_of_a_state():
    devices = mesh.make_mesh()

    def arrays():
        state = State({"w": jnp.ones((8, 4))}, jnp.ones(8), jnp.zeros((), jnp.int32))
        return state, jnp.ones((2 * devices.size, 4))

    def step(state, batch, key):
        del key
        params = {"w": state.params["w"] + batch.sum()}
        return state._replace(params=params, step=state.step + 1), {"loss": batch.sum()}

    state, batch = jax.eval_shape(arrays)
    report = dry_run.examine(dry_run.Program("a sum", state, batch, step), devices)
    assert report.state_bytes == {"parameters": 128, "optimiser": 32, "counters": 4}
    assert report.whole_bytes == report.state_bytes
    assert report.memory is not None
    assert report.memory.arguments >= 164 + 2 * 16


def test_the_step_of_one_device_is_left_alone():
    devices = jax.make_mesh((1, 1, 1), mesh.AXES)
    config = dataclasses.replace(
        model_sizes.shape("0.5b"), vocab_size=16, num_layers=1, embed_dim=28, mlp_dim=8, head_dim=2
    )
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    params = jax.eval_shape(functools.partial(networks.init, config), jax.random.key(0))
    apply = functools.partial(networks.apply, config)
    plain = str(jax.make_jaxpr(apply)(params, tokens))
    with step_program.rows_stay(devices):
        assert str(jax.make_jaxpr(lambda *inputs: apply(*inputs))(params, tokens)) == plain


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model_size=7b"], ["--model_size belongs to a dry run", "--simulate_devices=N"]),
        (["--simulate_devices=4", "--simulate_topology=v5e:2x2"], ["exclude each other"]),
        (["--simulate_devices=-4"], ["simulate_devices", "-4"]),
        (["--simulate_devices=four"], ["simulate_devices", "four"]),
        (["--simulate_rows=4"], ["--simulate_rows belongs to a dry run"]),
        ([], ["--workdir is required"]),
    ],
)
def test_flags_that_do_not_go_together_are_one_paragraph(run_main, arguments, words):
    code, stderr = run_main("--config=gpo", *arguments)
    assert code == 2
    assert all(word in stderr for word in words), stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_four_simulated_devices_hold_their_shares_and_nothing_is_allocated():
    done = in_a_process(str(HERE / "device_dry_run.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-6:] == [
        "sizes",
        "traffic",
        "nothing",
        "layers",
        "numbers",
        "evaluation",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "config", "keys"),
    [
        ("align", "gpo", ["--simulate_rows=8", "--model_size=0.5b", "--simulate_length=16"]),
        ("reason", "rloo", ["--config.train.batch_size=4", "--config.train.group_size=2"]),
        ("reason", "rloo", ["--config.train.batch_size=4", "--simulate_length=12"]),
        (
            "reason",
            "nash_md",
            ["--simulate_rows=4", "--simulate_length=12", "--config.train.num_opponents=1"],
        ),
    ],
)
def test_a_command_prints_every_table_and_exits_with_0(binary, config, keys):
    mesh_keys = ["--config.train.mesh_fsdp=2", "--config.train.mesh_tensor=1"]
    done = in_a_process(
        *["-m", f"bellmax.experiments.{binary}", f"--config={config}", "--simulate_devices=2"],
        *mesh_keys,
        *keys,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in ("embedder/embedding", "the step needs", "Collectives", "Nothing was allocated"):
        assert words in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "arguments", "words"),
    [
        ("align", ["--config=gpo", "--simulate_devices=3"], ["64", "multiple of the 3 devices"]),
        (
            "align",
            ["--config=gpo", "--simulate_devices=4", "--config.train.mesh_fsdp=3"],
            ["does not fit 4 devices"],
        ),
        (
            "align",
            ["--config=gpo", "--simulate_devices=2", "--model_size=8b"],
            ["--model_size holds '8b'", "There are: 0.5b"],
        ),
        ("reason", ["--config=mtpo", "--simulate_devices=2"], ["no dry run", "dialogue"]),
    ],
)
def test_a_dry_run_that_cannot_be_is_one_paragraph(binary, arguments, words):
    done = in_a_process("-m", f"bellmax.experiments.{binary}", *arguments)
    assert done.returncode == 2, done.stderr[-3000:]
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
