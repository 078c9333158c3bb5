"""Maximum likelihood on a bigram policy reaches the empirical conditional frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents
from bellmax.agents import supervised
from bellmax.agents.language import LanguageModel, completion_log_probs

VOCAB = 3
MODEL = LanguageModel(apply=lambda params, tokens: params[tokens])


def make_agent(learning_rate=1.0):
    return supervised.make(
        MODEL, optax.sgd(learning_rate), init_params=lambda key: jnp.zeros((VOCAB, VOCAB))
    )


def test_loss_is_the_mean_over_counted_tokens():
    agent = make_agent()
    params = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    batch = agents.SupervisedBatch(
        jnp.array([[0, 1, 1, 2], [2, 0, 0, 0]]), jnp.array([[0, 1, 1, 1], [0, 1, 0, 0]])
    )
    state = agent.init(jax.random.key(0), params=params)
    _, metrics = agent.update(state, batch, jax.random.key(0))
    # Transitions 0>1, 1>1, 1>2 of the first row and 2>0 of the second: four tokens.
    expected = -np.log([0.25, 0.8, 0.1, 0.2]).sum() / 4
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_converges_to_the_empirical_frequencies():
    agent = make_agent(2.0)
    # From token 0: twice to 1, once to 2.
    batch = agents.SupervisedBatch(
        jnp.array([[0, 1], [0, 1], [0, 2]]), jnp.array([[False, True]] * 3)
    )
    state = agent.init(jax.random.key(0))
    update = jax.jit(agent.update, donate_argnums=0)
    for _ in range(400):
        state, _ = update(state, batch, jax.random.key(0))
    np.testing.assert_allclose(jax.nn.softmax(state.params)[0, 1:], [2 / 3, 1 / 3], atol=5e-3)


def test_log_probs_are_shifted_once():
    params = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    log_probs = completion_log_probs(MODEL, params, jnp.array([[2, 0, 1]]))
    np.testing.assert_allclose(log_probs, [[0.0, np.log(0.2), np.log(0.25)]], rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
def test_refuses_tokens_without_a_next_one(shape):
    with pytest.raises(ValueError, match="tokens"):
        completion_log_probs(MODEL, jnp.zeros((VOCAB, VOCAB)), jnp.zeros(shape, jnp.int32))
