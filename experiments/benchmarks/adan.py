"""Adan's step on 10M parameters: ours, optax's, and a PyTorch loop where PyTorch is installed.

A step reads the parameter, the gradient and four averages, and writes all but the gradient: 44
bytes a parameter in float32. (`optax.adan` is another algorithm with the same traffic.)
"""

import math
from typing import Any

import jax
import optax

from bellmax.agents import optimizers
from bellmax.experiments.benchmarks import machine as machine_lib
from bellmax.experiments.benchmarks import runner
from bellmax.experiments.benchmarks.benchmark import (
    Benchmark,
    Options,
    Report,
    import_peer,
    megabytes,
    milliseconds,
)

_OURS, _OPTAX, _TORCH = "bellmax", "optax.adan", "PyTorch loop"
_RATE, _B1, _B2, _B3, _EPS = 1e-3, 0.98, 0.92, 0.99, 1e-8
_BYTES_A_PARAMETER = 44


def _shapes(quick: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a small language model, 10M numbers in all."""
    width, hidden, vocabulary, layers = (16, 32, 64, 2) if quick else (512, 1408, 4096, 8)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, width)}
    for i in range(layers):
        shapes |= {f"up_{i}": (width, hidden), f"output_{i}": (width, width), f"norm_{i}": (width,)}
    return shapes


def _jax_candidate(
    name: str, optimizer: optax.GradientTransformation, params: Any, gradients: Any
) -> runner.Candidate:
    def step(state: tuple[Any, Any], gradients: Any) -> tuple[tuple[Any, Any]]:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return ((optax.apply_updates(params, updates), opt_state),)

    state = (params, optimizer.init(params))
    return runner.Candidate(name, jax.jit(step, donate_argnums=0), (state, gradients), donated=True)


def _torch_candidate(torch: Any, shapes: dict[str, tuple[int, ...]]) -> runner.Candidate:
    """The published recursion, array by array and in place, as `optimizers.adan` documents it."""
    arrays = [
        {"param": torch.randn(shape), "gradient": torch.randn(shape)}
        | {name: torch.zeros(shape) for name in ("mean", "difference", "square", "previous")}
        for shape in shapes.values()
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
            nesterov = delta.mul_(_B2).add_(gradient)
            array["square"].mul_(_B3).addcmul_(nesterov, nesterov, value=1 - _B3)
            root = array["square"].sqrt().div_(math.sqrt(debias[2])).add_(_EPS)
            array["param"].addcdiv_(array["mean"], root, value=-_RATE / debias[0])
            array["param"].addcdiv_(array["difference"], root, value=-_RATE * _B2 / debias[1])

    return runner.Candidate(_TORCH, step, ())


def run(options: Options) -> Report:
    """Measures one step on 10M parameters in 25 arrays, state donated.

    Args:
      options: how to run.

    Returns:
      Times, and multiples of the memory limit.
    """
    shapes = _shapes(options.quick)
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
    params, gradients = (
        {name: jax.random.normal(k, shapes[name]) for name, k in zip(shapes, half, strict=True)}
        for half in (keys[: len(shapes)], keys[len(shapes) :])
    )
    ours = optimizers.adan(_RATE, b1=_B1, b2=_B2, b3=_B3, eps=_EPS)
    candidates = [
        _jax_candidate(_OURS, ours, params, gradients),
        _jax_candidate(_OPTAX, optax.adan(_RATE, _B1, _B2, _B3, _EPS), params, gradients),
    ]
    torch, notes = import_peer("torch")
    if torch is not None:
        candidates.append(_torch_candidate(torch, shapes))
    machine = machine_lib.make(options.quick)
    measured = runner.measure([*candidates, *machine.candidates()], repeats=options.repeats)
    num_bytes = float(_BYTES_A_PARAMETER * num_parameters)
    rows = [
        {
            "": name,
            "ms": milliseconds(measured[name]),
            f"time / {_OURS}": runner.ratio(measured[name], measured[_OURS]),
            "time / memory limit": machine.times_memory_limit(measured, name, num_bytes),
            "temporary MB": megabytes(measured[name]),
            "compile s": measured[name].compile_seconds,
        }
        for name in (candidate.name for candidate in candidates)
    ]
    limit = f"memory limit: {num_bytes / 1e6:.3g} MB ({num_parameters / 1e6:.3g}M parameters)."
    return Report(rows, [limit, *notes], measured, machine)


BENCHMARK = Benchmark(
    name="adan",
    description="one Adan step on 10M parameters, ours and peers'",
    run=run,
)
