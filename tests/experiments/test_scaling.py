"""The scaling benchmark's theory by hand, and its counts of compiled programs against theory."""

import dataclasses

import pytest

from bellmax.agents import networks
from bellmax.experiments import model_sizes
from bellmax.experiments.benchmarks import projection, scaling

NETWORK = networks.TransformerConfig(**scaling._SMALL)
# Kernels of a layer: 128 x (4 x 128 + 3 x 256) = 163,840; embedding and unembedding 65,536 each;
# five norms of 128.
LAYERS, TABLE, NORMS = 2 * 163_840, 512 * 128, 5 * 128
PARAMS = LAYERS + 2 * TABLE + NORMS
# 16 pairs of 17 tokens, the last of which predicts nothing.
TOKENS = 2 * 16 * 16


def test_parameters_by_hand():
    assert scaling._parameters(NETWORK) == PARAMS


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ((1, 1, 1), 0.0),
        # Twice 4 bytes of each gradient, but a device's own eighth.
        ((8, 1, 1), 2 * 4 * PARAMS * 7 / 8),
        ((1, 8, 1), 3 * 4 * PARAMS * 7 / 8),
        # 10 sums of [tokens, 128].
        ((1, 1, 8), 10 * 2 * 4 * TOKENS * 128 * 7 / 8),
        (
            (2, 2, 2),
            2 * 4 * PARAMS / 4 / 2 + 3 * 4 * PARAMS / 2 / 2 + 10 * 2 * 4 * TOKENS / 4 * 128 / 2,
        ),
    ],
)
def test_least_bytes_by_hand(mesh, expected):
    assert scaling.least_bytes(NETWORK, PARAMS, TOKENS, mesh) == pytest.approx(expected)


def count(data, fsdp, tensor):
    request = {"kind": "layout", "network": scaling._SMALL, "pairs": 16, "length": 17}
    (found,) = scaling._answers(
        [scaling._start(request | {"data": data, "fsdp": fsdp, "tensor": tensor})]
    )
    return found


@pytest.mark.slow
def test_data_reduces_every_gradient_once():
    found = count(4, 1, 1)
    assert found["all-reduce"] == pytest.approx(2 * 4 * PARAMS * 3 / 4, rel=1e-3)
    assert found.get("all-gather", 0) < 1e-2 * found["all-reduce"]


@pytest.mark.slow
def test_fsdp_gathers_layers_twice_and_keeps_the_unembedding():
    found = count(1, 4, 1)
    # The embedding is looked up where it lies, and only what was found travels.
    gathered = 4 * (2 * LAYERS + TABLE) * 3 / 4
    assert found["all-gather"] == pytest.approx(gathered, rel=1e-2)
    # Hosts reduce whole gradients, twice what a scattered sum would take.
    assert found["all-reduce"] == pytest.approx(2 * 4 * (LAYERS + TABLE + NORMS) * 3 / 4, rel=1e-2)


@pytest.mark.slow
def test_tensor_sums_activations_of_each_product_apart():
    found = count(1, 1, 4)
    # Forward 2 a layer; backward 3 of query, key and value and 2 of gate and up, which one sum each
    # could serve; and 2 at the ends.
    sums = 7 * 2 + 2
    assert found["all-reduce"] == pytest.approx(sums * 2 * 4 * TOKENS * 128 * 3 / 4, rel=1e-2)


def test_operations_by_hand():
    # Width 16 and one layer: products 2304 + 1024 (tied, so the table is one of them); 2 pairs of
    # 16 tokens; 60 are run.
    shape = networks.TransformerConfig(64, 1, 2, 1, 8, 16, 32)
    params = 2304 + 1024
    plain = projection.operations(shape, params, 2, 16)
    assert plain.model == plain.computed == 8 * params * 60 + 16 * 60 * 16 * 16
    remat = dataclasses.replace(shape, remat=True)
    assert projection.operations(remat, params, 2, 16).computed == 1.25 * plain.model


def test_a_projection_is_framed_by_its_bounds():
    shape = model_sizes.shape("7b")
    # A second of links on each side of bfloat16, and computation of whatever the chip says.
    found = {"received": 2 * 200e9, "needs": 14e9, "state": 4e9}
    request = {"data": 1, "fsdp": 256, "tensor": 1, "pairs": 256, "length": 1024}
    params = 6_738_415_616
    row = projection.row("7b", shape, params, found, request)
    assert row["links s"] == pytest.approx(1.0)
    assert row["memory s"] == pytest.approx(28 * params / 256 / 819e9)
    computed = projection.operations(shape, params, 256, 1024).computed
    assert row["compute s"] == pytest.approx(computed / 256 / 197e12)
    hidden = max(row["compute s"] + row["memory s"], 1.0)
    assert row["step s"] == f"{hidden:.3g}-{row['compute s'] + row['memory s'] + 1.0:.3g}"
    # Chips without limits to their links compute all the time, a quarter of it once more.
    fast = projection.V5E._replace(link_rate=1e30, memory_rate=1e30)
    free = projection.row("7b", shape, params, found, request, fast)
    assert free["of peak"] == "80%-80%"


@pytest.mark.slow
def test_processes_are_timed_joined_and_apart():
    (row,) = scaling.weak_rows(True, 2)
    assert row["processes"] == 2
    assert row["joined ms"] > 0
    assert row["apart ms"] > 0
    assert row["joined / apart"].least <= row["joined / apart"].greatest
    # Gradients of two processes, once reduced.
    assert row["received MB a step"] * 1e6 == pytest.approx(4 * PARAMS, rel=1e-2)
