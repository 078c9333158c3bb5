"""Policy gradients on completions: expected gradients by enumeration, and what the agent adds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents, losses
from bellmax.agents import (
    CompletionBatch,
    completion_losses,
    critics,
    language,
    networks,
    policy_gradient,
)

CONFIG = networks.TransformerConfig(
    vocab_size=3, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, embed_dim=8, mlp_dim=12
)
MODEL = language.LanguageModel(
    apply=functools.partial(networks.apply, CONFIG),
    hidden_states=functools.partial(networks.hidden_states, CONFIG),
    unembedding=functools.partial(networks.unembedding, CONFIG),
)
INIT = functools.partial(networks.init, CONFIG)
BETA = 0.3
# All nine completions of two tokens after the prompt [1, 0].
COMPLETIONS = np.indices((3, 3)).reshape(2, -1).T
ROWS = np.concatenate([np.tile([[1, 0]], (9, 1)), COMPLETIONS], axis=1).astype(np.int32)
MASK = np.tile([[0.0, 0, 1, 1]], (9, 1))
REWARDS = np.random.default_rng(0).uniform(size=9)


@functools.cache
def make_params(seed):
    # Also where it is asked for the first time inside of a function that is being compiled.
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda leaf: 4.0 * leaf, INIT(jax.random.key(seed)))


@jax.jit
def token_log_probs(params):
    return language.completion_log_probs(MODEL, params, jnp.asarray(ROWS))


def law_of(params):
    """Log-probability of every completion."""
    return losses.sequence_log_probs(token_log_probs(params), jnp.asarray(MASK))


def all_groups(size, behaviour=0):
    """Every group of completions, weighed by its probability under a policy."""
    which = np.indices((9,) * size).reshape(size, -1).T
    probs = np.exp(np.asarray(law_of(make_params(behaviour)), np.float64))
    weight = probs[which].prod(axis=1)
    return CompletionBatch(
        tokens=jnp.asarray(ROWS[which]),
        mask=jnp.asarray(MASK[which]),
        behaviour_log_probs=jnp.asarray(np.asarray(token_log_probs(make_params(behaviour)))[which]),
        rewards=jnp.asarray(REWARDS[which], jnp.float32),
        greedy_rewards=jnp.full(len(which), 0.7),
        answers=jnp.asarray(which % 4, jnp.int32),
        correct_answers=jnp.full(len(which), 2, jnp.int32),
        weight=jnp.asarray(weight / weight.sum(), jnp.float32),
    )


def make_agent(loss_fn, optimizer=None, **kwargs):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    return policy_gradient.make(MODEL, optimizer, loss_fn=loss_fn, init_params=INIT, **kwargs)


def start(agent):
    return agent.init(jax.random.key(0), params=make_params(0), reference_params=make_params(1))


def expected_gradient(loss_fn, batch, **kwargs):
    agent = make_agent(loss_fn, **kwargs)
    state = start(agent)
    learnt, _ = jax.jit(agent.update)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, learnt.params)


def assert_same(ours, true, *, factor=1.0, atol=3e-5):
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(left, factor * right, atol=atol)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(true)) > 1e-3


def regularised_return(params):
    log_policy, reference = law_of(params), law_of(make_params(1))
    return jnp.exp(log_policy) @ (jnp.asarray(REWARDS) - BETA * (log_policy - reference))


REGULARISED = {
    "REINFORCE": (completion_losses.policy_gradient(completion_losses.plain(), beta=BETA), 1.0),
    "RLOO": (completion_losses.policy_gradient(completion_losses.leave_one_out(), beta=BETA), 1.0),
    "ReMax": (
        completion_losses.policy_gradient(completion_losses.greedy_baseline(), beta=BETA),
        1.0,
    ),
    # The group's own mean takes a share of 1 / G of each reward away.
    "Dr. GRPO": (
        completion_losses.clipped(
            completion_losses.group_centred(), beta=BETA, kl="reward", tokens="sum"
        ),
        0.5,
    ),
    "clipped sequences": (
        completion_losses.clipped(
            completion_losses.leave_one_out(), beta=BETA, kl="reward", level="sequence"
        ),
        1.0,
    ),
    "mean over tokens": (
        completion_losses.clipped(completion_losses.leave_one_out(), beta=BETA, kl="reward"),
        0.5,
    ),
}


@pytest.mark.parametrize(("loss_fn", "share"), REGULARISED.values(), ids=REGULARISED)
def test_expected_gradient_is_that_of_the_regularised_return(loss_fn, share):
    exact = jax.jit(jax.grad(regularised_return))(make_params(0))
    assert_same(expected_gradient(loss_fn, all_groups(2)), exact, factor=-share)


def test_ppo_with_a_critic_that_knows_nothing_is_reinforce():
    critic = critics.of_model(MODEL, INIT)
    loss_fn = completion_losses.ppo(trace_decay=1.0, beta=BETA)
    found = expected_gradient(loss_fn, all_groups(1), critic=critic)
    exact = jax.jit(jax.grad(regularised_return))(make_params(0))
    # The mean over two tokens; the value's loss does not reach the policy.
    assert_same(found, exact, factor=-0.5)


def test_a_critic_s_values_do_not_change_the_expected_gradient():
    """A baseline that depends on the prefix alone, whatever it is, is none to the expectation."""
    loss_fn = completion_losses.ppo(trace_decay=1.0, beta=BETA, value_clip_epsilon=None)
    agent = make_agent(loss_fn, critic=critics.of_model(MODEL, INIT))
    state = start(agent)
    head = {"kernel": jnp.linspace(-1.0, 1.0, 8), "bias": jnp.asarray(0.4)}
    state = state._replace(value_params=state.value_params | {"head": head})
    learnt, metrics = jax.jit(agent.update)(state, all_groups(1))
    moved = jax.tree.map(jnp.subtract, state.params, learnt.params)
    assert_same(moved, jax.jit(jax.grad(regularised_return))(make_params(0)), factor=-0.5)
    assert metrics["loss"] != 0
    assert not np.allclose(learnt.value_params["head"]["kernel"], head["kernel"])


def test_importance_weights_make_other_policies_samples_count():
    loss_fn = completion_losses.policy_gradient(completion_losses.plain(), importance_clip=1e6)
    exact = jax.jit(jax.grad(lambda p: jnp.exp(law_of(p)) @ jnp.asarray(REWARDS)))(make_params(0))
    assert_same(expected_gradient(loss_fn, all_groups(1, behaviour=2)), exact, factor=-1.0)


def half_variance(params, law):
    log_policy = law_of(params)
    earned = jnp.asarray(REWARDS) - BETA * (log_policy - law_of(make_params(1)))
    weight = jnp.exp(log_policy) if law is None else law
    return jnp.sum(weight * jnp.square(earned - weight @ earned)) / 2


@pytest.mark.parametrize("on_policy", [False, True])
def test_agro_descends_the_variance(on_policy):
    """Off-policy under the behaviour's law; on-policy the law itself is differentiated."""
    behaviour = 0 if on_policy else 2
    law = None if on_policy else jnp.exp(law_of(make_params(2)))
    found = expected_gradient(
        completion_losses.agro(beta=BETA, on_policy=on_policy), all_groups(2, behaviour)
    )
    exact = jax.jit(jax.grad(functools.partial(half_variance, law=law)))(make_params(0))
    assert_same(found, exact, factor=1 / BETA)


@pytest.mark.parametrize("loss_fn", [completion_losses.agro, completion_losses.copg])
def test_regressions_find_the_optimum_on_anybody_s_completions(loss_fn):
    """pi* is proportional to pi_ref exp(r / beta), whoever sends the completions."""
    # Any law at all: logits by place and token before.
    table = language.LanguageModel(apply=lambda params, tokens: params[jnp.arange(3), tokens])
    agent = policy_gradient.make(
        table,
        optax.adam(0.1),
        loss_fn=loss_fn(beta=BETA),
        init_params=lambda key: jnp.zeros((3, 3, 3)),
    )
    batch = all_groups(2, behaviour=2)
    state = agent.init(jax.random.key(0))
    state = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: agent.update(s, batch), state, length=300)[0]
    )(state)
    found = language.completion_log_probs(table, state.params, jnp.asarray(ROWS))
    best = np.exp(REWARDS / BETA)
    np.testing.assert_allclose(
        np.exp(losses.sequence_log_probs(found, jnp.asarray(MASK))), best / best.sum(), atol=1e-4
    )


def test_majority_learns_the_vote():
    """The vote of three, every tie at random: the gradient of its expected correctness."""
    answers = np.arange(9) % 4

    def correct(params):
        probs = jnp.exp(law_of(params))
        p = jnp.stack([jnp.sum(jnp.where(answers == a, probs, 0.0)) for a in range(4)])
        right, rest = p[2], 1 - p[2]
        others = sum(p[a] * p[b] for a in (0, 1, 3) for b in (0, 1, 3) if a != b)
        # Two or three right; one right beside two that differ, a third of which.
        return right**3 + 3 * right**2 * rest + right * others

    loss_fn = completion_losses.policy_gradient(
        completion_losses.majority(ties="uniform"), over="sum"
    )
    exact = jax.jit(jax.grad(correct))(make_params(0))
    assert_same(expected_gradient(loss_fn, all_groups(3)), exact, factor=-1.0)


EVERY = {
    "policy_gradient": completion_losses.policy_gradient(
        completion_losses.group_normalised(), beta=0.1, kl="loss"
    ),
    "clipped": completion_losses.clipped(completion_losses.group_normalised(), beta=0.1),
    "majority": completion_losses.policy_gradient(completion_losses.majority(), over="sum"),
    "ppo": completion_losses.ppo(beta=0.1),
    "agro": completion_losses.agro(beta=0.1, on_policy=True),
}


@pytest.mark.parametrize("loss_fn", EVERY.values(), ids=EVERY)
def test_padding_and_rows_of_no_weight_may_hold_anything(loss_fn):
    good = all_groups(2)
    assert good.weight is not None
    assert good.rewards is not None
    weight = good.weight.at[0].set(0.0)
    mask = good.mask.at[:, 0, 3].set(0)
    there = (mask > 0) & (weight > 0)[:, None, None]
    clean = good._replace(
        weight=weight,
        mask=mask,
        tokens=jnp.where(mask > 0, good.tokens, ROWS[0]),
        reference_log_probs=token_log_probs(make_params(1))[good.tokens[..., 2] * 3],
    )
    assert clean.reference_log_probs is not None
    broken = clean._replace(
        behaviour_log_probs=jnp.where(there, clean.behaviour_log_probs, jnp.nan),
        reference_log_probs=jnp.where(there, clean.reference_log_probs, jnp.inf),
        rewards=jnp.where(weight[:, None] > 0, good.rewards, jnp.nan),
        greedy_rewards=jnp.where(weight > 0, 0.7, jnp.nan),
        tokens=clean.tokens.at[:, 0, 3].set(-100).at[0].set(77),
    )
    agent = make_agent(loss_fn, critic=critics.of_model(MODEL, INIT))
    update = jax.jit(agent.update)
    (one, first), (other, second) = update(start(agent), clean), update(start(agent), broken)
    assert np.isfinite(first["loss"])
    for left, right in zip(
        jax.tree.leaves((one, first)), jax.tree.leaves((other, second)), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_the_average_over_tokens_counts_those_of_the_whole_batch():
    """The sum of the token losses over their number, by hand on two prompts."""
    batch = jax.tree.map(lambda leaf: leaf[jnp.array([1, 5])], all_groups(2))
    mask = batch.mask.at[1, :, 3].set(0)
    batch = batch._replace(mask=mask, weight=jnp.ones(2))
    loss_fn = completion_losses.clipped(completion_losses.group_centred(), tokens="sum", over="sum")

    def by_hand(params):
        rows = batch.tokens.reshape(-1, 4)
        found = language.completion_log_probs(MODEL, params, rows).reshape(mask.shape)
        advantages = batch.rewards - batch.rewards.mean(axis=-1, keepdims=True)
        return jnp.sum(advantages[..., None] * found * mask) / mask.sum()

    found = expected_gradient(loss_fn, batch, average="tokens")
    assert_same(found, jax.jit(jax.grad(by_hand))(make_params(0)), factor=-1.0)


def test_several_steps_on_a_batch_are_clipped():
    """Once a ratio has left the interval on the advantage's side it teaches nothing more."""
    batch = jax.tree.map(lambda leaf: leaf[5:6], all_groups(2))
    batch = batch._replace(weight=jnp.ones(1), rewards=jnp.array([[1.0, 0.0]]))
    agent = make_agent(
        completion_losses.clipped(completion_losses.group_centred(), clip_epsilon=0.1),
        optax.sgd(0.3),
    )
    update = jax.jit(agent.update)
    state, norms = start(agent), []
    for _ in range(12):
        state, metrics = update(state, batch)
        norms.append(float(metrics["grad_norm"]))
    assert norms[0] > 1e-2
    assert norms[-1] == 0


def test_act_samples_from_the_policy():
    agent = make_agent(completion_losses.agro(beta=1.0), max_new_tokens=2)
    assert agent.act is not None
    state = start(agent)
    prompts = jnp.tile(jnp.array([[1, 0]]), (6000, 1))
    found = agent.act(state, prompts, jax.random.key(0))
    counts = np.bincount(np.asarray(found.tokens) @ [3, 1], minlength=9) / 6000
    np.testing.assert_allclose(counts, np.exp(law_of(state.params)), atol=0.03)


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match="loss_fn"):
        make_agent("rloo")
    with pytest.raises(ValueError, match="average must be one of prompts, tokens"):
        make_agent(EVERY["agro"], average="rows")
    agent = make_agent(EVERY["ppo"])
    batch, state = all_groups(2), start(agent)
    with pytest.raises(ValueError, match="critic"):
        jax.eval_shape(agent.update, state, batch)
    with pytest.raises(ValueError, match=r"batch\.rewards must have shape \(81, 2\)"):
        make_agent(EVERY["agro"]).update(state, batch._replace(rewards=jnp.zeros(81)))
    loss_fn = completion_losses.policy_gradient(completion_losses.greedy_baseline())
    with pytest.raises(ValueError, match="greedy_rewards"):
        jax.eval_shape(make_agent(loss_fn).update, state, batch._replace(greedy_rewards=None))
    wrongs: tuple[dict[str, Any], ...] = (
        {"kl": "both"},
        {"over": "max"},
        {"level": "word"},
        {"tokens": 0},
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            completion_losses.clipped(completion_losses.plain(), **wrong)
    assert agents.policy_gradient is policy_gradient
