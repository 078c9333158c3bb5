"""The preference agent on a bigram policy, whose gradient is written down by hand in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import agents, losses
from bellmax.agents import preference
from bellmax.agents.language import LanguageModel

VOCAB, LENGTH, BETA = 5, 6, 0.3
DPO = preference.on_log_ratios(functools.partial(losses.dpo_loss, beta=BETA))
MODEL = LanguageModel(
    apply=lambda params, tokens: params["logits"][tokens],
    # The same policy with one-hot hidden states, for the chunked path.
    hidden_states=lambda params, tokens: jax.nn.one_hot(tokens, VOCAB),
    unembedding=lambda params: params["logits"],
)


def init_params(key):
    return {"logits": jax.random.normal(key, (VOCAB, VOCAB))}


def make_batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (2, size, LENGTH))
    lengths = rng.integers(1, LENGTH - 2, (2, size))
    places = np.arange(LENGTH)
    masks = ((places >= 2) & (places < 2 + lengths[..., None])).astype(np.float32)
    return agents.PreferenceBatch(
        *map(jnp.asarray, (tokens[0], tokens[1], masks[0], masks[1])),
        index=jnp.arange(size),
        weight=jnp.ones(size),
    )


def make_agent(optimizer=None, **kwargs):
    kwargs = {"loss_fn": DPO, "init_params": init_params} | kwargs
    return preference.make(MODEL, optimizer or optax.sgd(0.5), **kwargs)


def numpy_log_prob_and_gradient(logits, tokens, mask):
    """Log-probability of a masked completion under a bigram policy, and its gradient."""
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total, gradient = 0.0, np.zeros_like(logits)
    for place in range(1, len(tokens)):
        if mask[place]:
            previous, token = tokens[place - 1], tokens[place]
            total += np.log(probs[previous, token])
            gradient[previous] -= probs[previous]
            gradient[previous, token] += 1
    return total, gradient


def test_step_is_the_gradient_of_dpo_by_hand():
    agent, batch = make_agent(), make_batch()
    reference = init_params(jax.random.key(7))
    state = agent.init(jax.random.key(0), batch, reference_params=reference)
    new_state, metrics = jax.jit(agent.update)(state, batch, jax.random.key(1))
    theta, ref = (np.asarray(p["logits"], np.float64) for p in (state.params, reference))
    loss, gradient = 0.0, np.zeros_like(theta)
    for row in range(4):
        chosen = np.asarray(batch.chosen_tokens[row]), np.asarray(batch.chosen_mask[row])
        rejected = np.asarray(batch.rejected_tokens[row]), np.asarray(batch.rejected_mask[row])
        (lw, gw), (ll, gl) = (numpy_log_prob_and_gradient(theta, *c) for c in (chosen, rejected))
        rw, rl = (numpy_log_prob_and_gradient(ref, *c)[0] for c in (chosen, rejected))
        z = BETA * ((lw - rw) - (ll - rl))
        loss += np.log1p(np.exp(-z)) / 4
        gradient += -BETA / (1 + np.exp(z)) * (gw - gl) / 4
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(new_state.params["logits"], theta - 0.5 * gradient, atol=1e-6)
    np.testing.assert_array_equal(new_state.reference_params["logits"], reference["logits"])
    assert int(new_state.step) == 1


def test_cached_reference_equals_live_reference():
    batch, key = make_batch(), jax.random.key(0)
    live, cached = make_agent(), make_agent(live_reference=False)
    state = live.init(key, reference_params=init_params(jax.random.key(5)))
    chosen, rejected = preference.sequence_log_probs(MODEL, state.reference_params, batch)
    with_cache = batch._replace(
        chosen_reference_log_probs=chosen, rejected_reference_log_probs=rejected
    )
    one, one_metrics = live.update(state, batch, key)
    two, two_metrics = cached.update(cached.init(key, params=state.params), with_cache, key)
    assert two.reference_params == ()
    np.testing.assert_allclose(one.params["logits"], two.params["logits"], atol=1e-6)
    assert one_metrics.keys() == two_metrics.keys()
    np.testing.assert_allclose(one_metrics["loss"], two_metrics["loss"], rtol=1e-6)


def test_cached_reference_that_is_missing_is_named():
    agent = make_agent(live_reference=False)
    state = agent.init(jax.random.key(0))
    with pytest.raises(ValueError, match="chosen_reference_log_probs"):
        agent.update(state, make_batch(), jax.random.key(0))


def test_rows_of_weight_zero_change_nothing():
    agent = make_agent(live_reference=False)
    batch = make_batch(4)._replace(
        chosen_reference_log_probs=jnp.array([-3.0, -2.0, -4.0, jnp.nan]),
        rejected_reference_log_probs=jnp.array([-2.0, -2.5, -3.0, jnp.nan]),
        weight=jnp.array([1.0, 1.0, 1.0, 0.0]),
    )
    state = agent.init(jax.random.key(0))
    full = agent.update(state, batch, jax.random.key(0))
    cut = agent.update(state, jax.tree.map(lambda x: x[:3], batch), jax.random.key(0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), full, cut)


def test_chunked_head_takes_the_same_step():
    batch, key = make_batch(), jax.random.key(0)
    plain, chunked = make_agent(), make_agent(chunk_size=3)
    one, _ = plain.update(plain.init(key), batch, key)
    two, _ = chunked.update(chunked.init(key), batch, key)
    np.testing.assert_allclose(one.params["logits"], two.params["logits"], atol=1e-6)


def test_first_step_sees_margin_zero():
    agent, batch = make_agent(reward_scale=BETA), make_batch()
    _, metrics = agent.update(agent.init(jax.random.key(0)), batch, jax.random.key(0))
    # The reference is a copy of the policy: every ratio is 0, every pair a tie, and DPO log 2.
    np.testing.assert_allclose(metrics["rewards/margin"], 0, atol=1e-6)
    np.testing.assert_allclose(metrics["rewards/accuracy"], 0.5)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def test_state_can_be_donated():
    agent, batch = make_agent(agents.optimizers.adan(1e-2)), make_batch()
    params = init_params(jax.random.key(0))
    state = agent.init(jax.random.key(0), params=params)
    state, _ = jax.jit(agent.update, donate_argnums=0)(state, batch, jax.random.key(0))
    assert np.isfinite(state.params["logits"]).all()
    # What was passed in is a copy: donation did not take it away from the caller.
    assert np.isfinite(params["logits"]).all()


def test_any_loss_of_the_pair_may_enter():
    def rpo(pair):
        return losses.rpo_loss(
            pair.chosen_log_ratios,
            pair.rejected_log_ratios,
            pair.chosen_log_probs,
            beta=BETA,
            eta=0.5,
        )

    agent, plain, batch = make_agent(loss_fn=rpo), make_agent(), make_batch()
    state = agent.init(jax.random.key(0))
    _, metrics = agent.update(state, batch, jax.random.key(0))
    _, dpo = plain.update(state, batch, jax.random.key(0))
    chosen, _ = preference.sequence_log_probs(MODEL, state.params, batch)
    np.testing.assert_allclose(metrics["loss"], dpo["loss"] - 0.5 * BETA * chosen.mean(), rtol=1e-5)


def test_users_own_convex_function_needs_no_registration():
    loss_fn = preference.on_log_ratios(
        functools.partial(losses.gpo_loss, convex_fn=lambda z: jnp.cosh(z - 1), beta=1.0)
    )
    agent = make_agent(loss_fn=loss_fn)
    _, metrics = agent.update(agent.init(jax.random.key(0)), make_batch(), jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], np.cosh(1), rtol=1e-5)


def test_nonfinite_gradients_are_skipped_and_counted():
    agent = make_agent(agents.optimizers.skip_nonfinite(optax.adam(0.1)), live_reference=False)
    bad = make_batch()._replace(
        chosen_reference_log_probs=jnp.full(4, jnp.nan),
        rejected_reference_log_probs=jnp.zeros(4),
    )
    state = agent.init(jax.random.key(0))
    new_state, metrics = jax.jit(agent.update)(state, bad, jax.random.key(0))
    np.testing.assert_array_equal(new_state.params["logits"], state.params["logits"])
    assert float(metrics["updates/skipped"]) == 1
    assert np.isnan(metrics["loss"])


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_refuses_chunk_sizes(chunk_size):
    with pytest.raises(ValueError, match="chunk_size"):
        make_agent(chunk_size=chunk_size)


def test_refuses_chunking_without_hidden_states():
    with pytest.raises(ValueError, match="hidden_states"):
        preference.make(
            LanguageModel(MODEL.apply),
            optax.sgd(1.0),
            loss_fn=DPO,
            init_params=init_params,
            chunk_size=2,
        )
