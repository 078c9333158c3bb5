"""Run by tests/test_devices.py with 8 forced devices: steps that sample, on fsdp 8 and on one.

They equal each other, and the decode loop sends nothing but whether all rows have ended: parameters
lie whole on each device while it samples.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from bellmax.agents import nash
from bellmax.configs.reason import base, tasks
from bellmax.experiments import (
    collectives,
    judging,
    language_run,
    mesh,
    reason_config,
    reason_stages,
    task_config,
    task_evaluation,
    task_methods,
    task_run,
    task_steps,
)
from bellmax.experiments import config as config_lib

NETWORK = {
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "embed_dim": 16,
    "mlp_dim": 16,
}
KEY = 5


def one_device():
    return Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.AXES, axis_types=(AxisType.Auto,) * 3
    )


def close(found, expected):
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, jax.device_get(found), jax.device_get(expected))


def check_token(compiled):
    """A truth value over 8 devices in a ring: 2 * 7/8 bytes, in the body or in the condition."""
    found = [one for one in collectives.collectives(compiled) if one.executions is None]
    assert all((one.kind, one.result_bytes) == ("all-reduce", 1) for one in found), found


def checked(function, devices, *arguments):
    """Runs a program, and where there are several devices reads what it sends."""
    compiled = jax.jit(function).lower(*arguments).compile()
    if devices.size > 1:
        check_token(compiled)
    return compiled(*arguments)


def task_results(devices, workdir):
    """A batch of completions, rewarded, and the measures of an evaluation."""
    config = tasks.of_methods(("rloo",), "addition")
    config.update(
        {
            "model": NETWORK,
            "data": {"difficulty": 1, "num_held_out": 8},
            "train": {
                "batch_size": 8,
                "group_size": 2,
                "evaluation_samples": 2,
                "mesh_data": 1,
                "mesh_fsdp": 8,
            },
        }
    )
    run = task_run.prepare(config_lib.to_dataclass(task_config.TaskConfig, config), workdir)
    run = run._replace(mesh=devices)
    method = task_methods.make_method("rloo", run.config.loss.betas[0], run.config.loss, run.task)
    params = language_run.compiled_init(run.network)(jax.random.key(KEY))
    params = mesh.place_state(devices, params)
    rows = mesh.place_batch(devices, np.arange(8, dtype=np.int32))
    collect = functools.partial(task_steps.collect, run, method)
    batch = checked(collect, devices, params, rows, jax.random.key(KEY))
    evaluation = task_evaluation.make(
        run.model, run.task, run.held_out, run.config.train, jax.random.key(KEY), devices
    )
    return batch, dict(evaluation(params, params))


def duel_results(devices, workdir):
    """Completions of the policy and of a mixture with the reference, judged."""
    config = base.get_config()
    config.update(
        {
            "model": NETWORK,
            "data": {"num_pairs": 64, "num_held_out_pairs": 32, "num_evaluation_prompts": 8},
            "loss": {"names": ("nash_md",), "taus": (0.1,), "judge": "known"},
            "train": {"batch_size": 8, "num_opponents": 1, "mesh_data": 1, "mesh_fsdp": 8},
        }
    )
    run = reason_stages.prepare(
        config_lib.to_dataclass(reason_config.ReasonConfig, config), workdir
    )
    run = run._replace(mesh=devices)
    init = language_run.compiled_init(run.network)
    params, reference = (
        mesh.place_state(devices, init(jax.random.key(number))) for number in (1, 2)
    )
    assert run.data.embedded is not None
    judge = judging.known(run.data.embedded)
    duel = functools.partial(
        reason_stages.duel,
        method=reason_stages._method(run, "nash_md", 0.1),
        judge=judge,
        num_opponents=1,
        mesh=devices,
        **reason_stages.generation(run),
    )
    zero = jnp.zeros((), jnp.int32)
    state = reason_stages.State(nash.State(params, reference, (), (), zero), ())
    prompts = reason_stages._evaluation_prompts(run)[0]
    return checked(duel, devices, state, mesh.place_batch(devices, prompts), jax.random.key(KEY))


def main(workdir):
    assert jax.device_count() == 8
    spread = mesh.make_mesh(data=1, fsdp=8)
    for name, results in (("task", task_results), ("duel", duel_results)):
        found, expected = (results(devices, workdir) for devices in (spread, one_device()))
        close(found, expected)
        print(name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
