"""Adan's step on 10M parameters: ours, optax's, and a PyTorch loop where PyTorch is installed.

A step reads the parameter, the gradient and four averages, and writes all but the gradient: 44
bytes a parameter in float32. (`optax.adan` is another algorithm with the same traffic.)
XLA's CPU compiler gives every output a loop of its own and copies the old gradient: about 20 passes
over an array where 11 would do, so that two to three times the limit is to be expected on a CPU.
"""

import math
from typing import Any

import jax
import optax

from bellmax.agents import optimizers
from bellmax.experiments.benchmarks import peers, runner

_RATE, _B1, _B2, _B3, _EPS = 1e-3, 0.98, 0.92, 0.99, 1e-8
_BYTES_A_PARAMETER = 44


def _shapes(quick: bool) -> list[tuple[int, ...]]:
    """Shapes of a small language model: 25 arrays, 10M numbers."""
    width, hidden, vocabulary, layers = (16, 32, 64, 2) if quick else (512, 1408, 4096, 8)
    return [(vocabulary, width), *[(width, hidden), (width, width), (width,)] * layers]


def _candidate(
    name: str, optimizer: optax.GradientTransformation, params: Any, gradients: Any
) -> runner.Candidate:
    def step(state: tuple[Any, Any], gradients: Any) -> tuple[tuple[Any, Any]]:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return ((optax.apply_updates(params, updates), opt_state),)

    state = (params, optimizer.init(params))
    return runner.Candidate(name, step, (state, gradients), carried=True)


def _torch_candidate(torch: Any, shapes: list[tuple[int, ...]]) -> runner.Candidate:
    """The published recursion, array by array and in place, as `optimizers.adan` documents it."""
    arrays = [
        {name: torch.randn(shape) for name in ("param", "gradient")}
        | {name: torch.zeros(shape) for name in ("mean", "difference", "square", "previous")}
        for shape in shapes
    ]
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        debias = [1 - rate**count for rate in (_B1, _B2, _B3)]
        for array in arrays:
            gradient, previous = array["gradient"], array["previous"]
            delta = gradient - previous if count > 1 else torch.zeros_like(gradient)
            previous.copy_(gradient)
            array["mean"].mul_(_B1).add_(gradient, alpha=1 - _B1)
            array["difference"].mul_(_B2).add_(delta, alpha=1 - _B2)
            extrapolated = delta.mul_(_B2).add_(gradient)
            array["square"].mul_(_B3).addcmul_(extrapolated, extrapolated, value=1 - _B3)
            root = array["square"].sqrt().div_(math.sqrt(debias[2])).add_(_EPS)
            array["param"].addcdiv_(array["mean"], root, value=-_RATE / debias[0])
            array["param"].addcdiv_(array["difference"], root, value=-_RATE * _B2 / debias[1])

    return runner.Candidate("PyTorch loop", step, (), compiled=False)


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares one step, its state donated.

    Args:
      machine: measured rates.
      quick: few parameters.
      repeats: counted runs.

    Returns:
      One row a candidate.
    """
    shapes = _shapes(quick)
    keys = jax.random.split(jax.random.key(0), (2, len(shapes)))
    params, gradients = (
        [jax.random.normal(key, shape) for key, shape in zip(half, shapes, strict=True)]
        for half in keys
    )
    ours = optimizers.adan(_RATE, b1=_B1, b2=_B2, b3=_B3, eps=_EPS)
    theirs = optax.adan(_RATE, b1=_B1, b2=_B2, b3=_B3, eps=_EPS)
    candidates = [
        _candidate("bellmax", ours, params, gradients),
        _candidate("optax.adan", theirs, params, gradients),
    ]
    torch = peers.import_peer("torch")
    if torch is not None:
        candidates.append(_torch_candidate(torch, shapes))
    timings = runner.measure(candidates, repeats=2 * repeats)
    size = sum(math.prod(shape) for shape in shapes)
    limit = _BYTES_A_PARAMETER * size / machine.copy_bytes
    return [
        runner.row(timing, timings[0])
        | {"x memory limit": timing.median / limit, "parameters": f"{size:,}"}
        for timing in timings
    ]


BENCHMARK = runner.Benchmark(
    name="adan",
    description="one Adan step on 10M parameters, ours and others'",
    run=run,
)
