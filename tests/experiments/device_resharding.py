"""Run by tests/test_devices.py with 8 forced devices: two layouts of one network's parameters."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from bellmax.agents import networks, sampling
from bellmax.experiments import collectives, mesh, resharding

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
SIZES = ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}, {"fsdp": 4, "tensor": 2})


def init(network=NETWORK):
    return jax.jit(functools.partial(networks.init, network))(jax.random.key(0))


def boxes(leaf, sharding):
    """Each device's part as first and last places along the dimensions."""
    found = {}
    for device, index in sharding.devices_indices_map(leaf.shape).items():
        ends = [part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True)]
        found[device.id] = np.array(ends, np.int64).reshape(-1, 2)
    return found


def volume(box, leaf):
    return int(np.prod(box[:, 1] - box[:, 0])) * leaf.dtype.itemsize


def check_inside(devices, params):
    """No device keeps a byte in training that generation does not use; returns what it lacks."""
    training = mesh.state_sharding(devices, params)
    generation = resharding.generation_sharding(devices, params)
    lacking = dict.fromkeys(range(8), 0)
    for leaf, before, after in zip(
        *map(jax.tree.leaves, (params, training, generation)), strict=True
    ):
        old, new = boxes(leaf, before), boxes(leaf, after)
        for device, box in old.items():
            assert (new[device][:, 0] <= box[:, 0]).all()
            assert (box[:, 1] <= new[device][:, 1]).all()
            lacking[device] += volume(new[device], leaf) - volume(box, leaf)
    assert len(set(lacking.values())) == 1
    return lacking[0]


def moved(programs):
    found = [one for compiled in programs for one in collectives.collectives(compiled)]
    return found, sum(one.moved_bytes * (one.executions or np.nan) for one in found)


def check_moves(sizes, network):
    devices = mesh.make_mesh(**sizes)
    start = init(network)
    params = mesh.place_state(devices, start)
    minimum = check_inside(devices, params)
    for donate in (False, True):
        resharder = resharding.make_resharder(devices, params, donate=donate, parts=4)
        found, received = moved(resharder.gather.compiled)
        assert {(one.kind, one.group_size) for one in found} == {("all-gather", sizes["fsdp"])}
        assert received == minimum == resharder.gather.least_bytes()
        assert moved(resharder.slice.compiled) == ([], 0)
        assert resharder.slice.least_bytes() == 0
        check_cycles(devices, params, resharder, start, donate=donate)
        params = mesh.place_state(devices, start)


def check_cycles(devices, params, resharder, start, *, donate):
    """Three times there and back: the same bits, nothing compiled after the first, old copies gone.

    Three live copies would mean that one was not given back.
    """
    compiled = []
    for _ in range(3):
        old = params
        generating = resharder.gather(params)
        for leaf, sharding in zip(
            jax.tree.leaves(generating),
            jax.tree.leaves(resharding.generation_sharding(devices, generating)),
            strict=True,
        ):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        jax.tree.map(np.testing.assert_array_equal, generating, start)
        before = kernel(generating)
        params = resharder.slice(generating)
        assert before.is_deleted()
        assert kernel(old).is_deleted() == donate
        if not donate:
            # What the slice took away was the generation's alone.
            jax.tree.map(np.testing.assert_array_equal, old, start)
        jax.tree.map(np.testing.assert_array_equal, params, start)
        for leaf, sharding in zip(
            *map(jax.tree.leaves, (params, mesh.state_sharding(devices, params))), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        programs: list[Any] = resharder.gather.programs + resharder.slice.programs
        compiled.append([program._cache_size() for program in programs])
    assert compiled[0] == compiled[2] == [1] * len(compiled[0])


def kernel(params):
    layers: Any = params.get("layers_0", params.get("layers"))
    return layers["mlp"]["up"]["kernel"]


def check_memory():
    """Taken away part by part, the old copy costs less than a whole one."""
    devices = mesh.make_mesh(data=2, fsdp=2, tensor=2)
    params = jax.eval_shape(init)
    whole = resharding.make_resharder(devices, params, donate=True, parts=1)
    parts = resharding.make_resharder(devices, params, donate=True, parts=8)
    assert 2 < len(parts.gather.programs) <= 8
    assert len(whole.gather.programs) == 1
    assert parts.gather.peak_bytes() < whole.gather.peak_bytes()
    assert parts.slice.peak_bytes() < whole.slice.peak_bytes()


def sample(params, prompts, *, devices=None):
    if devices is not None:
        params = resharding.to_generation(devices, params)
    model = functools.partial(networks.apply, NETWORK)
    return sampling.generate(model, params, prompts, jax.random.key(3), max_new_tokens=6)


def check_generation():
    """The tokens of one device; a token costs fewer bytes than in the training layout.

    In groups of fsdp there is nothing left to send: of 8 devices along it, whether all rows have
    ended.
    """
    params = init()
    prompts = jax.random.randint(jax.random.key(1), (8, 4), 1, 12)
    expected = jax.jit(sample)(params, prompts)
    for sizes in SIZES[:2]:
        devices = mesh.make_mesh(**sizes)
        placed = mesh.place_state(devices, params), mesh.place_batch(devices, np.asarray(prompts))
        found = {}
        for name, chosen in (("training", None), ("generation", devices)):
            compiled = jax.jit(functools.partial(sample, devices=chosen)).lower(*placed).compile()
            found[name] = [
                one for one in collectives.collectives(compiled) if one.executions is None
            ]
            completion = compiled(*placed)
            np.testing.assert_array_equal(completion.tokens, expected.tokens)
            np.testing.assert_allclose(
                completion.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5
            )
        token = {name: sum(one.moved_bytes for one in ones) for name, ones in found.items()}
        assert token["generation"] < token["training"], token
        if sizes["fsdp"] == 8:
            assert token["generation"] <= 2, token


def check_fallbacks():
    """An axis that does not divide its dimension is dropped in both layouts."""
    devices = mesh.make_mesh(data=1, fsdp=4, tensor=2)
    params = {"mlp": {"up": {"kernel": np.zeros((6, 4))}, "down": {"kernel": np.zeros((3, 8))}}}
    specs = jax.tree.map(
        lambda sharding: sharding.spec, resharding.generation_sharding(devices, params)
    )
    # The rules say (fsdp, tensor) and (tensor, fsdp).
    assert specs["mlp"]["up"]["kernel"] == PartitionSpec(None, "tensor")
    assert specs["mlp"]["down"]["kernel"] == PartitionSpec(None, None)
    check_inside(devices, params)


def main():
    assert jax.device_count() == 8
    for sizes in SIZES:
        check_moves(sizes, NETWORK)
    check_moves(SIZES[0], dataclasses.replace(NETWORK, scan_layers=True))
    print("moves")
    check_memory()
    print("memory")
    check_generation()
    print("generation")
    check_fallbacks()
    print("fallbacks")


if __name__ == "__main__":
    main()
