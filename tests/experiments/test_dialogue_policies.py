"""A transformer in the dialogue game: table, sampler and batch say the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses
from bellmax.agents import conversations, language, networks
from bellmax.envs import dialogue, dialogue_exact
from bellmax.experiments import dialogue_policies

GAME = dialogue.make(num_turns=2)
WIDTH = 6


def hidden_states(params, tokens):
    """A causal network that compiles fast: what was said adds up, place by place."""
    seen = params["seen"][jnp.arange(tokens.shape[1]), tokens]
    return jnp.tanh(jnp.cumsum(seen, axis=1))


def apply(params, tokens):
    return hidden_states(params, tokens) @ params["said"]


MODEL = language.LanguageModel(
    apply=apply, hidden_states=hidden_states, unembedding=lambda params: params["said"]
)


@functools.lru_cache
def params(seed):
    keys = jax.random.split(jax.random.key(seed))
    return {
        "seen": jax.random.normal(keys[0], (20, GAME.vocab_size, WIDTH)),
        "said": jax.random.normal(keys[1], (WIDTH, GAME.vocab_size)),
    }


@functools.lru_cache
def table(seed):
    return jax.jit(lambda p: dialogue_policies.policy_table(MODEL, p, GAME))(params(seed))


@functools.lru_cache
def sample(mixture=None, second_opinions=False):
    return sampler(mixture, second_opinions)(0)


@functools.lru_cache
def sampler(mixture=None, second_opinions=False):
    decoder = dialogue_policies.make_decoder(MODEL, GAME, mixture=mixture)
    weights = (params(0),) if mixture is None else (params(0), params(1))

    @jax.jit
    def run(weights, index):
        return dialogue_policies.converse(
            decoder, weights, GAME, jax.random.key(3), index, second_opinions=second_opinions
        )

    return lambda first: run(weights, first + jnp.arange(8192))


def said(tokens):
    """Numbers of the utterances of conversations, and of the prefix before the second."""
    first = tokens[:, 1] * 3 + tokens[:, 2]
    second = tokens[:, 6] * 3 + tokens[:, 7]
    return first, first * 3 + tokens[:, 4] - 3, second


def test_table_is_the_law_that_the_agent_trains():
    tokens = jnp.asarray(dialogue_exact.enumerate_conversations(GAME)[::37])
    batch = dialogue_policies.as_batch(tokens, GAME)
    value = {"kernel": jnp.zeros(WIDTH), "bias": jnp.zeros(())}
    legal = jnp.array(dialogue_policies.legal_tokens(GAME))
    laws = jax.jit(functools.partial(conversations.turn_laws, MODEL))(
        {"policy": params(0), "value": value}, params(1), batch, legal=legal
    )
    first, prefix, second = said(tokens)
    expected = jnp.stack([table(0)[0, 0, first], table(0)[1, prefix, second]], axis=1)
    np.testing.assert_allclose(jnp.exp(laws.log_probs), expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(table(0).sum(axis=-1), 1.0, atol=1e-5)
    # Not one law for all prefixes.
    assert float(jnp.abs(table(0)[1, 0] - table(0)[1, 1]).max()) > 0.01


def test_conversations_follow_the_table():
    tokens = np.asarray(sample().batch.tokens)
    law = np.asarray(dialogue_exact.conversation_law(GAME, table(0)))
    first, prefix, second = said(tokens)
    number = (prefix * 9 + second) * 3 + tokens[:, 9] - 3
    found = np.bincount(number, minlength=law.size) / len(tokens)
    bound = 5 * np.sqrt(law * (1 - law) / len(tokens)) + 2 / len(tokens)
    np.testing.assert_array_less(np.abs(found - law), bound)
    np.testing.assert_array_equal(tokens[:, [0, 3, 5, 8, 10]], GAME.end_token)
    assert bool((np.bincount(first) > 0).any())


def test_outcomes_follow_the_exact_law():
    states = sample().states
    found = np.bincount(
        jax.vmap(dialogue.outcome, in_axes=(0, None))(states, GAME), minlength=GAME.num_outcomes
    )
    law = np.asarray(dialogue_exact.outcome_law(GAME, table(0)))
    bound = 5 * np.sqrt(law * (1 - law) / found.sum()) + 2 / found.sum()
    np.testing.assert_array_less(np.abs(found / found.sum() - law), bound)


def test_mixture_samples_the_geometric_mixture_token_by_token():
    tokens = sample(mixture=0.3).batch.tokens
    logits = [apply(params(seed), jnp.array([[GAME.end_token]]))[0, 0, :3] for seed in (0, 1)]
    law = np.exp(losses.geometric_mixture_logits(*logits, mixture=0.3))
    found = np.bincount(np.asarray(tokens[:, 1]), minlength=3) / len(tokens)
    np.testing.assert_allclose(found, law, atol=5 * 0.5 / np.sqrt(len(tokens)))
    assert float(np.abs(law - np.asarray(jax.nn.softmax(logits[0]))).max()) > 0.05


def test_turn_preferences_have_the_exact_mean():
    judged = sample(second_opinions=True).turn_preferences
    # A policy against itself: even, whatever the prefix.
    np.testing.assert_allclose(judged.mean(axis=0), 0.5, atol=5 * 0.25 / np.sqrt(len(judged)))
    first = said(sample(second_opinions=True).batch.tokens)[0]
    exact = dialogue_exact.turn_preferences(GAME, 0)[0] @ table(0)[0, 0]
    for utterance in np.flatnonzero(np.bincount(np.asarray(first)) > 400):
        rows = np.asarray(judged[:, 0])[np.asarray(first) == utterance]
        bound = 5 * rows.std() / np.sqrt(len(rows))
        np.testing.assert_allclose(rows.mean(), exact[utterance], atol=bound)


def test_second_opinions_do_not_change_the_conversation():
    plain, judged = sample(), sample(second_opinions=True)
    np.testing.assert_array_equal(plain.batch.tokens, judged.batch.tokens)
    np.testing.assert_array_equal(plain.turn_preferences, 0.5)


def test_a_row_does_not_depend_on_its_place():
    one, two = (sampler(None, False)(first) for first in (0, 100))
    np.testing.assert_array_equal(one.batch.tokens[100:], two.batch.tokens[:-100])
    np.testing.assert_array_equal(two.batch.index[:2], [100, 101])


def test_cached_transformer_says_what_an_uncached_one_says():
    network = networks.TransformerConfig(
        vocab_size=GAME.vocab_size,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        embed_dim=8,
        mlp_dim=8,
    )
    cached = language.LanguageModel(functools.partial(networks.apply, network))
    plain = language.LanguageModel(lambda p, tokens: networks.apply(network, p, tokens))
    weights = jax.tree.map(
        lambda leaf: 4 * leaf, jax.jit(functools.partial(networks.init, network))(jax.random.key(0))
    )

    def tokens(model):
        decoder = dialogue_policies.make_decoder(model, GAME)

        @jax.jit
        def run(weights):
            return dialogue_policies.converse(
                decoder, (weights,), GAME, jax.random.key(1), jnp.arange(256)
            )

        return run(weights).batch.tokens

    # Rounding may turn a draw that lies on an edge, and then all that follows it.
    same = (tokens(cached) == tokens(plain)).all(axis=1)
    assert float(same.mean()) > 0.99


@pytest.mark.parametrize("words", [1, 3])
def test_tables_of_other_games_are_laws(words):
    game = dialogue.make(num_turns=1, utterance_length=words)
    found = jax.jit(lambda p: dialogue_policies.policy_table(MODEL, p, game))(params(0))
    assert found.shape == dialogue_exact.uniform_policy(game).shape
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)
