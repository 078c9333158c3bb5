"""Run by test_dry_run.py in a process of its own: a dry run on 4 simulated devices."""

import functools
import resource
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bellmax.agents import networks
from bellmax.configs.align import base
from bellmax.experiments import (
    align_config,
    collectives,
    dry_run,
    dry_run_language,
    model_sizes,
    step_program,
)
from bellmax.experiments import config as config_lib
from bellmax.experiments import mesh as mesh_lib

FLOAT = 4


def config(**train):
    keys = base.get_config()
    keys.update({"optimizer": {"name": "adamw"}, "train": {"live_reference": True, **train}})
    return config_lib.to_dataclass(align_config.AlignConfig, keys)


def peak_bytes() -> int:
    return 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_sizes(report: dry_run.Report) -> None:
    """Fsdp 2 x tensor 2: kernels and embeddings in quarters, biases in halves, norms everywhere."""
    shape = model_sizes.shape("0.5b")
    width, layers = shape.embed_dim, shape.num_layers
    params = jax.eval_shape(functools.partial(networks.init, shape), jax.random.key(0))
    norms = width * (2 * layers + 1)
    count = networks.num_parameters(params)
    biases = layers * shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads)
    held = FLOAT * ((count - norms - biases) // 4 + biases // 2 + norms)
    assert report.state_bytes["parameters"] == held
    assert report.state_bytes["reference"] == held
    # AdamW's two averages, and a few counters.
    assert 0 <= report.state_bytes["optimiser"] - 2 * held <= 64
    assert report.whole_bytes["parameters"] == FLOAT * count
    assert sum(one.bytes_per_device for one in report.parameters) == held
    listed = {one.name: one for one in report.parameters}
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    assert set(listed) == {mesh_lib.path_name(path) for path, _ in leaves}
    for path, leaf in leaves:
        assert listed[mesh_lib.path_name(path)].shape == leaf.shape
    assert listed["layers/mlp/up/kernel"].axes == (None, "fsdp", "tensor")
    assert listed["final_norm/scale"].axes == (None,)
    assert report.memory is not None
    # The state, and of the batch no more than its tokens, masks and a key.
    batch = report.memory.arguments - sum(report.state_bytes.values())
    assert 0 < batch < 10_000
    assert report.memory.reused >= sum(report.state_bytes.values()) - 1000
    assert report.memory.temporaries > 0


def check_traffic(report: dry_run.Report) -> None:
    """Parameters are gathered over fsdp, and rows are not: see `step_program`."""
    sent = dry_run.traffic(report.collectives)
    shape = model_sizes.shape("0.5b")
    layer = shape.embed_dim * (
        2 * shape.num_heads * shape.head_dim
        + 2 * shape.num_kv_heads * shape.head_dim
        + 3 * shape.mlp_dim
    )
    # Half of what lies on a pair of devices, forward of policy and reference, and backward; in
    # float32, which the CPU computes bfloat16 in.
    least = 3 * FLOAT * shape.num_layers * layer / 4
    assert least <= sent["all-gather"][1] < 2 * least
    assert all(whole for _, _, whole in sent.values())


def check_layers_fold() -> None:
    mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    kernel = jax.ShapeDtypeStruct((8, 4), "float32", sharding=sharding)
    state = {"params": {f"layers_{i}": {"mlp": {"kernel": kernel}} for i in range(11)}}
    (one,) = dry_run.parameters(state)
    assert one == dry_run.Placed(
        "layers_*/mlp/kernel", 11, (8, 4), "float32", ("fsdp", "tensor"), 11 * 8 * FLOAT
    )


def check_numbers() -> None:
    """Where the rows of a stream lie changes no number."""
    shape = networks.TransformerConfig(12, 2, 4, 2, 4, 8, 16, scan_layers=True, remat=True)
    params = networks.init(shape, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 5), 0, 12)

    class State(NamedTuple):
        params: Any
        step: Any

    def step(state, tokens, key):
        del key

        def loss(params):
            return jnp.mean(networks.apply(shape, params, tokens) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return State(jax.tree.map(jnp.subtract, state.params, gradient), state.step + 1), value

    state = State(params, jnp.zeros((), jnp.int32))
    expected, expected_loss = jax.device_get(jax.jit(step)(state, tokens, None))
    mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=2)
    placed = mesh_lib.place_state(mesh, state)
    jitted = step_program.jit_step(step, mesh, mesh_lib.state_sharding(mesh, state))
    found, loss = jitted(placed, mesh_lib.place_batch(mesh, tokens), jax.random.key(2))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def check_evaluation() -> None:
    """A program that only reads parameters gathers them, and leaves rows where they are."""
    shape = networks.TransformerConfig(512, 2, 4, 2, 8, 32, 64)
    params = networks.init(shape, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 64), 0, 512)
    apply = functools.partial(networks.apply, shape)
    mesh = mesh_lib.make_mesh(data=1, fsdp=4)
    placed = mesh_lib.place_state(mesh, params), mesh_lib.place_batch(mesh, tokens)
    compiled = step_program.jit_rows(apply, mesh).lower(*placed).compile()
    sent = dry_run.traffic(collectives.collectives(compiled))
    # Rows of embeddings come from the devices that hold their columns; no sums are sent.
    assert set(sent) == {"all-gather", "all-to-all"}
    parts = sum(dry_run.device_bytes(leaf) for leaf in jax.tree.leaves(placed[0]))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert sent["all-gather"][1] < 1.1 * (whole - parts)
    assert sent["all-to-all"][1] < tokens.size * shape.embed_dim * FLOAT / 4
    np.testing.assert_allclose(compiled(*placed), apply(params, tokens), atol=1e-5)


def main():
    simulation = config_lib.Simulation(4, "", "0.5b", 4, 32)
    report = dry_run_language.run(config(mesh_fsdp=2, mesh_tensor=2), simulation)
    check_sizes(report)
    print("sizes")
    check_traffic(report)
    print("traffic")
    # Parameters alone are 2 GB, and the state 8.
    assert not jax.live_arrays()
    assert peak_bytes() < 2e9
    print("nothing")
    check_layers_fold()
    print("layers")
    check_numbers()
    print("numbers")
    check_evaluation()
    print("evaluation")


if __name__ == "__main__":
    main()
