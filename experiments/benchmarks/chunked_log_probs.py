"""Log-probabilities from hidden states: in chunks, against all logits at once.

Both are differentiated with respect to the hidden states and the unembedding. The useful work is
6 T D V operations (a product forward, two backward); the chunked path computes the forward product
twice, which is not counted, so that shares of the machine's rate compare like with like.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.experiments.benchmarks import runner

_TIME_AIM = 1.1
_MEMORY_AIM = 1 / 6


def _chunked(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array) -> jax.Array:
    return -jnp.mean(losses.chunked_token_log_probs(hidden, unembedding, tokens))


def _naive(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array) -> jax.Array:
    return -jnp.mean(losses.token_log_probs(hidden @ unembedding, tokens))


def _against(value: float | None, aim: float) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}, aim {aim:.2g} {'met' if value <= aim else 'MISSED'}"


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares time and temporary memory at 4096 tokens, D = 512, V = 32768, in float32.

    Args:
      machine: measured rates.
      quick: small shapes.
      repeats: counted runs.

    Returns:
      One row a candidate.
    """
    num_tokens, width, vocabulary = (1024, 16, 2048) if quick else (4096, 512, 32768)
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(keys[0], (num_tokens, width)),
        jax.random.normal(keys[1], (width, vocabulary)) / width**0.5,
        jax.random.randint(keys[2], (num_tokens,), 0, vocabulary),
    )
    timings = runner.measure(
        [
            runner.Candidate(name, jax.value_and_grad(function, argnums=(0, 1)), arguments)
            for name, function in (("naive", _naive), ("chunked", _chunked))
        ],
        repeats=repeats,
    )
    naive = timings[0]
    operations = 6 * num_tokens * width * vocabulary
    rows = []
    for timing in timings:
        sizes = (timing.temporary_bytes, naive.temporary_bytes)
        memory = None if sizes[0] is None or not sizes[1] else sizes[0] / sizes[1]
        aimed = timing is not naive
        rows.append(
            runner.row(timing, naive)
            | {
                "of matmul roofline": f"{operations / timing.median / machine.matmul_flops:.0%}",
                "time, aimed": _against(runner.ratio(timing, naive).median, _TIME_AIM)
                if aimed
                else "-",
                "memory / naive, aimed": _against(memory, _MEMORY_AIM) if aimed else "-",
            }
        )
    return rows


BENCHMARK = runner.Benchmark(
    name="chunked_log_probs",
    description="log-probabilities of tokens with gradients, in chunks and from all logits",
    run=run,
)
