"""Tokens a second of the sampler: plain, from a mixture of two models, and Hugging Face's.

A Llama shape of 4.46M parameters; 96 tokens are sampled after prompts of 32, at temperature 1 from
the whole vocabulary. Two bounds stand beside each figure: every token of a batch needs 2 P
operations, with P the parameters in products, and every step reads all parameters and the cache at
least once. At batch 1 the parameters may stay in a processor's cache, where the memory bound does
not hold.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bellmax import losses
from bellmax.agents import decoders, networks, sampling
from bellmax.experiments.benchmarks import peers, runner

_PROMPT, _NEW = 32, 96
_BYTES = 4


def _hugging_face(
    config: networks.TransformerConfig, batch: int, prompt: int, new: int
) -> runner.Candidate | None:
    """The same shape with random weights, sampled by `generate` with its own cache."""
    torch, transformers = peers.import_peer("torch"), peers.import_peer("transformers")
    if torch is None or transformers is None:
        return None
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(shape).eval()
    prompts = torch.randint(1, config.vocab_size, (batch, prompt))
    mask = torch.ones_like(prompts)

    def generate() -> None:
        with torch.inference_mode():
            rows = model.generate(
                prompts, attention_mask=mask, max_new_tokens=new, do_sample=True, top_k=0
            )
        assert rows.shape == (batch, prompt + new)

    return runner.Candidate("Hugging Face", generate, (), compiled=False)


def _step_seconds(
    config: networks.TransformerConfig, batch: int, length: int, machine: runner.Machine
) -> tuple[float, float]:
    """The least time of a decoding step by operations, and by bytes."""
    heads = config.num_heads * config.head_dim
    key_heads = config.num_kv_heads * config.head_dim
    layer = config.embed_dim * (2 * heads + 2 * key_heads + 3 * config.mlp_dim)
    products = config.num_layers * layer + config.embed_dim * config.vocab_size
    cache = 2 * config.num_layers * batch * length * key_heads
    attention = 4 * config.num_layers * batch * length * heads
    return (
        (2 * products * batch + attention) / machine.matmul_flops,
        _BYTES * (products + cache) / machine.copy_bytes,
    )


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares whole generations, prompts included, at three batch sizes.

    Args:
      machine: measured rates.
      quick: a small network and short completions.
      repeats: counted runs.

    Returns:
      One row a candidate and batch size.
    """
    config = networks.TransformerConfig(4096, 4, 8, 8, 32, 256, 768)
    prompt, new, batches = _PROMPT, _NEW, (1, 8, 64)
    if quick:
        config = networks.TransformerConfig(64, 1, 2, 2, 8, 16, 32)
        prompt, new, batches = 4, 4, (1, 4)
    params, other = (networks.init(config, key) for key in jax.random.split(jax.random.key(0)))
    model = functools.partial(networks.apply, config)
    mixed = functools.partial(losses.geometric_mixture_logits, mixture=0.25)
    decoder = decoders.combine((model, model), mixed)
    rows = []
    for batch in batches:
        prompts = jnp.ones((batch, prompt), jnp.int32)
        generate = functools.partial(
            sampling.generate, prompts=prompts, key=jax.random.key(1), max_new_tokens=new
        )
        candidates = [
            runner.Candidate("bellmax", functools.partial(generate, model), (params,)),
            runner.Candidate(
                "bellmax, mixture", functools.partial(generate, decoder), ((params, other),)
            ),
            # The same work on half the bytes: what a cache that holds one model only costs.
            runner.Candidate(
                "bellmax, mixture with itself",
                functools.partial(generate, decoder),
                ((params, params),),
            ),
        ]
        theirs = _hugging_face(config, batch, prompt, new)
        if theirs is not None:
            candidates.append(theirs)
        timings = runner.measure(candidates, repeats=repeats)
        # The cache's mean length over the steps.
        operations, memory = _step_seconds(config, batch, prompt + new // 2, machine)
        for timing in timings:
            rows.append(
                runner.row(timing, timings[0])
                | {
                    "batch": batch,
                    "tokens/s": f"{batch * new / timing.median:,.0f}",
                    "x FLOP bound": timing.median / new / operations,
                    "x memory bound": timing.median / new / memory,
                }
            )
    return rows


BENCHMARK = runner.Benchmark(
    name="sampling",
    description="sampling 96 tokens after 32, Llama shape, 4.46M parameters, batch 1, 8 and 64",
    run=run,
)
