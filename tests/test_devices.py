"""Losses, agents and the experiments' mesh on several devices equal one device.

Several forced host devices want every core, and their collectives wait for each other: the scripts
must not run side by side, which one file for all of them makes sure of (`--dist loadfile`).
"""

import importlib
import inspect
import pathlib
import pkgutil
import runpy

import pytest

from bellmax import agents

TESTS = pathlib.Path(__file__).parent
Group = runpy.run_path(str(TESTS / "experiments" / "loopback.py"))["Group"]
LAYOUTS = ("jit", "jit_in_parts", "shard_map", "pmap_in_parts")
AGENTS = sorted(path.stem[15:] for path in TESTS.glob("agents/device_layouts_*.py"))
# The others take minutes.
FIRST_AGENTS = ["preference", "td_flow"]
OTHER_AGENTS = [name for name in AGENTS if name not in FIRST_AGENTS]
# One of each kind of batch.
IN_PROCESSES = ["distributional_q", "nash", "preference", "td_flow"]


def test_every_agent_has_its_layouts():
    learning = {
        module.name
        for module in pkgutil.iter_modules(agents.__path__)
        if "axis_name"
        in inspect.signature(
            getattr(importlib.import_module(f"bellmax.agents.{module.name}"), "make", abs)
        ).parameters
    }
    assert len(learning) > 10
    assert learning - set(AGENTS) == set()


def layouts(names):
    return [f"device_layouts_{agent}/{layout}" for agent in names for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("script", "devices", "printed"),
    [
        pytest.param(
            "losses/device_losses.py",
            8,
            ["every", "loss", "on", "8", "devices"],
            marks=pytest.mark.slow,
        ),
        (f"agents/device_layouts.py {' '.join(FIRST_AGENTS)}", 8, layouts(FIRST_AGENTS)),
        pytest.param(
            f"agents/device_layouts.py {' '.join(OTHER_AGENTS)}",
            8,
            layouts(OTHER_AGENTS),
            marks=pytest.mark.slow,
        ),
        ("experiments/device_mesh.py", 8, ["rules", "batch", "steps", "scanned", "refused"]),
        pytest.param(
            "experiments/device_resharding.py",
            8,
            ["moves", "memory", "generation", "fallbacks"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "experiments/device_generation.py", 8, ["task", "duel"], marks=pytest.mark.slow
        ),
        pytest.param(
            "experiments/control_seeds.py", 2, ["spread", "alike"], marks=pytest.mark.slow
        ),
    ],
)
def test_several_devices_equal_one(script, devices, printed, words_on_devices):
    path, *arguments = script.split()
    assert words_on_devices(TESTS / path, *arguments, devices=devices, threads=16) == printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 4])
def test_agents_in_several_processes_equal_one_device(tmp_path, count):
    command = [str(TESTS / "agents" / "device_layouts.py"), str(tmp_path), *IN_PROCESSES]
    group = Group(tmp_path, *command, count=count, devices=4)
    group.finish()
