"""The benchmark of temporal-difference flows compares equal things, and counts what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import horizon_objectives, networks
from bellmax.agents.networks import flow
from bellmax.experiments.benchmarks import runner, td_flow, td_flow_torch

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
# Unequal widths, so that stages have projections on their skips on the way down as well.
CONFIG = flow.FlowNetworkConfig(
    3, 5, hidden_sizes=(8, 6), time_features=6, time_sizes=(7, 4), condition_sizes=(9, 10)
)
BATCH = 5
DISCOUNT = td_flow_torch.SETTINGS.discount


def shapes(config):
    return jax.eval_shape(functools.partial(flow.init, config), jax.random.key(0))


@pytest.fixture
def params():
    """Random parameters: at the start FiLM and biases are 0, and what reads them is not seen."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), jnp.float32), shapes(CONFIG)
    )


def arrays(*sizes):
    rng = np.random.default_rng(1)
    return [rng.standard_normal((BATCH, size)).astype(np.float32) for size in sizes]


def times():
    return np.array([0.0, 0.1, 0.5, 0.8, 0.97], np.float32)


def test_the_networks_are_one_function(params):
    theirs = td_flow_torch.TorchNetwork(torch, CONFIG, params)
    counted = sum(tensor.numel() for tensor in theirs.parameters())
    assert counted == networks.num_parameters(params)
    point, condition = arrays(3, 5)
    ours = jax.jit(functools.partial(flow.apply, CONFIG))(
        params, *(jnp.asarray(leaf) for leaf in (point, times(), condition))
    )
    with torch.no_grad():
        time_read = theirs.read_time(torch.tensor(times()))
        read = theirs.read_condition(torch.tensor(condition))
        found = theirs(torch.tensor(point), time_read, read).numpy()
    assert np.abs(np.asarray(ours)).max() > 0.1
    np.testing.assert_allclose(found, ours, atol=1e-5, rtol=1e-5)


def test_the_solvers_are_one_function(params):
    theirs = td_flow_torch.TorchNetwork(torch, CONFIG, params)
    noise, condition = arrays(3, 5)
    sample = functools.partial(
        td_flow.td_flow.sample,
        apply=functools.partial(flow.apply, CONFIG),
        objective=horizon_objectives.td2_cfm(),
    )
    ours = jax.jit(sample)(params, jnp.asarray(noise), jnp.asarray(condition))
    with torch.no_grad():
        read = theirs.read_condition(torch.tensor(condition))
        found = theirs.integrate(torch.tensor(noise), read, torch.ones(BATCH)).numpy()
    np.testing.assert_allclose(found, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TD2-CFM", "TD-CFM"])
def test_the_updates_are_one_update(params, name):
    learner = td_flow_torch.TorchLearner(torch, CONFIG, params, name)
    next_states, condition, next_condition, *noise = arrays(3, 5, 5, 3, 3, 3)
    rows = tuple(torch.tensor(leaf) for leaf in (next_states, condition, next_condition))
    theirs = learner.update(rows, tuple(torch.tensor(leaf) for leaf in (times(), *noise)))

    draws = horizon_objectives.Draws(*(jnp.asarray(leaf) for leaf in (times(), *noise)))

    def bound(parameters, conditions):
        return lambda point, time: flow.apply(
            CONFIG, parameters, point, time, jnp.asarray(conditions)
        )

    @jax.jit
    def step(start):
        def loss(parameters):
            each = td_flow._OBJECTIVES[name].loss(
                bound(parameters, condition),
                bound(start, next_condition),
                jnp.asarray(next_states),
                draws,
                jnp.full(BATCH, DISCOUNT),
            )
            return jnp.mean(each)

        value, gradient = jax.value_and_grad(loss)(start)
        rule = td_flow.optimizer()
        updates, _ = rule.update(gradient, rule.init(start), start)
        return value, optax.apply_updates(start, updates)

    ours, trained = step(params)
    np.testing.assert_allclose(float(theirs), ours, rtol=1e-4)
    # A first step of Adam is at most its rate, 1e-4; the target follows by a thousandth of it.
    for expected, network in (
        (trained, learner.network),
        (jax.tree.map(lambda a, b: a + 1e-3 * (b - a), params, trained), learner.target),
    ):
        for layer, linear in network.layers.items():
            owner = functools.reduce(lambda tree, key: tree[key], layer.split("."), expected)
            before = functools.reduce(lambda tree, key: tree[key], layer.split("."), params)
            weight = linear.weight.detach().numpy().T
            np.testing.assert_allclose(weight, owner["kernel"], atol=2e-6)
            if network is learner.network:
                assert np.abs(weight - np.asarray(before["kernel"])).max() > 5e-5, layer


def test_operations_by_hand():
    # One stage of width 4 down and one up, of points of 2 and conditions of 3: point 2 * 4; time
    # 6 * 5; condition 3 * 7; context 5 + 7, FiLM 12 * 8 twice; down 4 * 4 twice; up 8 * 4, 4 * 4
    # and a skip of 8 * 4; velocity 4 * 2. K = 8 + 30 + 21 + 192 + 32 + 80 + 8 = 371.
    config = flow.FlowNetworkConfig(
        2, 3, hidden_sizes=(4,), time_features=6, time_sizes=(5,), condition_sizes=(7,)
    )
    counts = td_flow.products(shapes(config))
    assert counts == td_flow.Products(371, 21, 30, 192, 8 + 30 + 21)
    # Forward: 21 * 350 + 21 of the target, 2 * 371 - 243 of the network; backward: 2 * 371 of
    # weights and 2 * (371 - 59) of inputs.
    network = 2 * 371 - 243 + 2 * 371 + 2 * 312
    assert td_flow.update_operations(counts, 10, 21) == 20 * (21 * 350 + 21 + network)
    assert td_flow.update_operations(counts, 10, 0) == 20 * network
    assert td_flow.sample_operations(counts, 10) == 20 * (20 * 350 + 21)


def test_evaluations_are_counted_right():
    calls = []

    def target(point, time):
        # Inside a scan once for all of its steps, two a step.
        calls.append(point)
        return -point

    draws = horizon_objectives.Draws(
        jnp.asarray(times()), *(jnp.asarray(leaf) for leaf in arrays(3, 3, 3))
    )

    def traced(name):
        calls.clear()
        td_flow._OBJECTIVES[name].loss(
            lambda point, time: point, target, draws.noise, draws, jnp.full(BATCH, DISCOUNT)
        )
        return len(calls)

    steps = td_flow_torch.SETTINGS.num_steps
    for name, evaluations in td_flow._EVALUATIONS.items():
        outside = 1 if name == "TD2-CFM" else 0
        within = traced(name) - outside
        assert within * steps + outside == evaluations, name


@pytest.mark.slow
def test_ratios_are_those_of_neighbouring_runs(monkeypatch):
    seconds = {"no bootstrap": 1.0, "TD-CFM": 26 / 6, "TD2-CFM": 9.0, "samples": 4.0}

    def measure(candidates, *, repeats):
        assert repeats == 3
        names = [candidate.name for candidate in candidates]
        assert [name.split(", ")[0] for name in names] == 4 * ["bellmax"] + 3 * ["PyTorch"]
        return [
            runner.Timing(name, 3 * [seconds[what] * (3 if library == "PyTorch" else 1)], 0.0, 0)
            for name in names
            for library, what in [name.split(", ")]
        ]

    monkeypatch.setattr(td_flow.runner, "measure", measure)
    rates = runner.Machine(matmul_flops=1e3, copy_bytes=1.0)
    rows = {row[""]: row for row in td_flow.run(rates, True, 3)}
    for name in ("TD2-CFM", "TD-CFM", "samples"):
        assert rows[f"bellmax, {name}"]["times faster than PyTorch"] == (3.0, 3.0, 3.0)
    # (21 + 6) / 6 = 4.5 are predicted, and (20 + 6) / 6 = 4.33.
    assert rows["bellmax, TD2-CFM"]["over its evaluations"].median == pytest.approx(2.0)
    assert rows["bellmax, TD-CFM"]["over its evaluations"].median == pytest.approx(1.0)
    # Two updates of 4 transitions in 9 s; 4 samples in 12 s.
    assert rows["bellmax, TD2-CFM"]["samples/s"] == "1"
    counts = td_flow.products(shapes(td_flow._QUICK[0].network))
    operations = 2 * td_flow.update_operations(counts, 4, 21)
    assert rows["bellmax, TD2-CFM"]["of matmul roofline"] == f"{operations / 9 / 1e3:.0%}"
