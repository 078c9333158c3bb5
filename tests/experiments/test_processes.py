import jax
import numpy as np
import pytest

from bellmax.experiments import errors, interruptions, mesh, processes

VARIABLES = (
    "BELLMAX_DISTRIBUTED",
    "BELLMAX_HEARTBEAT_SECONDS",
    "BELLMAX_INITIALISATION_SECONDS",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_JOB_ID",
    "SLURM_STEP_NUM_TASKS",
    "TPU_WORKER_HOSTNAMES",
)


@pytest.fixture
def joins(monkeypatch):
    """What JAX is told when processes join, which does not happen; nothing is left behind."""
    calls = []
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
    monkeypatch.setattr(processes, "_report_aborts", lambda: None)
    monkeypatch.setattr(errors, "_leave", [])
    monkeypatch.setattr(interruptions._Ears, "waits", False)
    return calls


def test_one_process_joins_nobody(joins, monkeypatch):
    mesh.initialize_distributed()
    # Left over from somewhere: without an address it says nothing.
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    mesh.initialize_distributed()
    # An allocation of many, in which this is the only process; a TPU machine on its own.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    mesh.initialize_distributed()
    assert not joins
    assert not errors._leave
    assert not interruptions._Ears.waits


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BELLMAX_DISTRIBUTED", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "16"),
        ("TPU_WORKER_HOSTNAMES", "host-0,host-1"),
    ],
)
def test_schedulers_that_started_several_say_so(joins, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    mesh.initialize_distributed()
    assert [(call["num_processes"], call["process_id"]) for call in joins] == [(None, None)]
    # From now on an error is no reason to wait for the others, and a signal is one.
    assert len(errors._leave) == 1
    assert interruptions._Ears.waits


def test_the_flag_says_so(joins):
    mesh.initialize_distributed(True)
    assert len(joins) == 1


def test_the_environment_names_the_processes(joins, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.setenv("BELLMAX_INITIALISATION_SECONDS", "7")
    mesh.initialize_distributed()
    assert joins == [
        {
            "num_processes": 4,
            "process_id": 0,
            "heartbeat_timeout_seconds": 60,
            "initialization_timeout": 7,
        }
    ]
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(errors.UserError, match="JAX_PROCESS_ID must be a whole number"):
        mesh.initialize_distributed()
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    for text in ("0", "1.5"):
        monkeypatch.setenv("BELLMAX_HEARTBEAT_SECONDS", text)
        with pytest.raises(errors.UserError, match="BELLMAX_HEARTBEAT_SECONDS must be a whole"):
            mesh.initialize_distributed()
    assert len(joins) == 1


def test_half_an_environment_is_an_error_and_no_hang(joins, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")

    def half(*, num_processes, process_id, **_):
        assert num_processes is None
        assert process_id is None
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", half)
    with pytest.raises(errors.UserError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        mesh.initialize_distributed()
    assert not joins
    assert not errors._leave


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset"), True),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), False),
        (ValueError("the connection of two lists"), False),
    ],
)
def test_a_lost_process_is_told_from_other_errors(error, lost):
    assert processes.is_lost(error) is lost


def test_last_words(monkeypatch, capfd):
    class Left(Exception):
        pass

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(processes.os, "_exit", leave)
    monkeypatch.setattr(processes, "_membership", processes._Membership())
    monkeypatch.setattr(processes, "_SECONDS_BEFORE_LEAVING", 0.0)
    processes.remember_saved(lambda: "the last checkpoint of hinge is of step 20")
    with pytest.raises(Left, match="1"):
        processes.leave(1, "UNKNOWN: Gloo\n   failed")
    # JAX's service finds out as well, a moment later: one paragraph is enough.
    with pytest.raises(Left, match="1"):
        processes.leave(1, "again")
    assert capfd.readouterr().err == (
        "error: another process of this run has stopped or cannot be reached (UNKNOWN: Gloo "
        "failed); the last checkpoint of hinge is of step 20. Start all processes again with the "
        "same command, and the run goes on from there.\n"
    )
    monkeypatch.setattr(processes, "_membership", processes._Membership())
    with pytest.raises(Left, match="2"):
        processes._after_error(2, None)
    with pytest.raises(Left, match="1"):
        processes._after_error(1, LookupError("ours"))
    assert capfd.readouterr().err.strip() == "LookupError: ours"


def test_a_single_process_asks_itself(monkeypatch):
    agreement = processes.Agreement()
    assert agreement.after_step() == interruptions.NO_WISH
    monkeypatch.setattr(interruptions._Ears, "wish", interruptions.INTERRUPT)
    assert agreement.after_step() == interruptions.INTERRUPT


def test_several_meet_about_once_a_second_and_stop_together(monkeypatch):
    """One of two is slower, which counts for both; either's wish is known when they meet."""
    clock = {"now": 0.0}
    meetings = []

    def gather(mine):
        # The other one's steps take 0.095 s, ours 0.02 s.
        theirs = [wish_of_the_other, 0.095]
        meetings.append((step, float(mine[1])))
        return np.stack([mine, np.array(theirs, np.float32)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(processes, "_gather", gather)
    agreement, wish_of_the_other, found = processes.Agreement(), interruptions.NO_WISH, {}
    for step in range(1, 50):
        clock["now"] += 0.02
        if step == 30:
            wish_of_the_other = interruptions.TERMINATE
        found[step] = agreement.after_step()
    # After 1, 2, 4 and 8 steps, and then after the ten that take the slower one a second.
    assert [at for at, _ in meetings] == [1, 3, 7, 15, 25, 35, 45]
    np.testing.assert_allclose([seconds for _, seconds in meetings], 0.02, rtol=1e-5)
    asked = {step for step, wish in found.items() if wish != interruptions.NO_WISH}
    assert asked == {35, 45}
    assert found[35] == interruptions.TERMINATE
