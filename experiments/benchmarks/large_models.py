"""Steps of `align` and `reason` on published shapes in bfloat16: tokens a second, flops utilised.

For an accelerator: parameters are random, in float32, and products in bfloat16. On a CPU the shapes
are small and the figures test the code alone. A trace of what the device does comes with
`--profile=DIR`. Utilisation is operations over time over the rate of a product of two bfloat16
matrices, measured here; operations are counted as in `train_step`, recomputed activations not
among them, and 2 P for each token that is sampled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import networks
from bellmax.experiments import model_sizes
from bellmax.experiments.benchmarks import reasoning_step, runner, train_step

_SIZES = ("0.5b", "1.5b")
_GROUP = reasoning_step.GROUP


class _Shape(NamedTuple):
    """Sizes of the batches.

    Attributes:
      pairs: of a step of `align`.
      length: tokens of each of its completions with its prompt.
      prompts: of a step of `reason`, with the group of `reasoning_step` each.
      prompt_length: their tokens.
      new_tokens: of a completion.
      chunk_size: tokens per chunk of the head.
      matrix: rows of the matrices whose product gives the rate.
    """

    pairs: int
    length: int
    prompts: int
    prompt_length: int
    new_tokens: int
    chunk_size: int
    matrix: int


_FULL = _Shape(8, 1024, 32, 256, 256, 2048, 8192)
_SMALL = _Shape(2, 16, 2, 8, 4, 16, 256)


def sampling_operations(
    config: networks.TransformerConfig, rows: int, prompt_length: int, new_tokens: int
) -> float:
    """Returns the floating-point operations of sampling.

    Args:
      config: the network's shape.
      rows: completions, each of which has its prompt read.
      prompt_length: tokens of a prompt.
      new_tokens: of a completion.
    """
    # The whole row is read once, a third of what forward and backward cost; the last token is
    # sampled and not read.
    return train_step.operations(config, rows, prompt_length + new_tokens, False) / 3


def _rate(size: int, repeats: int) -> float:
    matrix = jnp.ones((size, size), jnp.bfloat16)
    (timing,) = runner.measure(
        [runner.Candidate("matmul", jnp.matmul, (matrix, matrix))], repeats=repeats
    )
    return 2 * size**3 / timing.median


def _of_align(config: networks.TransformerConfig, shape: _Shape, repeats: int):
    step = train_step.candidate(
        "align",
        config,
        (shape.pairs, shape.length),
        optax.adamw(1e-6),
        live=True,
        chunk_size=shape.chunk_size,
    )
    (timing,) = runner.measure([step], repeats=repeats)
    rows = 2 * shape.pairs
    operations = train_step.operations(config, rows, shape.length, True)
    return [(timing, rows * shape.length, operations)]


def _of_reason(config: networks.TransformerConfig, shape: _Shape, repeats: int):
    prompts = jax.random.randint(
        jax.random.key(2), (shape.prompts, shape.prompt_length), 1, config.vocab_size
    )
    timings = runner.measure(
        reasoning_step.candidates(config, prompts, shape.new_tokens, shape.chunk_size),
        repeats=repeats,
    )
    rows, length = shape.prompts * _GROUP, shape.prompt_length + shape.new_tokens
    sampled = sampling_operations(config, rows, shape.prompt_length, shape.new_tokens)
    learnt = train_step.operations(config, rows, length, True)
    counted = (sampled + learnt, sampled, learnt)
    tokens = (rows * length, rows * shape.new_tokens, rows * length)
    return list(zip(timings, tokens, counted, strict=True))


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Times whole steps, and the halves of those that sample.

    Args:
      machine: measured rates, of float32; not read.
      quick: small shapes, as on a CPU.
      repeats: counted runs.

    Returns:
      Four rows a model.
    """
    del machine
    shape, configs = _FULL, {name: model_sizes.shape(name) for name in _SIZES}
    if quick or jax.default_backend() == "cpu":
        small = networks.TransformerConfig(
            64, 2, 2, 1, 8, 16, 32, compute_dtype="bfloat16", remat=True, scan_layers=True
        )
        shape, configs = _SMALL, {"small": small}
    rate = _rate(shape.matrix, repeats)
    rows = []
    for name, config in configs.items():
        for binary, measured in (("align", _of_align), ("reason", _of_reason)):
            found = measured(config, shape, repeats)
            parts = (": whole step", ": sampling", ": learning")[: len(found)]
            for part, (timing, tokens, operations) in zip(parts, found, strict=True):
                rows.append(
                    runner.row(timing, found[0][0]._replace(name="whole step"))
                    | {
                        "": f"{binary} {name}{part}",
                        "tokens/s": f"{tokens / timing.median:,.0f}",
                        "TFLOP/s": operations / timing.median / 1e12,
                        "of bfloat16 matmul": f"{operations / timing.median / rate:.1%}",
                    }
                )
    return rows


BENCHMARK = runner.Benchmark(
    name="large_models",
    description=(
        "steps of align (8 pairs of 1,024 tokens) and reason (128 completions of 256 after 256) at "
        "0.5B and 1.5B parameters, bfloat16; small shapes on a CPU"
    ),
    run=run,
)
