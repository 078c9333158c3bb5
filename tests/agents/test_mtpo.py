"""The MTPO agent: its expected step is the gradient of the exact game, by enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents
from bellmax.agents import conversations, language, mtpo
from bellmax.envs import dialogue, dialogue_exact
from bellmax.experiments import dialogue_policies

# Two turns of two words, so that there is something within a turn and between turns; 729
# conversations.
GAME = dialogue.make(num_turns=2, num_parts=1)._replace(
    scores=jnp.array([[0.0, 2.0], [0.5, 1.0]]), attention=jnp.array([0.9, 0.7])
)
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
LEGAL = dialogue_policies.legal_tokens(GAME)
ALPHA = 0.2


def init_params(key):
    keys = jax.random.split(key)
    return {
        "seen": jax.random.normal(keys[0], (GAME.conversation_length, GAME.vocab_size, WIDTH)),
        "said": jax.random.normal(keys[1], (WIDTH, GAME.vocab_size)),
    }


def make_agent(optimizer=None, **kwargs):
    kwargs = {"alpha": ALPHA, "legal_tokens": LEGAL, "init_params": init_params} | kwargs
    return mtpo.make(MODEL, optimizer or optax.sgd(1.0), **kwargs)


def random_value(seed=5):
    key = jax.random.key(seed)
    return {"kernel": 0.3 * jax.random.normal(key, (WIDTH,)), "bias": jnp.array(0.2)}


@functools.lru_cache
def start():
    state = make_agent().init(jax.random.key(0), reference_params=init_params(jax.random.key(1)))
    return state._replace(params=state.params | {"value": random_value()})


@functools.lru_cache
def tables():
    table = jax.jit(lambda params: dialogue_policies.policy_table(MODEL, params, GAME))
    return table(start().params["policy"]), table(start().reference_params)


def all_conversations():
    """Every conversation, weighted by the policy's law; outcome laws given the conversation."""
    tokens = jnp.asarray(dialogue_exact.enumerate_conversations(GAME))
    law = dialogue_exact.conversation_law(GAME, tables()[0])
    batch = dialogue_policies.as_batch(tokens, GAME)._replace(weight=law)
    students = dialogue_exact.prefix_laws(GAME)[-1]
    beliefs = students / students.sum(axis=(1, 2), keepdims=True)
    # The last word of the second utterance: [start, 2 words, end, answer, end, 2 words, ...].
    manner = jax.nn.one_hot(tokens[:, 7], GAME.num_words)
    return batch, (beliefs[..., None] * manner[:, None, None, :]).reshape(len(tokens), -1)


def policy_gradient(agent, batch):
    """Minus the policy's step under SGD of rate 1, times the turns that it averages over."""
    state = start()
    new, _ = jax.jit(agent.update)(state, batch)
    step = jax.tree.map(jnp.subtract, new.params["policy"], state.params["policy"])
    return jax.tree.map(lambda leaf: GAME.num_turns * leaf, step)


def assert_same_direction(found, expected):
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    ]
    np.testing.assert_allclose(flat[0], flat[1], atol=2e-5 * np.abs(flat[1]).max() + 1e-6)
    assert np.linalg.norm(flat[1]) > 1e-2


def exact_gradient(objective):
    reference = tables()[1]

    def value(params):
        table = dialogue_policies.policy_table(MODEL, params, GAME)
        return objective(table, reference)

    return jax.jit(jax.grad(value))(start().params["policy"])


# A baseline changes no expectation: the value head is random in all of these.
EXACT = {"trace_decay": 1.0, "value_coefficient": 0.0}


def test_expected_step_is_the_gradient_of_the_regularised_preference():
    batch, outcomes = all_conversations()
    rival = dialogue_exact.outcome_law(GAME, tables()[0])
    wins = outcomes @ dialogue.outcome_preference(GAME) @ rival
    found = policy_gradient(make_agent(**EXACT), batch._replace(preferences=wins))

    def objective(table, reference):
        kl = dialogue_exact.divergence(GAME, table, reference)
        return dialogue_exact.win_rate(GAME, table, tables()[0]) - ALPHA * kl

    assert_same_direction(found, exact_gradient(objective))


def test_expected_step_of_rlhf_is_the_gradient_of_the_regularised_reward():
    batch, outcomes = all_conversations()
    scores = dialogue.outcome_scores(GAME)
    found = policy_gradient(make_agent(**EXACT), batch._replace(preferences=outcomes @ scores))

    def objective(table, reference):
        kl = dialogue_exact.divergence(GAME, table, reference)
        return dialogue_exact.outcome_law(GAME, table) @ scores - ALPHA * kl

    assert_same_direction(found, exact_gradient(objective))


def test_expected_step_of_the_single_turn_baseline_sees_each_turn_alone():
    batch, _ = all_conversations()
    table, size = tables()[0], dialogue_exact.num_utterances(GAME)
    reach = dialogue_exact.prefix_reach(GAME, table)
    students = dialogue_exact.prefix_laws(GAME)
    visits = [r * s.sum(axis=(1, 2)) for r, s in zip(reach, students, strict=True)]
    judged = [dialogue_exact.turn_preferences(GAME, turn) for turn in range(2)]
    # Conversation n says n // 3 % 9 in its second turn, after prefix n // 27, and so on.
    number = np.arange(batch.tokens.shape[0]) // GAME.num_words
    said, prefix = number % size, number // size
    first = prefix // GAME.num_words
    wins = [
        judged[0][0, first] @ table[0, 0],
        jnp.einsum("nu,nu->n", judged[1][prefix, said], table[1, prefix]),
    ]
    batch = batch._replace(preferences=jnp.stack(wins, axis=1))
    # Whatever the trace decay: there is no credit to decay.
    found = policy_gradient(make_agent(trace_decay=0.7, value_coefficient=0.0), batch)

    def objective(new, reference):
        total = 0.0
        for turn in range(2):
            count = visits[turn].shape[0]
            law, old, mu = new[turn, :count], table[turn, :count], reference[turn, :count]
            wins = jnp.einsum("nu,nuv,nv->n", law, judged[turn], old)
            kl = jnp.sum(law * (jnp.log(law) - jnp.log(mu)), axis=1)
            # The visits are the old policy's: nobody looks ahead.
            total += jnp.sum(visits[turn] * (wins - ALPHA * kl))
        return total

    assert_same_direction(found, exact_gradient(objective))


def test_turns_add_up_the_log_probabilities_of_their_tokens():
    tokens = jnp.asarray(dialogue_exact.enumerate_conversations(GAME)[100:104])
    batch, state = dialogue_policies.as_batch(tokens, GAME), start()
    laws = jax.jit(functools.partial(conversations.turn_laws, MODEL))(
        state.params, state.reference_params, batch
    )
    # Nothing is illegal here, as in the plain path that every agent shares.
    plain = language.completion_log_probs(MODEL, state.params["policy"], tokens)
    # Words at places 1, 2 and 6, 7; values at places 0 and 5.
    np.testing.assert_allclose(laws.log_probs[:, 0], plain[:, 1] + plain[:, 2], rtol=1e-5)
    np.testing.assert_allclose(laws.log_probs[:, 1], plain[:, 6] + plain[:, 7], rtol=1e-5)
    hidden = hidden_states(state.params["policy"], tokens)
    values = hidden @ state.params["value"]["kernel"] + 0.2
    np.testing.assert_allclose(laws.values, values[:, jnp.array([0, 5])], rtol=1e-4)
    logits, others = (
        jax.nn.log_softmax(apply(params, tokens))
        for params in (state.params["policy"], state.reference_params)
    )
    kl = jnp.sum(jnp.exp(logits) * (logits - others), axis=-1)
    np.testing.assert_allclose(laws.kl[:, 1], kl[:, 5] + kl[:, 6], rtol=1e-4)


def test_advantages_of_three_turns_by_hand():
    # Rewards -0.01 (0.1, 0.2, 0.05) and 0.8 at the end: (-.001, -.002, .7995). Errors .049, .048,
    # .1995; at lambda .95: .1995, .048 + .95 .1995 = .237525, .049 + .95 .237525 = .27464875.
    laws = conversations.TurnLaws(
        jnp.zeros((1, 3)), jnp.array([[0.1, 0.2, 0.05]]), jnp.array([[0.5, 0.55, 0.6]])
    )
    advantages, targets = mtpo.advantages_and_targets(
        laws, jnp.array([0.8]), jnp.ones((1, 3)), alpha=0.01, trace_decay=0.95
    )
    np.testing.assert_allclose(advantages[0], [0.27464875, 0.237525, 0.1995], rtol=1e-5)
    np.testing.assert_allclose(targets[0], [0.77464875, 0.787525, 0.7995], rtol=1e-5)
    # A conversation of two turns ends after two: .75 - .55 = .25 - .002, then .049 + .95 .248.
    advantages, _ = mtpo.advantages_and_targets(
        laws, jnp.array([0.8]), jnp.array([[1, 1, 0]]), alpha=0.01, trace_decay=0.95
    )
    np.testing.assert_allclose(advantages[0], [0.2846, 0.248, 0.0], atol=1e-6)
    # Judged turn by turn: preference less divergence less value.
    advantages, _ = mtpo.advantages_and_targets(
        laws, jnp.array([[0.7, 0.6, 0.8]]), jnp.ones((1, 3)), alpha=0.01, trace_decay=0.95
    )
    np.testing.assert_allclose(advantages[0], [0.199, 0.048, 0.1995], atol=1e-6)


def small_batch(rows=4):
    tokens = jnp.asarray(dialogue_exact.enumerate_conversations(GAME)[7 : 7 + 150 * rows : 150])
    wins = jnp.asarray(np.random.default_rng(0).uniform(size=rows), jnp.float32)
    return dialogue_policies.as_batch(tokens, GAME)._replace(preferences=wins)


def test_what_is_masked_changes_nothing():
    batch, agent = small_batch(), make_agent(normalise_advantages=True)
    # The second turn of row 1 does not exist; one version has padding there, the other rubbish.
    mask = batch.mask.at[1, 6:].set(0)
    turn_mask = batch.turn_mask.at[1, 1].set(0)
    one = batch._replace(mask=mask, turn_mask=turn_mask, tokens=batch.tokens.at[1, 6:].set(7))
    two = one._replace(
        tokens=one.tokens.at[1, 6:].set(3),
        turns=one.turns.at[1, 6:].set(99).at[:, 3].set(0),
        turn_starts=one.turn_starts.at[1, 1].set(10**6),
    )
    update = jax.jit(agent.update)
    results = [update(start(), rows) for rows in (one, two)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert np.isfinite(results[0][1]["grad_norm"])


@pytest.mark.parametrize("judged", ["conversations", "turns"])
def test_rows_of_weight_zero_change_nothing(judged):
    batch, agent = small_batch(), make_agent(normalise_advantages=True)
    if judged == "turns":
        batch = batch._replace(preferences=jnp.stack([batch.preferences] * 2, axis=1))
    batch = batch._replace(
        weight=jnp.array([1.0, 2.0, 0.5, 0.0]), preferences=batch.preferences.at[3].set(jnp.nan)
    )
    update = jax.jit(agent.update)
    full, cut = (update(start(), rows) for rows in (batch, jax.tree.map(lambda x: x[:3], batch)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), full, cut)


def test_policy_waits_while_the_value_learns():
    agent = make_agent(optax.adam(0.1), policy_delay=2)
    state, moved = agent.init(jax.random.key(0)), []
    first = state.params
    update = jax.jit(agent.update)
    for _ in range(3):
        state, _ = update(state, small_batch())
        same = jax.tree.map(lambda a, b: bool((a == b).all()), first, state.params)
        moved.append((not all(jax.tree.leaves(same["policy"])), not same["value"]["bias"]))
    assert moved == [(False, True), (False, True), (True, True)]


def test_value_gradient_of_zero_leaves_the_network_to_the_policy():
    batch = small_batch()
    steps = [
        policy_gradient(make_agent(value_gradient=0.0, value_coefficient=c), batch)
        for c in (0.0, 5.0)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *steps)
    shared = policy_gradient(make_agent(value_coefficient=5.0), batch)
    assert not np.allclose(shared["seen"], steps[0]["seen"])


def test_normalising_divides_the_whole_policy_loss():
    batch, state = small_batch(), start()
    legal = jnp.array(LEGAL)

    def parts(params):
        laws = conversations.turn_laws(MODEL, params, state.reference_params, batch, legal=legal)
        advantages, _ = mtpo.advantages_and_targets(
            laws, batch.preferences, batch.turn_mask, alpha=ALPHA, trace_decay=0.95
        )
        centred = (advantages - advantages.mean()) / advantages.std()
        loss = -centred * laws.log_probs + ALPHA / jax.lax.stop_gradient(advantages.std()) * laws.kl
        return GAME.num_turns * loss.mean()

    expected = jax.tree.map(jnp.negative, jax.jit(jax.grad(parts))(state.params)["policy"])
    found = policy_gradient(make_agent(normalise_advantages=True, value_coefficient=0.0), batch)
    assert_same_direction(found, expected)


def test_metrics_are_scalars_with_fixed_names():
    _, metrics = jax.jit(make_agent().update)(start(), small_batch())
    assert {"loss", "grad_norm", "loss/policy", "loss/value", "kl/reference"} <= metrics.keys()
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    np.testing.assert_allclose(
        metrics["rewards/preference"], small_batch().preferences.mean(), rtol=1e-5
    )


def test_state_can_be_donated():
    agent, batch = make_agent(agents.optimizers.adan(1e-2)), small_batch()
    params = init_params(jax.random.key(3))
    state = agent.init(jax.random.key(0), params=params)
    state, _ = jax.jit(agent.update, donate_argnums=0)(state, batch, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, params)))


def test_act_says_legal_tokens_only():
    agent = make_agent(max_new_tokens=2)
    assert agent.act is not None
    prompts = jnp.full((64, 1), GAME.end_token)
    turn = agent.act(start(), prompts, jax.random.key(0))
    assert turn.tokens.shape == (64, 2)
    batch = agents.PromptBatch(prompts, jnp.ones_like(prompts))
    same = agent.act(start(), batch, jax.random.key(0))
    np.testing.assert_array_equal(same.tokens, turn.tokens)
    assert int(turn.tokens.max()) < GAME.num_words
    # They are drawn from the table's law of the first utterance.
    law = np.asarray(tables()[0][0, 0])
    said = turn.tokens[:, 0] * GAME.num_words + turn.tokens[:, 1]
    np.testing.assert_allclose(np.exp(turn.log_probs.sum(axis=1)), law[said], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        ({"trace_decay": 1.5}, "trace_decay"),
        ({"policy_delay": -1}, "policy_delay"),
        ({"value_coefficient": -1.0}, "value_coefficient"),
        ({"legal_tokens": [False, False]}, "legal_tokens"),
    ],
)
def test_refuses_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**arguments)


def test_refuses_models_and_batches_that_lack_something():
    with pytest.raises(ValueError, match="hidden_states"):
        mtpo.make(
            language.LanguageModel(MODEL.apply), optax.sgd(1.0), init_params=init_params, alpha=0.1
        )
    batch = small_batch()._replace(preferences=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"preferences must be \[B\] or \[B, H\]"):
        make_agent().update(start(), batch)
