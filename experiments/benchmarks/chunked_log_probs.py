"""Log-probabilities from hidden states: in chunks, against all logits at once.

Both are differentiated with respect to the hidden states and the unembedding. The useful work is
6 T D V operations (a product forward, two backward); the chunked path recomputes the forward
product, which is not counted, so that shares of the machine's rate compare like with like.
"""

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.experiments.benchmarks import machine as machine_lib
from bellmax.experiments.benchmarks import runner
from bellmax.experiments.benchmarks.benchmark import (
    Benchmark,
    Options,
    Report,
    megabytes,
    milliseconds,
    verdict,
)

_TIME_AIM = 1.1
_MEMORY_AIM = 1 / 6


def _chunked(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array) -> jax.Array:
    return -jnp.mean(losses.chunked_token_log_probs(hidden, unembedding, tokens))


def _naive(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array) -> jax.Array:
    return -jnp.mean(losses.token_log_probs(hidden @ unembedding, tokens))


def run(options: Options) -> Report:
    """Measures [4096 tokens, D = 512, V = 32768] in float32.

    Args:
      options: how to run.

    Returns:
      Times, temporary memory, and shares of the machine's rate of matrix products.
    """
    num_tokens, width, vocabulary = (1024, 16, 2048) if options.quick else (4096, 512, 32768)
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(keys[0], (num_tokens, width)),
        jax.random.normal(keys[1], (width, vocabulary)) / width**0.5,
        jax.random.randint(keys[2], (num_tokens,), 0, vocabulary),
    )
    machine = machine_lib.make(options.quick)
    functions = {"chunked": _chunked, "naive": _naive}
    candidates = [
        runner.Candidate(name, jax.jit(jax.value_and_grad(function, argnums=(0, 1))), arguments)
        for name, function in functions.items()
    ]
    measured = runner.measure([*candidates, *machine.candidates()], repeats=options.repeats)
    flops = 6.0 * num_tokens * width * vocabulary
    rows = [
        {
            "": name,
            "ms": milliseconds(measured[name]),
            "time / naive": runner.ratio(measured[name], measured["naive"]),
            "temporary MB": megabytes(measured[name]),
            "share of matmul": machine.share_of_matmul(measured, name, flops),
            "compile s": measured[name].compile_seconds,
        }
        for name in functions
    ]
    return Report(rows, _notes(measured), measured, machine)


def _notes(measured: dict[str, runner.Measurement]) -> list[str]:
    chunked, naive = measured["chunked"], measured["naive"]
    notes = [f"time, chunked / naive: {verdict(runner.ratio(chunked, naive).median, _TIME_AIM)}"]
    if chunked.temporary_bytes is not None and naive.temporary_bytes:
        memory = chunked.temporary_bytes / naive.temporary_bytes
        notes.append(f"temporary memory, chunked / naive: {verdict(memory, _MEMORY_AIM)}")
    return notes


BENCHMARK = Benchmark(
    name="chunked_log_probs",
    description="token log-probabilities and their gradients in chunks, and from all logits",
    run=run,
)
