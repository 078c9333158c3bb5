"""The benchmark runner measures what it says; the comparisons run."""

import importlib
import json

import jax.numpy as jnp
import pytest

from bellmax.agents import networks
from bellmax.experiments import errors
from bellmax.experiments.benchmarks import runner, train_step

main = importlib.import_module("bellmax.experiments.benchmarks.__main__")
RATES = runner.Machine(matmul_flops=1e11, copy_bytes=1e10)


def test_runs_are_interleaved_and_the_first_is_not_counted():
    order = []

    def peer(name):
        return lambda: order.append(name)

    timings = runner.measure(
        [runner.Candidate(name, peer(name), (), compiled=False) for name in "ab"], repeats=3
    )
    assert order == list("abababab")
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert timings[0].temporary_bytes is None


def test_a_carried_argument_is_donated_and_replaced():
    candidate = runner.Candidate("sum", lambda x: (x + 1,), (jnp.zeros(3),), carried=True)
    (timing,) = runner.measure([candidate], repeats=2)
    assert len(timing.seconds) == 2
    # What was handed over is a copy.
    assert candidate.arguments[0].sum() == 0


def test_ratio_is_paired():
    one = runner.Timing("one", [2.0, 6.0, 4.0], 0.0, 0)
    two = runner.Timing("two", [1.0, 2.0, 4.0], 0.0, 0)
    assert runner.ratio(one, two) == (2.0, 1.0, 3.0)


def test_operations_of_a_step_by_hand():
    # Width 16: queries 16, keys and values 8 each, MLP 32; a layer has 16 * (32 + 16 + 96) = 2304
    # parameters, the unembedding 16 * 64 = 1024; 2 * 2 * 15 tokens are run.
    config = networks.TransformerConfig(64, 1, 2, 1, 8, 16, 32)
    expected = 6 * 3328 * 60 + 12 * 60 * 16 * 16
    assert train_step._operations(config, 2, 16, False) == expected


@pytest.mark.parametrize("name", main.benchmark_names())
def test_every_comparison_runs_small(name):
    benchmark = main.load(name)
    assert benchmark.name == name
    rows = benchmark.run(RATES, True, 1)
    assert len(rows) >= 2
    assert rows[0].keys() == rows[1].keys()
    assert all(row["ms"] > 0 for row in rows)
    json.dumps(rows)


def test_unknown_comparison_suggests_the_nearest():
    with pytest.raises(errors.UserError, match="chunked_log_probs"):
        main.load("chunked_logprobs")
