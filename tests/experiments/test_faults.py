"""Processes on loopback that are killed, stopped, left alone and started again in other numbers."""

import json
import pathlib
import random
import re
import runpy
import signal
import time

import numpy as np
import pytest

from bellmax.experiments import metrics

DRILL = str(pathlib.Path(__file__).with_name("drill.py"))
Group = runpy.run_path(str(pathlib.Path(__file__).with_name("loopback.py")))["Group"]


@pytest.fixture
def drill(tmp_path):
    """Starts the drill in a folder."""

    def start(name, *, steps=40, fault=(), count=2, devices=4, **options):
        folder = tmp_path / name
        command = (DRILL, str(folder), str(steps), *fault)
        return Group(folder, *command, count=count, devices=devices, **options)

    return start


def final(folder):
    found = json.loads((folder / "final.json").read_text())
    return {name: np.array(values) for name, values in found.items()}


def rows(folder):
    return [
        {key: value for key, value in row.items() if key != "wall_time_s"}
        for row in metrics.read_metrics(folder)
    ]


def said(stderr):
    """The last line of a process, past what JAX's own service prints."""
    return stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_twenty_times_a_run_ends_where_an_undisturbed_one_does(drill, tmp_path):
    """One of two processes by SIGKILL, then all by SIGTERM, in turn, at moments drawn by a seed."""
    steps, rng = 600, random.Random(7)
    whole = drill("whole", steps=steps)
    whole.finish()
    exits = []
    for kill in range(20):
        group = drill("cut", steps=steps)
        # The start of a process counts as well: joining, restoring and compiling.
        if kill % 5 == 4:
            time.sleep(rng.uniform(0.0, 8.0))
        else:
            group.wait_for(group.step() + rng.randrange(3, 25))
            time.sleep(rng.uniform(0.0, 0.2))
        at = group.step()
        alive = all(process.poll() is None for process in group.processes)
        assert alive, [stderr[-2000:] for _, stderr in group.end()]
        victim = rng.randrange(2)
        if kill % 2:
            group.send(signal.SIGTERM)
        else:
            group.send(signal.SIGKILL, victim)
        began = time.monotonic()
        ended = group.end()
        seconds = time.monotonic() - began
        codes = tuple(code for code, _ in ended)
        exits.append((kill, at, codes, round(seconds, 1)))
        print(*exits[-1], *(said(stderr)[:150] for _, stderr in ended if stderr), sep=" | ")
        if kill % 2 == 0:
            other, stderr = ended[1 - victim]
            assert codes[victim] == -signal.SIGKILL
            assert other == 1, stderr[-3000:]
            assert "another process of this run has stopped" in said(stderr)
            assert "Start all processes again with the same command" in said(stderr)
    drill("cut", steps=steps).finish()
    expected, found = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert expected["step"] == steps
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=f"{name} after {exits}")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    left = [path.name for path in (tmp_path / "cut" / "checkpoints" / "stage").iterdir()]
    assert sorted(map(int, left)) == [595, 600]


def stopped_at(stderr):
    found = re.search(
        r"stage: stopped at step (\d+), which is saved; the same command goes", stderr
    )
    assert found is not None, stderr[-3000:]
    return int(found[1])


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(drill, tmp_path):
    for number, rank, code in ((signal.SIGTERM, 1, 0), (signal.SIGINT, 0, 130)):
        group = drill("run", steps=1000)
        group.wait_for(group.step() + 5)
        group.send(number, rank)
        (first, told), (second, other) = group.end()
        assert (first, second) == (code, code), told[-2000:] + other[-2000:]
        # Process 0 alone speaks, and what it says is there.
        assert "stopped at step" not in other
        assert (tmp_path / "run" / "checkpoints" / "stage" / str(stopped_at(told))).is_dir()


@pytest.mark.slow
def test_a_run_goes_on_in_other_numbers_of_processes_and_devices(drill, tmp_path):
    drill("whole", steps=60, count=1, devices=8).finish()
    for count, devices in ((2, 4), (1, 8)):
        group = drill("moved", steps=60, count=count, devices=devices)
        group.wait_for(group.step() + 10)
        group.send(signal.SIGTERM)
        codes = [code for code, _ in group.end()]
        assert codes == [0] * count
    drill("moved", steps=60, count=4, devices=2).finish()
    expected, found = final(tmp_path / "whole"), final(tmp_path / "moved")
    assert expected["step"] == 60
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    pairs = zip(rows(tmp_path / "moved"), rows(tmp_path / "whole"), strict=True)
    for moved, whole in pairs:
        assert moved.keys() == whole.keys()
        for name, value in whole.items():
            assert moved[name] == (value if name == "stage" else pytest.approx(value, rel=1e-4))


@pytest.mark.slow
def test_a_mistake_in_one_process_ends_all(drill):
    (first, told), (second, mistake) = drill("run", fault=("bug",)).end()
    assert (first, second) == (1, 1)
    assert "LookupError: only here" in mistake
    assert "another process of this run has stopped" in said(told)


@pytest.mark.slow
def test_what_all_find_all_say(drill):
    ended = drill("run", fault=("bad data",)).end()
    assert [code for code, _ in ended] == [2, 2]
    for _, stderr in ended:
        assert "error: all of us know" in stderr
        assert "another process" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_comes_is_not_waited_for_for_ever(drill, missing):
    [(code, stderr)] = drill("run", missing=(missing,), BELLMAX_INITIALISATION_SECONDS="5").end()
    assert code == 1
    assert "another process of this run has stopped or cannot be reached" in said(stderr)
