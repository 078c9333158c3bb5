"""Run by tests/test_devices.py with 8 forced devices: each axis of the mesh equals one device."""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bellmax import losses
from bellmax.agents import PreferenceBatch, language, networks, preference
from bellmax.experiments import errors, mesh, optimizers, runner

NETWORK = networks.TransformerConfig(
    vocab_size=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    embed_dim=8,
    mlp_dim=16,
    tied_embeddings=False,
)
OPTIMIZER = optimizers.make_optimizer(
    optimizers.OptimizerConfig(
        name="adan",
        learning_rate=1e-2,
        schedule="constant",
        warmup_steps=1,
        end_fraction=1.0,
        weight_decay=0.1,
        max_grad_norm=1.0,
        b1=0.98,
        b2=0.92,
        b3=0.99,
        eps=1e-8,
    ),
    3,
)
STEPS, ROWS, LENGTH = 3, 8, 6


class Batches:
    def __init__(self):
        self.step = 0

    def __next__(self):
        rng = np.random.default_rng(self.step)
        self.step += 1
        arrays: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            arrays[f"{side}_tokens"] = rng.integers(0, 12, (ROWS, LENGTH)).astype(np.int32)
            arrays[f"{side}_mask"] = (np.arange(LENGTH) >= 2).repeat(ROWS).reshape(LENGTH, ROWS).T
        # Devices with unequal counts: a mean of means would differ.
        arrays["weight"] = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
        return PreferenceBatch(**arrays)

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def make_agent(network):
    model = language.LanguageModel(apply=functools.partial(networks.apply, network))
    return preference.make(
        model,
        OPTIMIZER,
        loss_fn=preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=0.5)),
        init_params=jax.jit(functools.partial(networks.init, network)),
    )


def train(network, devices, workdir):
    agent = make_agent(network)
    start = agent.init(jax.random.key(0))
    state = runner.run_stage(
        name="stage",
        workdir=workdir,
        state=start,
        train_step=agent.update,
        batches=Batches(),
        schedule=runner.Schedule(STEPS, 1, STEPS, STEPS, 1),
        run_key=jax.random.key(1),
        mesh=devices,
    )
    # Nothing of the state that lay on one device is left there, in a fresh run or a resumed one.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    return state


def one_device(network):
    agent = make_agent(network)
    state, batches = agent.init(jax.random.key(0)), Batches()
    step = jax.jit(agent.update)
    for _ in range(STEPS):
        state, _ = step(state, next(batches), None)
    return jax.device_get(state)


def check_steps(network, devices, workdir):
    state = train(network, devices, workdir)
    expected = one_device(network)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, jax.device_get(state), expected)
    return state


def specs(tree):
    return {
        mesh.path_name(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_rules(state):
    """A parameter and every average of it lie alike, and each device holds a quarter."""
    expected = {
        "embedder/embedding": PartitionSpec("tensor", "fsdp"),
        "unembedder/kernel": PartitionSpec("fsdp", "tensor"),
        "layers_1/attention/query/kernel": PartitionSpec("fsdp", "tensor"),
        "layers_0/attention/output/kernel": PartitionSpec("tensor", "fsdp"),
        "layers_0/mlp/gate/kernel": PartitionSpec("fsdp", "tensor"),
        "layers_1/mlp/down/kernel": PartitionSpec("tensor", "fsdp"),
    }
    placed = specs(state)
    for name, specification in expected.items():
        found = [spec for path, spec in placed.items() if path.endswith(name)]
        assert len(found) == 6, name  # Policy, reference, four averages of Adan.
        assert all(spec == specification for spec in found), (name, found)
    kernel = state.params["unembedder"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def main(workdir):
    assert jax.device_count() == 8
    devices = mesh.make_mesh(data=2, fsdp=2, tensor=2)
    agent = make_agent(NETWORK)
    check_rules(mesh.place_state(devices, agent.init(jax.random.key(0))))
    print("rules")
    placed = mesh.place_batch(devices, next(Batches()))
    assert placed.weight.sharding.spec == PartitionSpec(("data", "fsdp"))
    np.testing.assert_array_equal(placed.chosen_tokens, next(Batches()).chosen_tokens)
    print("batch")
    # Where the steps leave the state is where the rules put it.
    check_rules(check_steps(NETWORK, devices, workdir / "plain"))
    # And a finished stage comes back sharded.
    check_rules(train(NETWORK, devices, workdir / "plain"))
    print("steps")
    state = check_steps(
        dataclasses.replace(NETWORK, scan_layers=True), devices, workdir / "scanned"
    )
    for path, spec in specs(state.params).items():
        if path == "layers/mlp/up/kernel":
            assert spec == PartitionSpec(None, "fsdp", "tensor")
            break
    else:
        raise AssertionError("no scanned layer")
    print("scanned")
    uneven = jax.tree.map(lambda leaf: leaf[:6], next(Batches()))
    with pytest.raises(errors.UserError, match=r"batch_size must be a multiple of the 4 devices"):
        mesh.place_batch(devices, uneven)
    print("refused")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
