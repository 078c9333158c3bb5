"""Weak scaling over processes, collective bytes against theory, and a projection to v5e-256.

Processes on loopback, each bound to a core and with the same work, take joined steps and in turns
the same steps side by side without a word between them: the ratio is what joining costs, whatever
the number of cores. Where processes outnumber cores they share them, in both alike; `efficiency`
also compares with one process, after division by the processes of a core.

Two tables are printed before that of the processes. The bytes that a device receives in a step,
counted in the compiled program, stand beside the least that each layout needs: one all-reduce of
gradients (data), two gathers of parameters and one scattered sum of gradients (fsdp), two sums of
activations a layer each way and two at the ends (tensor). The projection's assumptions are those of
`projection`.
"""

import functools
import json
import os
import socket
import statistics
import subprocess
import sys
from typing import Any

import jax

from bellmax.agents import networks
from bellmax.experiments import errors, metrics, model_sizes
from bellmax.experiments.benchmarks import projection, runner

_FLOAT = 4
_WORKER = "bellmax.experiments.benchmarks.scaling_step"
# One whose rows, heads and widths 8 devices can divide along any axis.
_SMALL = {
    "vocab_size": 512,
    "num_layers": 2,
    "num_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 16,
    "embed_dim": 128,
    "mlp_dim": 256,
    "tied_embeddings": False,
    "scan_layers": True,
}
_LAYOUTS = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
_PROJECTED = (("7b", 1, 256, 1), ("70b", 1, 256, 1), ("70b", 1, 64, 4))


def _start(request: dict[str, Any], **environment: str) -> subprocess.Popen:
    # Flags of this process are its own: a worker says itself how many devices it has.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    inherited.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER, json.dumps(request)],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answers(workers: list[subprocess.Popen]) -> list[dict[str, Any]]:
    outputs = [worker.communicate() for worker in workers]
    for worker, (_, stderr) in zip(workers, outputs, strict=True):
        if worker.returncode:
            raise errors.UserError(f"A process of the benchmark failed: {stderr[-1500:]}")
    return [json.loads(stdout.strip().splitlines()[-1]) for stdout, _ in outputs]


def least_bytes(
    network: networks.TransformerConfig, params: int, tokens: int, mesh: tuple[int, int, int]
) -> float:
    """Returns the least that a device receives in a step, in float32 without recomputation.

    Args:
      network: the network's shape.
      params: its parameters P.
      tokens: tokens S of a step, over all devices.
      mesh: devices d along data, f along fsdp and t along tensor.

    Returns:
      The sum of 8 P / (f t) (d - 1) / d of gradients, 12 P / t (f - 1) / f of gathered parameters
      and scattered gradients, and 8 (4 L + 2) S D / (d f) (t - 1) / t of activations, bytes.
    """
    data, fsdp, tensor = mesh
    gradients = 2 * params / (fsdp * tensor) * (data - 1) / data
    gathered = 3 * params / tensor * (fsdp - 1) / fsdp
    sums = 4 * network.num_layers + 2
    activations = 2 * sums * tokens * network.embed_dim / (data * fsdp) * (tensor - 1) / tensor
    return _FLOAT * (gradients + gathered + activations)


def _parameters(network: networks.TransformerConfig) -> int:
    shapes = jax.eval_shape(functools.partial(networks.init, network), jax.random.key(0))
    return networks.num_parameters(shapes)


def layout_rows(quick: bool) -> list[dict[str, Any]]:
    """Counts what a step sends in each layout of 8 simulated devices.

    Args:
      quick: one layout only.

    Returns:
      One row a layout.
    """
    network = networks.TransformerConfig(**_SMALL)
    pairs, length = 16, 17
    rows = []
    for mesh in _LAYOUTS[:1] if quick else _LAYOUTS:
        axes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
        request = {"kind": "layout", "network": _SMALL, "pairs": pairs, "length": length, **axes}
        (found,) = _answers([_start(request)])
        least = least_bytes(network, _parameters(network), 2 * pairs * (length - 1), mesh)
        total = sum(found.values())
        rows.append(
            {
                "data x fsdp x tensor": " x ".join(map(str, mesh)),
                **{
                    f"{kind} kB": found.get(kind, 0.0) / 1e3
                    for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
                },
                "in all kB": total / 1e3,
                "theory kB": least / 1e3,
                "over theory": total / least,
            }
        )
    return rows


def projected_rows() -> list[dict[str, Any]]:
    """Compiles steps of published models for 256 simulated hosts, and projects them to v5e.

    Returns:
      One row a model and layout.
    """
    rows = []
    for name, data, fsdp, tensor in _PROJECTED:
        request = {
            **{"kind": "published", "size": name, "data": data, "fsdp": fsdp, "tensor": tensor},
            **{"pairs": 256, "length": 1024},
        }
        (found,) = _answers([_start(request)])
        shape = model_sizes.shape(name)
        rows.append(projection.row(name, shape, _parameters(shape), found, request))
    return rows


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def weak_rows(quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Times steps of 1, 2 and 4 joined processes, and the same work side by side.

    Args:
      quick: two processes and a small network.
      repeats: counted runs.

    Returns:
      One row a number of processes and axis.
    """
    network = _SMALL if quick else {**_SMALL, "num_layers": 4, "embed_dim": 256, "mlp_dim": 704}
    cores = len(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    first = 0.0
    cases = [(2, "data")] if quick else [(1, "data"), (2, "data"), (4, "data"), (2, "fsdp")]
    for count, axis in cases if quick else [*cases, (4, "fsdp")]:
        request = {
            **{"kind": "weak", "network": network, "axis": axis},
            **{"pairs": 4, "length": 65, "steps": 2 if quick else 4, "repeats": repeats},
        }
        joining = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}",
            "JAX_NUM_PROCESSES": str(count),
            "PJRT_NPROC": str(2 * count),
        }
        answers = _answers(
            [_start(request, **joining, JAX_PROCESS_ID=str(rank)) for rank in range(count)]
            if count > 1
            else [_start(request)]
        )
        timings = {}
        for name in ("joined", "apart"):
            # A step is over when the last process has it.
            seconds = [max(runs) for runs in zip(*(one[name] for one in answers), strict=True)]
            timings[name] = runner.Timing(name, seconds, 0.0, None)
        share = max(1.0, count / cores)
        corrected = timings["joined"].median / share
        first = first or corrected
        rows.append(
            {
                "processes": count,
                "axis": axis,
                "joined ms": 1e3 * timings["joined"].median,
                "apart ms": 1e3 * timings["apart"].median,
                "joined / apart": runner.ratio(timings["joined"], timings["apart"]),
                "received MB a step": statistics.fmean(one["received"] for one in answers) / 1e6,
                "processes a core": share,
                "efficiency": "-" if quick else f"{first / corrected:.0%}",
            }
        )
    return rows


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Prints layouts and projection, and returns the weak scaling of processes.

    Args:
      machine: not needed: every figure has a control of its own.
      quick: one layout, two processes, no projection.
      repeats: counted runs.

    Returns:
      One row a number of processes and axis.
    """
    del machine
    metrics.print_table(
        "Bytes that a device receives in a step, 8 devices, float32", layout_rows(quick)
    )
    if not quick:
        metrics.print_table(
            "A DPO step with a live reference on v5e-256: bounds, not measurements",
            projected_rows(),
        )
    return weak_rows(quick, repeats)


BENCHMARK = runner.Benchmark(
    name="scaling",
    description="processes joined and side by side, 4 pairs x 65 tokens each; bytes; v5e-256",
    run=run,
)
