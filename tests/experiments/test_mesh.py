import pathlib
import runpy

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bellmax.experiments import errors, mesh, metrics

Group = runpy.run_path(str(pathlib.Path(__file__).with_name("loopback.py")))["Group"]
TINY_TASK = {
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.num_kv_heads": 1,
    "model.head_dim": 4,
    "model.embed_dim": 8,
    "model.mlp_dim": 8,
    "data.difficulty": 1,
    "data.num_held_out": 8,
    "train.warm_start_steps": 2,
    "train.warm_start_batch_size": 16,
    "train.num_steps": 3,
    "train.batch_size": 16,
    "train.group_size": 2,
    "train.evaluation_samples": 4,
    "train.log_every": 1,
    "train.evaluate_every": 3,
    "train.checkpoint_every": 3,
    "train.mesh_fsdp": 2,
}


@pytest.fixture
def commands(tiny_overrides):
    """A tiny run of each binary that runs in several processes."""
    align = tiny_overrides(train={"mesh_fsdp": 2, "num_steps": 4, "batch_size": 16})
    task = [f"--config.{key}={value}" for key, value in TINY_TASK.items()]
    return {
        "align": ("-m", "bellmax.experiments.align", "--config=gpo:logistic", *align),
        "reason": ("-m", "bellmax.experiments.reason", "--config=jepo", *task),
    }


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("binary", "count"), [("align", 2), ("align", 4), ("reason", 2)])
def test_several_processes_of_4_devices_equal_one(tmp_path, commands, binary, count):
    # What a batch is does not depend on how many devices share it: 8 devices are enough for one.
    ended = {}
    for folder, shape in {"several": (count, 4), "one": (1, 8)}.items():
        command = (*commands[binary], f"--workdir={tmp_path / folder}")
        group = Group(tmp_path / folder, *command, count=shape[0], devices=shape[1])
        ended[folder] = group.end()
        for code, stderr in ended[folder]:
            assert code == 0, stderr[-3000:]
    # Process 0 alone talks.
    told = [f"processes: {count}" in stderr for _, stderr in ended["several"]]
    assert told == [True] + [False] * (count - 1)

    several, one = (metrics.read_metrics(tmp_path / folder) for folder in ("several", "one"))
    assert len(one) > 4
    for found, expected in zip(several, one, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name == "wall_time_s":
                continue
            if name == "rewards/accuracy" and expected["step"] == 1:
                continue  # Of the reference itself: signs of margins that are 0 but for rounding.
            near = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-5)
            assert found[name] == near, (name, found["stage"], found["step"])


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
