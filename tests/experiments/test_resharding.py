"""The two layouts on one device, where they are one; on several, `device_resharding.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bellmax.experiments import mesh, resharding

PARAMS = {
    "embedder": {"embedding": jnp.ones((8, 4))},
    "mlp": {"up": {"kernel": jnp.ones((3, 4, 8))}, "down": {"kernel": jnp.ones((8, 4))}},
    "final_norm": {"scale": jnp.ones(4)},
}


@pytest.fixture(scope="module")
def devices():
    return mesh.make_mesh()


def specs(sizes, rules=mesh.TRANSFORMER_RULES):
    # No such devices are needed to say where things would lie.
    abstract: Any = AbstractMesh(sizes, mesh.AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.tree.map(lambda s: s.spec, resharding.generation_sharding(abstract, PARAMS, rules))


def test_generation_is_whole_along_fsdp():
    found = specs((2, 2, 2))
    assert found["embedder"]["embedding"] == PartitionSpec("tensor", None)
    # A scanned layer.
    assert found["mlp"]["up"]["kernel"] == PartitionSpec(None, None, "tensor")
    assert found["mlp"]["down"]["kernel"] == PartitionSpec("tensor", None)
    assert found["final_norm"]["scale"] == PartitionSpec()


def test_own_rules_and_fallbacks_are_those_of_training():
    own = [(r"scale$", PartitionSpec("tensor")), (r"embedding$", PartitionSpec("data", "tensor"))]
    assert specs((2, 2, 2), own)["final_norm"]["scale"] == PartitionSpec("tensor")
    assert specs((2, 2, 2), own)["embedder"]["embedding"] == PartitionSpec(None, "tensor")
    # Three devices divide neither 4 nor 8.
    assert specs((1, 1, 3))["mlp"]["down"]["kernel"] == PartitionSpec(None, None)


def test_on_one_device_the_program_stays_as_it_is(devices):
    def program(params, rows, mesh):
        if mesh is not None:
            params = resharding.to_generation(mesh, params)
            rows = resharding.spread_rows(mesh, rows)
        return rows @ params["embedder"]["embedding"].T

    rows = jnp.ones((2, 4))
    made = [
        str(jax.make_jaxpr(lambda p, r, m=given: program(p, r, m))(PARAMS, rows))
        for given in (devices, None)
    ]
    assert made[0] == made[1]


def test_on_one_device_nothing_is_sent_and_copies_are_apart(devices):
    params = mesh.place_state(devices, PARAMS)
    kept = resharding.make_resharder(devices, params)
    assert kept.gather.least_bytes() == kept.slice.least_bytes() == 0
    copy = kept.gather(params)
    assert kept.slice(copy)["final_norm"]["scale"] is copy["final_norm"]["scale"]
    jax.tree.map(lambda leaf: leaf.delete(), copy)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    # Both copies, for nothing is planned beside them.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    assert 2 * size <= kept.gather.peak_bytes() < 2 * size + 256


def test_a_copy_that_is_given_up_stays_where_it_is(devices):
    params = mesh.place_state(devices, PARAMS)
    given = resharding.make_resharder(devices, params, donate=True)
    assert not given.gather.programs
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    assert given.gather.peak_bytes() == size
    generating = given.gather(params)
    back = given.slice(generating)
    jax.tree.map(np.testing.assert_array_equal, back, PARAMS)


def test_parts_must_be_positive(devices):
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        resharding.make_resharder(devices, PARAMS, parts=0)
