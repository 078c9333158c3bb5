"""The Nash agent: its gradient by enumeration, its laws and rules, and a game that it solves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import losses
from bellmax.agents import (
    DuelBatch,
    PromptBatch,
    duels,
    followers,
    language,
    nash,
    networks,
    opponents,
)

CONFIG = networks.TransformerConfig(
    vocab_size=3, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, embed_dim=8, mlp_dim=12
)
MODEL = language.LanguageModel(apply=functools.partial(networks.apply, CONFIG))
NEW, TAU, MIXTURE = 2, 0.3, 0.25
# All nine completions of two tokens after the prompt [1, 0].
COMPLETIONS = jnp.asarray(np.indices((3, 3)).reshape(2, -1).T, jnp.int32)
ROWS = jnp.concatenate([jnp.tile(jnp.array([[1, 0]]), (9, 1)), COMPLETIONS], axis=1)
MASK = jnp.tile(jnp.array([[0.0, 0, 1, 1]]), (9, 1))
RANDOM = np.random.default_rng(0).uniform(size=(9, 9))
PREFERENCE = jnp.asarray(np.tril(RANDOM, -1) + np.triu(1 - RANDOM.T, 1) + np.eye(9) / 2)


@functools.cache
def make_params(seed):
    return jax.tree.map(lambda leaf: 4.0 * leaf, networks.init(CONFIG, jax.random.key(seed)))


@jax.jit
def token_log_probs(params):
    return language.completion_log_probs(MODEL, params, ROWS)


@jax.jit
def law_of(params):
    """Log-probability of every completion."""
    return losses.sequence_log_probs(token_log_probs(params), MASK)


@jax.jit
def mixture_law(params, reference_params):
    """Log-probability of every completion under the token-by-token mixture."""
    logits = [networks.apply(CONFIG, p, ROWS[:, :-1]) for p in (params, reference_params)]
    mixed = losses.geometric_mixture_logits(*logits, mixture=MIXTURE)
    picked = jnp.take_along_axis(mixed, ROWS[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(picked * MASK[:, 1:], axis=-1)


def state_of(seed=0, **changes):
    params = make_params(seed)
    zero = jnp.zeros((), jnp.int32)
    return nash.State(params, make_params(1), make_params(2), (), zero)._replace(**changes)


def all_duels(params, weight):
    """Every pair of completions as one batch, weighed by its probability."""
    first, second = (grid.reshape(-1) for grid in jnp.indices((9, 9)))
    return DuelBatch(
        first_tokens=ROWS[first],
        second_tokens=ROWS[second],
        first_mask=MASK[first],
        second_mask=MASK[second],
        preferences=PREFERENCE.reshape(-1).astype(jnp.float32),
        weight=weight.reshape(-1),
    )


def expected_gradient(loss_fn, weight):
    """The gradient that `update` takes, averaged over all duels: SGD of rate 1 moves by it."""
    state, optimizer = state_of(), optax.sgd(1.0)
    state = state._replace(opt_state=optimizer.init(state.params))
    batch = all_duels(state.params, weight)
    update = functools.partial(nash.update, model=MODEL, optimizer=optimizer, loss_fn=loss_fn)
    new, _ = jax.jit(update)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, new.params)


def test_enumerated_policy_gradient_is_exact():
    """Munos et al. 2023: the ascent direction of P(pi beats pi') - tau KL(pi, reference), pi' held.

    The right-hand side differentiates the expectation itself, over all completions.
    """
    policy, reference = law_of(make_params(0)), law_of(make_params(1))
    other = jnp.exp(mixture_law(make_params(0), make_params(1)))
    np.testing.assert_allclose(other.sum(), 1.0, rtol=1e-5)

    def objective(params):
        log_policy = law_of(params)
        probs = jnp.exp(log_policy)
        return probs @ PREFERENCE @ other - TAU * probs @ (log_policy - reference)

    weight = jnp.exp(policy)[:, None] * other[None, :]
    estimate = expected_gradient(duels.nash_md_pg(tau=TAU), weight)
    exact = jax.jit(jax.grad(objective))(make_params(0))
    for ours, true in zip(jax.tree.leaves(estimate), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, -true, atol=2e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact)) > 1e-3


def test_online_ipo_gradient_is_four_times_that_of_self_play():
    """The expanded kernel is tau times the loss: 4 / tau times tau (Calandriello et al. 2024)."""
    probs = jnp.exp(law_of(make_params(0)))
    weight = probs[:, None] * probs[None, :]
    ipo = expected_gradient(duels.online_ipo(tau=TAU), weight)
    self_play = expected_gradient(duels.self_play_pg(tau=TAU), weight)
    for left, right in zip(jax.tree.leaves(ipo), jax.tree.leaves(self_play), strict=True):
        np.testing.assert_allclose(left, 4 * right, atol=5e-5)


LOSSES = {
    "nash_md_pg": duels.nash_md_pg(tau=0.1),
    "self_play_pg": duels.self_play_pg(tau=0.1),
    "online_ipo": duels.online_ipo(tau=0.5),
    "online_dpo": duels.online_dpo(beta=0.1),
    "sppo": duels.sppo(eta=2.0),
    "dno": duels.dno(eta=0.5),
    "inpo": duels.inpo(eta=0.5, tau=0.1),
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
def test_rows_of_no_weight_may_hold_anything(loss_fn):
    optimizer = optax.sgd(0.1)
    state = state_of(opt_state=optimizer.init(make_params(0)))
    weight = jnp.ones((9, 9)).at[0].set(0.0).reshape(-1)
    good = all_duels(state.params, weight)
    broken = good._replace(preferences=jnp.where(weight > 0, good.preferences, jnp.nan))
    update = jax.jit(
        functools.partial(nash.update, model=MODEL, optimizer=optimizer, loss_fn=loss_fn)
    )
    (clean, metrics), (same, same_metrics) = update(state, good), update(state, broken)
    assert np.isfinite(metrics["loss"])
    assert float(metrics["grad_norm"]) > 0
    for left, right in zip(*map(jax.tree.leaves, (clean.params, same.params)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert metrics.keys() == same_metrics.keys()
    assert set(metrics) == {
        "loss",
        "grad_norm",
        "updates/skipped",
        "preferences/first",
        "kl/reference",
        "log_probs/first",
        "lengths/first",
    }


def test_win_rates_take_the_place_of_the_pair():
    weight = jnp.ones((9, 9))
    batch = all_duels(make_params(0), weight)
    fields = nash.log_probs(MODEL, make_params(0), make_params(1), (), batch)
    np.testing.assert_array_equal(fields.second_win_rates, 1 - batch.preferences)
    np.testing.assert_array_equal(fields.first_opponent_log_probs, fields.first_reference_log_probs)
    several = batch._replace(first_win_rates=jnp.full(81, 0.9))
    fields = nash.log_probs(MODEL, make_params(0), make_params(1), (), several)
    np.testing.assert_allclose(fields.first_win_rates, 0.9)


def test_laws_sample_from_whom_they_say():
    state, key = state_of(), jax.random.key(3)
    prompts = PromptBatch(jnp.tile(jnp.array([[1, 0]]), (5, 1)), jnp.ones((5, 2)))
    laws = {
        "policy": (opponents.policy(MODEL), 0),
        "reference": (opponents.reference(MODEL), 1),
        "opponent": (opponents.opponent(MODEL), 2),
        "mixture at 1": (opponents.mixture(MODEL, 1.0), 1),
    }
    for name, (law, seed) in laws.items():
        completion = opponents.sample(law, state, prompts, key, max_new_tokens=NEW)
        rows = jnp.concatenate([prompts.tokens, completion.tokens], axis=1)
        expected = language.completion_log_probs(MODEL, make_params(seed), rows)[:, 2:]
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-5, err_msg=name)


def test_rules_keep_the_previous_or_an_average():
    old, new = {"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}
    rule = followers.every(4)
    assert float(rule(old, new, jnp.array(3))["w"][0]) == 1.0
    assert float(rule(old, new, jnp.array(4))["w"][0]) == 3.0
    for decay, expected in ((0.0, 3.0), (0.75, 1.5), (1.0, 1.0)):
        kept = followers.average(decay)(old, new, jnp.array(1))
        np.testing.assert_allclose(kept["w"], expected)


def make_agent(loss_fn, **kwargs):
    return nash.make(
        MODEL,
        optax.adam(0.02),
        loss_fn=loss_fn,
        init_params=functools.partial(networks.init, CONFIG),
        max_new_tokens=NEW,
        **kwargs,
    )


def test_state_can_be_donated_and_holds_an_opponent_only_where_asked():
    plain = make_agent(LOSSES["nash_md_pg"]).init(jax.random.key(0))
    assert plain.opponent_params == ()
    agent = make_agent(LOSSES["sppo"], opponent_rule=followers.every(2))
    state = agent.init(jax.random.key(0), params=make_params(0))
    batch = all_duels(state.params, jnp.ones((9, 9)))
    step = jax.jit(agent.update, donate_argnums=0)
    kept = []
    for _ in range(3):
        state, _ = step(state, batch)
        kept.append(float(state.opponent_params["final_norm"]["scale"][0]))
    # Renewed after step 2 alone.
    assert kept[0] == 4.0
    assert kept[1] != kept[0]
    assert kept[2] == kept[1]


@pytest.mark.slow
def test_self_play_finds_the_regularised_equilibrium():
    """Two tokens with P(0 beats 1) = 0.7 and a uniform reference: pi(0) = sigmoid(0.2 / tau).

    The payoff of 0 exceeds that of 1 by 0.2 against anybody, which the KL term balances.
    """
    config = networks.TransformerConfig(2, 1, 1, 1, 2, 4, 4)
    model = language.LanguageModel(apply=functools.partial(networks.apply, config))
    agent = nash.make(
        model,
        optax.adam(0.02),
        loss_fn=duels.self_play_pg(tau=0.2),
        init_params=functools.partial(networks.init, config),
        max_new_tokens=1,
    )
    uniform = networks.init(config, jax.random.key(0))
    uniform["embedder"]["embedding"] = jnp.tile(uniform["embedder"]["embedding"][:1], (2, 1))
    start = networks.init(config, jax.random.key(1))
    prompts = PromptBatch(jnp.zeros((256, 1), jnp.int32), jnp.ones((256, 1)))
    law = opponents.policy(model)
    wins = jnp.array([[0.5, 0.7], [0.3, 0.5]])

    @jax.jit
    def step(state, key):
        keys = jax.random.split(key)
        pair = [opponents.sample(law, state, prompts, k, max_new_tokens=1).tokens for k in keys]
        first, second = (jnp.concatenate([prompts.tokens, t], axis=1) for t in pair)
        mask = jnp.tile(jnp.array([[0.0, 1.0]]), (256, 1))
        judged = wins[pair[0][:, 0], pair[1][:, 0]]
        return agent.update(state, DuelBatch(first, second, mask, mask, judged))[0]

    def run(state, keys):
        return jax.lax.scan(lambda s, k: (step(s, k), None), state, keys)[0]

    state = agent.init(jax.random.key(0), params=start, reference_params=uniform)
    state = jax.jit(run)(state, jax.random.split(jax.random.key(1), 300))
    learnt = jax.nn.softmax(networks.apply(config, state.params, jnp.zeros((1, 1), jnp.int32)))
    assert float(learnt[0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: opponents.mixture(MODEL, 1.5), r"weight must be in \[0, 1\], got 1.5"),
        (lambda: followers.every(0), "num_steps must be at least 1, got 0"),
        (lambda: followers.average(-0.1), r"decay must be in \[0, 1\], got -0.1"),
        (lambda: make_agent(LOSSES["sppo"], chunk_size=4), "chunk_size needs a model"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_loss_must_be_a_function():
    loss_fn: object = "nash_md"
    with pytest.raises(TypeError, match="loss_fn must be a function of DuelLogProbs"):
        make_agent(loss_fn)
