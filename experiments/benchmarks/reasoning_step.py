"""A whole step of reinforcement learning on completions: sample, score, learn; samples a second.

RLOO with the divergence from a live reference in its reward, on the Llama shape of the benchmark
`sampling`: prompts of 32 tokens with 4 completions of 64 each, rewarded by a rule that costs
nothing. Ours is one compiled program; the peer samples by Hugging Face's `generate` and learns in
PyTorch, from the same parameters. The share of sampling is the time of the sampler alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bellmax.agents import (
    Agent,
    CompletionBatch,
    PromptBatch,
    completion_losses,
    networks,
    policy_gradient,
    sampling,
)
from bellmax.experiments import language_config
from bellmax.experiments.benchmarks import peers, runner
from bellmax.experiments.benchmarks.reasoning_torch import TorchLearner

GROUP, BETA, LEARNING_RATE = 4, 0.05, 1e-5


def make_agent(
    config: networks.TransformerConfig, num_tokens: int, chunk_size: int | None = None
) -> Agent:
    """Returns the agent that learns.

    Args:
      config: the network's shape.
      num_tokens: of a completion.
      chunk_size: tokens per chunk of the head, or None.
    """
    return policy_gradient.make(
        language_config.make_model(config),
        optax.adam(LEARNING_RATE),
        loss_fn=completion_losses.policy_gradient(completion_losses.leave_one_out(), beta=BETA),
        init_params=functools.partial(networks.init, config),
        max_new_tokens=num_tokens,
        chunk_size=chunk_size,
    )


def as_batch(rows: Any, behaviour_log_probs: Any, length: int) -> CompletionBatch:
    """Returns completions with their rewards: the share of even tokens.

    Args:
      rows: prompts and completions, groups together. [B * G, P + N].
      behaviour_log_probs: of the completions' tokens. [B * G, N].
      length: P.
    """
    counted = jnp.broadcast_to(jnp.arange(rows.shape[1]) >= length, rows.shape)
    padded = jnp.pad(behaviour_log_probs, ((0, 0), (length, 0)))
    tokens, mask, log_probs = (
        leaf.reshape(-1, GROUP, leaf.shape[1]) for leaf in (rows, counted, padded)
    )
    return CompletionBatch(tokens, mask, log_probs, rewards=rewards_of(tokens[..., length:]))


def rewards_of(completions: Any) -> Any:
    """Returns the share of even tokens. [..., N] to [...], of any library's arrays."""
    return 1.0 * (completions % 2 == 0).sum(-1) / completions.shape[-1]


def candidates(
    config: networks.TransformerConfig,
    prompts: Any,
    num_tokens: int,
    chunk_size: int | None = None,
) -> list[runner.Candidate]:
    """Returns a whole step of ours, its sampling, and its learning.

    Args:
      config: the network's shape.
      prompts: token ids, without padding. [B, P].
      num_tokens: of a completion.
      chunk_size: tokens per chunk of the head, or None.
    """
    agent = make_agent(config, num_tokens, chunk_size)
    state, length = agent.init(jax.random.key(0)), prompts.shape[1]
    repeated = jnp.repeat(prompts, GROUP, axis=0)
    batch = PromptBatch(repeated, jnp.ones_like(repeated), index=jnp.arange(len(repeated)))
    assert agent.act is not None
    act = agent.act

    def sample(state, prompts):
        completion: sampling.Completion = act(
            state, prompts, jax.random.fold_in(jax.random.key(1), state.step)
        )
        return jnp.concatenate([prompts.tokens, completion.tokens], axis=1), completion.log_probs

    def learn(state, rows, log_probs):
        return agent.update(state, as_batch(rows, log_probs, length), None)

    def step(state, prompts):
        return learn(state, *sample(state, prompts))

    rows, log_probs = jax.jit(sample)(state, batch)
    return [
        runner.Candidate("bellmax", step, (state, batch), carried=True),
        runner.Candidate("bellmax, sampling", sample, (state, batch)),
        runner.Candidate("bellmax, learning", learn, (state, rows, log_probs), carried=True),
    ]


def _theirs(
    config: networks.TransformerConfig, prompts: Any, num_tokens: int
) -> list[runner.Candidate]:
    torch, transformers = peers.import_peer("torch"), peers.import_peer("transformers")
    if torch is None or transformers is None:
        return []
    torch.manual_seed(0)
    params = networks.init(config, jax.random.key(0))
    learner = TorchLearner(
        torch,
        transformers,
        config,
        params,
        group_size=GROUP,
        beta=BETA,
        learning_rate=LEARNING_RATE,
    )
    asked, length = torch.tensor(prompts.tolist()), prompts.shape[1]

    def step() -> None:
        rows = learner.sample(asked, num_tokens)
        learner.update(rows, rewards_of(rows[:, length:]), length)

    rows = learner.sample(asked, num_tokens)
    rewards = rewards_of(rows[:, length:])
    return [
        runner.Candidate("Hugging Face and PyTorch", step, (), compiled=False),
        runner.Candidate(
            "Hugging Face, sampling",
            lambda: learner.sample(asked, num_tokens),
            (),
            compiled=False,
        ),
        runner.Candidate(
            "PyTorch, learning",
            lambda: learner.update(rows, rewards, length),
            (),
            compiled=False,
        ),
    ]


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares whole steps and their two halves.

    Args:
      machine: measured rates; not read.
      quick: a small network and short completions.
      repeats: counted runs.

    Returns:
      One row a candidate.
    """
    del machine
    config = networks.TransformerConfig(4096, 4, 8, 8, 32, 256, 768)
    prompts, num_tokens = 8, 64
    if quick:
        config, prompts, num_tokens = networks.TransformerConfig(64, 1, 2, 2, 8, 16, 32), 2, 4
    asked = jax.random.randint(jax.random.key(2), (prompts, 32), 1, config.vocab_size)
    both = candidates(config, asked, num_tokens) + _theirs(config, asked, num_tokens)
    timings = runner.measure(both, repeats=repeats)
    rows = []
    for number, timing in enumerate(timings):
        # Whole step, sampling, learning: ours, then theirs.
        whole = timings[number - number % 3]
        rows.append(
            runner.row(timing, timings[0])
            | {
                "samples/s": f"{prompts * GROUP / timing.median:,.1f}",
                "of its step": f"{runner.ratio(timing, whole).median:.0%}",
            }
        )
    return rows


BENCHMARK = runner.Benchmark(
    name="reasoning_step",
    description="sample, score, learn: RLOO on 8 prompts x 4 completions of 64, 4.46M parameters",
    run=run,
)
