"""Train, generate, train: what moves, what is held at once, and what the generation layout saves.

A Llama shape on 8 devices: the machine's own, or those that another process forces the host to
have, whose times are those of copies in memory and of waiting for cores. "moved" are the bytes that
a device receives, from the compiled HLO, beside the fewest that the change of layout takes; "held"
the most that it holds at once, beside the larger of the layouts it goes between. Sampling counts
all its tokens; it starts from the training layout and gathers on its way, or does not.
"""

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bellmax.agents import networks, sampling
from bellmax.experiments import collectives, dry_run, mesh, resharding, simulated_devices
from bellmax.experiments.benchmarks import runner

_DEVICES = 8
_SIZES = {
    "fsdp 8": {"data": 1, "fsdp": 8, "tensor": 1},
    "2 x 2 x 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
_BASELINE = "sampling where it trained"
_RATIO = f"time / {_BASELINE}"


def _moved(programs: Sequence[jax.stages.Compiled], tokens: int = 0) -> float:
    """Bytes that a device receives; what is in a loop of unknown length counts once a token."""
    return sum(
        one.moved_bytes * (tokens if one.executions is None else one.executions)
        for compiled in programs
        for one in collectives.collectives(compiled)
    )


class _Way(NamedTuple):
    """One row of the table.

    Attributes:
      name: what it is called.
      run: takes it once, to its end.
      programs: what it runs.
      held: the most bytes that a device holds.
      least: the fewest that it must receive, where only layouts change.
    """

    name: str
    run: Callable[[], Any]
    programs: Sequence[jax.stages.Compiled]
    held: float
    least: int | None = None


def _samplings(devices, params, config, batch: int, new: int) -> list[_Way]:
    model = functools.partial(networks.apply, config)
    prompts = mesh.place_batch(
        devices, np.random.default_rng(0).integers(1, config.vocab_size, (batch, 8), np.int32)
    )

    def sample(params, prompts, *, gathers):
        if gathers:
            params = resharding.to_generation(devices, params)
        return sampling.generate(model, params, prompts, jax.random.key(2), max_new_tokens=new)

    ways = []
    for name, gathers in ((_BASELINE, False), ("sampling, gathered first", True)):
        jitted = jax.jit(functools.partial(sample, gathers=gathers))
        compiled = jitted.lower(params, prompts).compile()
        plan = dry_run.memory_plan(compiled)
        held = math.nan if plan is None else plan.total
        ways.append(_Way(name, _waiting(compiled, params, prompts), [compiled], held))
    return ways


def _moves(devices, params, other) -> list[_Way]:
    kept = resharding.make_resharder(devices, params)
    given = resharding.make_resharder(devices, params, donate=True)
    # Given away and back: every run takes what the one before it left.
    there, back = [other], []

    def give():
        back.append(jax.block_until_ready(given.gather(there.pop())))

    def take():
        there.append(jax.block_until_ready(given.slice(back.pop())))

    return [
        _Way(name, run, move.compiled, move.peak_bytes(), move.least_bytes())
        for name, run, move in (
            ("gather, a copy", _waiting(kept.gather, params), kept.gather),
            ("gather, given up", give, given.gather),
            ("slice", take, given.slice),
        )
    ]


def _waiting(function, *arguments) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def _of_mesh(name: str, config, batch: int, new: int, repeats: int) -> list[dict[str, Any]]:
    devices = mesh.make_mesh(**_SIZES[name])
    init = jax.jit(functools.partial(networks.init, config))
    params, other = (mesh.place_state(devices, init(jax.random.key(0))) for _ in range(2))
    larger = max(
        sum(map(dry_run.device_bytes, jax.tree.leaves(mesh.with_shardings(params, layout))))
        for layout in (
            mesh.state_sharding(devices, params),
            resharding.generation_sharding(devices, params),
        )
    )
    ways = [*_samplings(devices, params, config, batch, new), *_moves(devices, params, other)]
    timings = runner.measure(
        [runner.Candidate(way.name, way.run, (), compiled=False) for way in ways], repeats=repeats
    )
    return [
        {
            "": f"{name}: {way.name}",
            "ms": 1e3 * timing.median,
            _RATIO: runner.ratio(timing, timings[0]),
            "moved MB": _moved(way.programs, new - 1) / 1e6,
            "least": "-" if way.least is None else way.least / 1e6,
            "held MB": way.held / 1e6,
            "larger layout": larger / 1e6,
        }
        for way, timing in zip(ways, timings, strict=True)
    ]


def _rows(quick: bool, repeats: int) -> list[dict[str, Any]]:
    if quick:
        config, batch, new = networks.TransformerConfig(64, 1, 2, 2, 8, 16, 32), 8, 3
    else:
        config, batch, new = networks.TransformerConfig(4096, 4, 8, 4, 32, 256, 704), 64, 32
    return [row for name in _SIZES for row in _of_mesh(name, config, batch, new, repeats)]


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Moves a network's parameters between the layouts and samples from it.

    Args:
      machine: not needed, and there for the signature that all comparisons share.
      quick: small shapes.
      repeats: counted runs.

    Returns:
      Rows of the table.
    """
    del machine
    if jax.device_count() == _DEVICES:
        return _rows(quick, repeats)
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(int(quick)), str(repeats)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    return [row | {_RATIO: runner.Ratio(*row[_RATIO])} for row in rows]


BENCHMARK = runner.Benchmark(
    name="resharding",
    description="train -> generate -> train on 8 devices, Llama shape, 4.46M parameters, 32 tokens",
    run=run,
)

if __name__ == "__main__":
    simulated_devices.force(_DEVICES)
    print(json.dumps(_rows(sys.argv[1] == "1", int(sys.argv[2]))))
