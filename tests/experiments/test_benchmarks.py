"""The benchmark runner measures what it says; the comparisons run."""

import importlib
import json
import runpy
import sys

import jax.numpy as jnp
import pytest
from absl import flags

from bellmax.agents import networks
from bellmax.experiments import errors
from bellmax.experiments.benchmarks import large_models, machine, peers, runner, train_step

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
    assert train_step.operations(config, 4, 16, False) == expected


def test_operations_of_sampling_by_hand():
    # As above: two operations a parameter and token, four a head's number and pair of tokens.
    config = networks.TransformerConfig(64, 1, 2, 1, 8, 16, 32)
    expected = 2 * 3328 * 60 + 4 * 60 * 16 * 16
    assert large_models.sampling_operations(config, 4, 9, 7) == expected


# Each compiles for ten seconds and more.
LARGE = (
    "control_loop",
    "large_models",
    "reasoning_step",
    "resharding",
    "sampling",
    "td_flow",
    "train_step",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in main.benchmark_names()
        # Its rows are of processes and layouts: test_scaling.py.
        if name != "scaling"
    ],
)
def test_every_comparison_runs_small(name):
    benchmark = main.load(name)
    assert benchmark.name == name
    if name == "control_loop":
        pytest.importorskip("gymnax", reason="needs the extra 'environments'")
    rows = benchmark.run(RATES, True, 1)
    assert len(rows) >= 2
    assert rows[0].keys() == rows[1].keys()
    assert all(row["ms"] > 0 for row in rows)
    json.dumps(rows)


def test_unknown_comparison_suggests_the_nearest():
    with pytest.raises(errors.UserError, match="chunked_log_probs"):
        main.load("chunked_logprobs")


def test_carried_memory_is_kept_where_it_is_only_written():
    # The output takes the place of the input, which would be no argument at all were it dropped.
    candidate = runner.Candidate("fill", lambda out, x: (x + x,), (jnp.zeros(8), jnp.ones(8)), True)
    (timing,) = runner.measure([candidate], repeats=3)
    assert timing.temporary_bytes == 0


@pytest.mark.parametrize("repeats", [0, -1])
def test_no_runs_are_refused(repeats):
    with pytest.raises(ValueError, match="repeats"):
        runner.measure([], repeats=repeats)


def test_repeated_names_are_refused():
    candidate = runner.Candidate("one", jnp.sin, (jnp.zeros(1),))
    with pytest.raises(ValueError, match="distinct"):
        runner.measure([candidate, candidate], repeats=1)


def test_machine_rates_are_positive():
    assert all(rate > 0 for rate in machine.measure_machine(True, 1))


def test_a_missing_peer_says_how_to_install_it(capfd):
    assert peers.import_peer("no_such_library_at_all") is None
    assert "pip install 'bellmax[peers]'" in capfd.readouterr().err


@pytest.fixture
def run_benchmarks(monkeypatch, capfd):
    """Runs the command line inside this process: exit code, standard output and error."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        # runpy warns of a module that is there already.
        monkeypatch.delitem(sys.modules, main.__name__, raising=False)
        before = set(flags.FLAGS)
        try:
            with pytest.raises(SystemExit) as stopped:
                runpy.run_module("bellmax.experiments.benchmarks", run_name="__main__")
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        return stopped.value.code or 0, *capfd.readouterr()

    return run


def test_list_names_all_and_runs_none(run_benchmarks):
    code, out, err = run_benchmarks("--list")
    assert code == 0
    assert all(name in out for name in main.benchmark_names())
    assert not err


def test_workdir_gets_strict_json(run_benchmarks, tmp_path):
    code, out, _ = run_benchmarks("gpo_loss", "--quick", "--repeats=2", f"--workdir={tmp_path}")
    assert code == 0
    assert "machine: float32 matmul" in out
    saved = json.loads((tmp_path / "gpo_loss.json").read_text())
    assert saved["machine"].keys() == {"matmul_flops", "copy_bytes"}
    for row in saved["rows"]:
        middle, least, greatest = row["time / same traffic"]
        assert least <= middle <= greatest


def test_unknown_name_is_one_paragraph_and_exit_code_2(run_benchmarks):
    code, _, err = run_benchmarks("adann")
    assert code == 2
    assert "Did you mean 'adan'?" in err
    assert "Traceback" not in err
