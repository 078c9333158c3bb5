r"""A full preference step: tokens a second, and their share of the machine's matmul rate.

Operations of a step are counted as 6 P N for the policy, forward and backward, and 2 P N for a live
reference, with P the parameters in products (the unembedding included, the embedding not) and N the
tokens of both completions; attention adds 12 L N T W and 4 L N T W, with L layers, T tokens a row
and W the width of all heads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bellmax import agents, losses
from bellmax.agents import networks, optimizers, preference
from bellmax.experiments import language_config
from bellmax.experiments.benchmarks import runner


def _batch(config: networks.TransformerConfig, pairs: int, length: int) -> agents.PreferenceBatch:
    keys = jax.random.split(jax.random.key(1), 2)
    chosen, rejected = (
        jax.random.randint(key, (pairs, length), 0, config.vocab_size) for key in keys
    )
    mask = jnp.broadcast_to(jnp.arange(length) >= length // 2, (pairs, length))
    zeros = jnp.zeros(pairs)
    return agents.PreferenceBatch(chosen, rejected, mask, mask, zeros, zeros)


def operations(config: networks.TransformerConfig, rows: int, length: int, live: bool) -> float:
    """Returns the floating-point operations of a step, as this module counts them.

    Args:
      config: the network's shape.
      rows: sequences, two a pair.
      length: tokens of each.
      live: whether a reference is run beside the policy.
    """
    heads = config.num_heads * config.head_dim
    key_heads = config.num_kv_heads * config.head_dim
    layer = config.embed_dim * (2 * heads + 2 * key_heads + 3 * config.mlp_dim)
    products = config.num_layers * layer + config.embed_dim * config.vocab_size
    # The last token predicts nothing and is not run.
    tokens = rows * (length - 1)
    attention = config.num_layers * tokens * length * heads
    return (6 + 2 * live) * products * tokens + (12 + 4 * live) * attention


def candidate(
    name: str,
    config: networks.TransformerConfig,
    shape: tuple[int, int],
    optimizer: optax.GradientTransformation,
    *,
    live: bool,
    chunk_size: int | None,
) -> runner.Candidate:
    """Returns a DPO step on random pairs.

    Args:
      name: what tables call it.
      config: the network's shape.
      shape: pairs, and tokens of each completion with its prompt.
      optimizer: of the step.
      live: whether the reference is run, instead of read from the batch.
      chunk_size: tokens per chunk of the head, or None.
    """
    agent = preference.make(
        language_config.make_model(config),
        optimizer,
        loss_fn=preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=0.1)),
        init_params=functools.partial(networks.init, config),
        live_reference=live,
        chunk_size=chunk_size,
    )
    state, step = agent.init(jax.random.key(0)), functools.partial(agent.update, key=None)
    return runner.Candidate(name, step, (state, _batch(config, *shape)), carried=True)


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares a cached reference, a live one, and the chunked head.

    Args:
      machine: measured rates.
      quick: a small network.
      repeats: counted runs.

    Returns:
      One row a candidate.
    """
    if quick:
        config = networks.TransformerConfig(64, 1, 2, 1, 8, 16, 32)
        pairs, length = 2, 16
    else:
        config = networks.TransformerConfig(4096, 4, 8, 4, 32, 256, 704)
        pairs, length = 8, 128
    candidates = [
        candidate(
            name,
            config,
            (pairs, length),
            optimizers.adan(1e-4),
            live=live,
            chunk_size=chunk_size,
        )
        for name, live, chunk_size in (
            ("cached reference", False, None),
            ("live reference", True, None),
            ("cached, chunked head", False, 512),
        )
    ]
    timings = runner.measure(candidates, repeats=2 * repeats)
    parameters = networks.num_parameters(candidates[0].arguments[0].params)
    rows = []
    for timing, live in zip(timings, (False, True, False), strict=True):
        count = operations(config, 2 * pairs, length, live)
        rows.append(
            runner.row(timing, timings[0])
            | {
                "tokens/s": f"{2 * pairs * length / timing.median:,.0f}",
                "of matmul roofline": f"{count / timing.median / machine.matmul_flops:.0%}",
                "parameters": f"{parameters:,}",
            }
        )
    return rows


BENCHMARK = runner.Benchmark(
    name="train_step",
    description="a DPO step with Adan: 8 pairs x 128 tokens, Llama shape, 4.0M parameters",
    run=run,
)
