"""The benchmark of whole steps compares equal work: one loss, one step of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import networks
from bellmax.experiments.benchmarks import reasoning_step
from bellmax.experiments.benchmarks.reasoning_torch import TorchLearner

CONFIG = networks.TransformerConfig(11, 2, 2, 2, 8, 16, 20)
PROMPT, NEW, ROWS = 3, 5, 8


def test_the_updates_are_one_update():
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")
    agent = reasoning_step.make_agent(CONFIG, NEW)
    state = agent.init(jax.random.key(0))
    learner = TorchLearner(
        torch,
        transformers,
        CONFIG,
        state.params,
        group_size=reasoning_step.GROUP,
        beta=reasoning_step.BETA,
        learning_rate=reasoning_step.LEARNING_RATE,
    )
    before = {name: leaf.detach().clone() for name, leaf in learner.policy.named_parameters()}
    rows = np.random.default_rng(0).integers(0, 11, (ROWS, PROMPT + NEW))
    batch = reasoning_step.as_batch(jnp.asarray(rows), jnp.zeros((ROWS, NEW)), PROMPT)
    theirs = torch.tensor(rows)
    rewards = reasoning_step.rewards_of(theirs[:, PROMPT:])
    assert batch.rewards is not None
    np.testing.assert_allclose(batch.rewards, rewards.numpy().reshape(-1, 4), rtol=1e-6)
    assert len(np.unique(rewards.numpy())) > 2
    update = jax.jit(agent.update)
    for _ in range(3):
        state, metrics = update(state, batch, None)
        loss = learner.update(theirs, rewards, PROMPT)
        np.testing.assert_allclose(float(loss), metrics["loss"], rtol=1e-3, atol=1e-5)
    # Three steps of Adam, whose size is the learning rate: what counts is the change.
    found = dict(learner.policy.named_parameters())
    for name, kernel in (
        ("model.layers.0.self_attn.q_proj.weight", "layers_0/attention/query/kernel"),
        ("model.layers.1.mlp.down_proj.weight", "layers_1/mlp/down/kernel"),
    ):
        leaf = state.params
        for key in kernel.split("/"):
            leaf = leaf[key]
        moved = (found[name] - before[name]).detach().numpy().T
        expected = np.asarray(leaf) - before[name].numpy().T
        assert np.abs(expected).max() > 2 * reasoning_step.LEARNING_RATE
        # A slope near 0 may round to the other side: Adam's first steps are its signs.
        close = np.isclose(moved, expected, atol=0.1 * reasoning_step.LEARNING_RATE)
        assert close.mean() > 0.97, name


def test_the_peer_samples_whole_groups():
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")
    learner = TorchLearner(
        torch,
        transformers,
        CONFIG,
        networks.init(CONFIG, jax.random.key(0)),
        group_size=4,
        beta=0.0,
        learning_rate=1e-3,
    )
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    rows = learner.sample(prompts, NEW)
    assert rows.shape == (8, PROMPT + NEW)
    np.testing.assert_array_equal(rows[:, :PROMPT], np.repeat(prompts.numpy(), 4, axis=0))
