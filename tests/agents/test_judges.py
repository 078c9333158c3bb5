"""Learned judges: a step by hand, what each can represent, what must not reach the network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from bellmax import agents, losses
from bellmax.agents import judges, networks
from bellmax.agents.optimizers import adan

DICE = np.array([[1 / 2, 5 / 9, 4 / 9], [4 / 9, 1 / 2, 5 / 9], [5 / 9, 4 / 9, 1 / 2]])
VOCAB, WIDTH, LENGTH = 7, 4, 6


def table_states(params, tokens, *, mask):
    """The simplest causal network: the sum of the embeddings of the tokens so far."""
    return jnp.cumsum(params[tokens] * mask[..., None], axis=1)


def init_table(key):
    return jax.random.normal(key, (VOCAB, WIDTH))


CONFIG = networks.TransformerConfig(
    vocab_size=VOCAB,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    embed_dim=8,
    mlp_dim=8,
)
TRANSFORMER = functools.partial(networks.hidden_states, CONFIG)


def make_agent(kind, optimizer=None, *, transformer=False, **kwargs):
    states = TRANSFORMER if transformer else table_states
    network = {
        "init_network": functools.partial(networks.init, CONFIG) if transformer else init_table,
        "embed_dim": CONFIG.embed_dim if transformer else WIDTH,
    }
    if kind is judges.pairwise:
        network["rank"] = 2
    return kind.make(states, optimizer or optax.sgd(0.5), **(network | kwargs))


def random_params(kind, *, transformer=False, seed=0):
    """Parameters whose head is not zero, so that nothing is a tie by accident."""
    params = make_agent(kind, transformer=transformer).init(jax.random.key(seed)).params
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noise = (jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves)
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def make_batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (2, size, LENGTH))
    lengths = rng.integers(1, LENGTH - 1, (2, size))
    places = np.arange(LENGTH)
    masks = ((places >= 2) & (places < 2 + lengths[..., None])).astype(np.float32)
    # The prompt, two tokens, is the same for both completions.
    tokens[1, :, :2] = tokens[0, :, :2]
    return agents.PreferenceBatch(
        *map(jnp.asarray, (tokens[0], tokens[1], masks[0], masks[1])), weight=jnp.ones(size)
    )


def pair_of(batch):
    return batch.chosen_tokens, batch.chosen_mask, batch.rejected_tokens, batch.rejected_mask


def game_batch(game):
    """One-token completions of three kinds; each order of two has the weight of its probability."""
    first, second = np.nonzero(1 - np.eye(len(game)))
    prompts = np.full(len(first), 6)
    tokens = [np.stack([prompts, kind], axis=1) for kind in (first, second)]
    mask = np.tile([0, 1], (len(first), 1))
    return agents.PreferenceBatch(
        *map(jnp.asarray, (*tokens, mask, mask)), weight=jnp.asarray(game[first, second])
    )


# Compiled once for all tests of one shape.
JUDGES = {
    (kind, states): jax.jit(functools.partial(kind.preferences, hidden_states=states))
    for kind in (judges.bradley_terry, judges.pairwise)
    for states in (TRANSFORMER, table_states)
}
REWARDS = jax.jit(functools.partial(judges.rewards, hidden_states=TRANSFORMER))
BOTH = pytest.mark.parametrize("kind", [judges.bradley_terry, judges.pairwise], ids=["bt", "pm"])


def test_bradley_terry_step_by_hand():
    agent, batch = make_agent(judges.bradley_terry), make_batch()
    params = random_params(judges.bradley_terry)
    state, metrics = jax.jit(agent.update)(agent.init(jax.random.key(0), params=params), batch)
    table, head = (np.asarray(params[name], np.float64) for name in ("network", "head"))
    loss, margins, gradient = 0.0, [], np.zeros(WIDTH)
    for row in range(4):
        vectors = []
        for tokens, mask in (pair_of(batch)[:2], pair_of(batch)[2:]):
            end = np.nonzero(np.asarray(mask[row]))[0].max() + 1
            vectors.append(table[np.asarray(tokens[row, :end])].sum(axis=0))
        difference = vectors[0] - vectors[1]
        margins.append(head @ difference)
        loss += np.log1p(np.exp(-margins[-1])) / 4
        gradient -= difference / (1 + np.exp(margins[-1])) / 4
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/margin"], np.mean(margins), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/accuracy"], np.mean(np.greater(margins, 0)))
    np.testing.assert_allclose(state.params["head"], head - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    found = JUDGES[judges.bradley_terry, table_states](params, *pair_of(batch))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array(margins))), rtol=1e-5)
    assert int(state.step) == 1
    assert {"loss", "grad_norm", "updates/skipped"} < set(metrics)


def test_pairwise_preferences_by_hand():
    params, batch = random_params(judges.pairwise), make_batch()
    table, projection, form, linear = (
        np.asarray(params[name], np.float64)
        for name in ("network", "projection", "bilinear", "linear")
    )
    chances = JUDGES[judges.pairwise, table_states](params, *pair_of(batch))
    for row in range(4):
        u, v = (
            table[np.asarray(tokens[row, : np.nonzero(np.asarray(mask[row]))[0].max() + 1])].sum(0)
            @ projection
            for tokens, mask in (pair_of(batch)[:2], pair_of(batch)[2:])
        )
        logit = u @ (form - form.T) @ v / 2 + linear @ (u - v)
        np.testing.assert_allclose(chances[row], 1 / (1 + np.exp(-logit)), rtol=1e-5)


@BOTH
@pytest.mark.parametrize("transformer", [False, True])
def test_preferences_of_both_orders_add_up(kind, transformer):
    states = TRANSFORMER if transformer else table_states
    judge, params = JUDGES[kind, states], random_params(kind, transformer=transformer)
    first, first_mask, second, second_mask = pair_of(make_batch())
    forward = judge(params, first, first_mask, second, second_mask)
    backward = judge(params, second, second_mask, first, first_mask)
    assert forward.shape == (4,)
    assert np.all((forward > 0) & (forward < 1) & (np.abs(forward - 0.5) > 1e-4))
    np.testing.assert_allclose(forward + backward, 1, rtol=1e-6)
    same = judge(params, first, first_mask, first, first_mask)
    np.testing.assert_array_equal(same, np.full(4, 0.5))


def test_only_the_pairwise_judge_fits_a_cycle():
    # Three dice that beat each other in a circle, 5/9 each: a reward cannot do better than a tie,
    # log 2; the table itself has the entropy of 5/9.
    batch = game_batch(DICE)
    finals = {}
    for kind in (judges.bradley_terry, judges.pairwise):
        agent = make_agent(kind, optax.adam(0.03))

        def run(state, agent=agent):
            return jax.lax.scan(
                lambda state, _: agent.update(state, batch), state, length=500, unroll=1
            )

        state, metrics = jax.jit(run)(agent.init(jax.random.key(1)))
        finals[kind] = float(metrics["loss"][-1])
        np.testing.assert_allclose(metrics["loss"][0], np.log(2), rtol=1e-6)
        found = JUDGES[kind, table_states](state.params, *pair_of(batch))
        target = DICE[DICE != 0.5] if kind is judges.pairwise else np.full(6, 0.5)
        np.testing.assert_allclose(found, target, atol=2e-3)
    entropy = -(5 / 9) * np.log(5 / 9) - (4 / 9) * np.log(4 / 9)
    np.testing.assert_allclose(entropy, 0.68696160, atol=1e-8)
    np.testing.assert_allclose(finals[judges.bradley_terry], np.log(2), atol=1e-5)
    np.testing.assert_allclose(finals[judges.pairwise], entropy, atol=1e-5)


def test_symmetric_part_of_the_form_stays_where_it_is():
    agent, params = make_agent(judges.pairwise, optax.adam(0.1)), random_params(judges.pairwise)
    state = agent.init(jax.random.key(0), params=params)
    update = jax.jit(agent.update)
    for _ in range(3):
        state, _ = update(state, make_batch())
    before, after = (np.asarray(tree["bilinear"]) for tree in (params, state.params))
    np.testing.assert_array_equal(np.diag(after), np.diag(before))
    np.testing.assert_allclose(after + after.T, before + before.T, atol=1e-6)
    assert np.abs(after - before).max() > 0.01


@BOTH
def test_padding_does_not_reach_the_judge(kind):
    judge, batch = JUDGES[kind, TRANSFORMER], make_batch()
    params = random_params(kind, transformer=True)
    first, first_mask, second, second_mask = pair_of(batch)
    places = jnp.arange(LENGTH)

    def soil(tokens, mask):
        end = jnp.max(jnp.where(mask != 0, places, -1), axis=1, keepdims=True)
        return jnp.where(places > end, -5, tokens)

    expected = judge(params, first, first_mask, second, second_mask)
    found = judge(params, soil(first, first_mask), first_mask, second, second_mask)
    np.testing.assert_array_equal(found, expected)
    # More padding moves nothing either, and masks may be of any dtype.
    wide = [jnp.pad(array, ((0, 0), (0, 2))) for array in pair_of(batch)]
    wide[1], wide[3] = wide[1].astype(bool), wide[3].astype(jnp.int32)
    np.testing.assert_allclose(judge(params, *wide), expected, rtol=1e-5)


@BOTH
def test_the_prompt_reaches_the_judge(kind):
    judge, params = JUDGES[kind, TRANSFORMER], random_params(kind, transformer=True)
    first, first_mask, second, second_mask = pair_of(make_batch())
    expected = judge(params, first, first_mask, second, second_mask)
    moved = [tokens.at[:, 0].set((tokens[:, 0] + 1) % VOCAB) for tokens in (first, second)]
    found = judge(params, moved[0], first_mask, moved[1], second_mask)
    assert np.all(np.abs(found - expected) > 1e-5)


@BOTH
def test_rows_of_weight_zero_may_hold_anything(kind):
    agent = make_agent(kind, transformer=True)
    batch = make_batch()._replace(weight=jnp.array([1.0, 2.0, 0.5, 0.0]))
    soiled = batch._replace(
        chosen_tokens=batch.chosen_tokens.at[3].set(-(10**6)),
        rejected_tokens=batch.rejected_tokens.at[3].set(10**6),
        chosen_mask=batch.chosen_mask.at[3].set(jnp.nan),
        rejected_mask=batch.rejected_mask.at[3].set(jnp.inf),
        chosen_reference_log_probs=jnp.full(4, jnp.nan),
    )
    state = agent.init(jax.random.key(0), params=random_params(kind, transformer=True))
    update = jax.jit(agent.update)
    clean = batch._replace(chosen_reference_log_probs=jnp.zeros(4))
    found, expected = update(state, soiled), update(state, clean)
    assert np.isfinite(found[1]["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@BOTH
def test_rows_of_weight_zero_count_for_nothing(kind):
    agent = make_agent(kind)
    batch = make_batch()._replace(weight=jnp.array([1.0, 2.0, 0.5, 0.0]))
    state = agent.init(jax.random.key(0), params=random_params(kind))
    cut = jax.tree.map(lambda x: x[:3], batch)
    found, expected = (jax.jit(agent.update)(state, rows) for rows in (batch, cut))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected
    )


def test_an_empty_completion_has_reward_zero():
    params, batch = random_params(judges.bradley_terry, transformer=True), make_batch()
    found = REWARDS(params, batch.chosen_tokens, batch.chosen_mask.at[1].set(0))
    np.testing.assert_array_equal(found == 0, [False, True, False, False])


def test_rewards_explain_the_preferences():
    params, batch = random_params(judges.bradley_terry, transformer=True), make_batch()
    first, first_mask, second, second_mask = pair_of(batch)
    chosen, rejected = REWARDS(params, first, first_mask), REWARDS(params, second, second_mask)
    found = JUDGES[judges.bradley_terry, TRANSFORMER](params, *pair_of(batch))
    np.testing.assert_allclose(found, jax.nn.sigmoid(chosen - rejected), rtol=1e-5)


def test_any_loss_of_two_rewards_may_enter():
    loss_fn = functools.partial(losses.bradley_terry_loss, margin=1.0)
    agent = make_agent(judges.bradley_terry, loss_fn=loss_fn)
    _, metrics = jax.jit(agent.update)(agent.init(jax.random.key(0)), make_batch())
    # The fresh head is zero: every pair is a tie, one short of its margin.
    np.testing.assert_allclose(metrics["loss"], np.log1p(np.e), rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/accuracy"], 0.5)


@BOTH
def test_an_axis_of_devices_changes_nothing(kind):
    batch = make_batch(4)._replace(weight=jnp.array([1.0, 2.0, 0.0, 1.0]))
    one, spread = make_agent(kind), make_agent(kind, axis_name="devices")
    state = one.init(jax.random.key(0), params=random_params(kind))
    mapped = jax.shard_map(
        spread.update,
        mesh=jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(PartitionSpec(), PartitionSpec("devices")),
        out_specs=PartitionSpec(),
    )
    found, expected = jax.jit(mapped)(state, batch), jax.jit(one.update)(state, batch)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected
    )


@BOTH
def test_training_separates_pairs_and_donates_its_state(kind):
    pretrained = init_table(jax.random.key(3))
    agent = make_agent(kind, adan(0.02), init_network=lambda key: pretrained)
    state, batch = agent.init(jax.random.key(0)), make_batch(3)
    update = jax.jit(agent.update, donate_argnums=0)
    first = last = {}
    for step in range(60):
        state, last = update(state, batch, jax.random.key(0))
        first = last if step == 0 else first
    assert float(last["loss"]) < 0.5 * float(first["loss"])
    assert float(last["rewards/accuracy"]) == 1
    assert all(value.shape == () and value.dtype == jnp.float32 for value in last.values())
    # The network that was handed in is a copy: donation did not take it away.
    assert np.isfinite(pretrained).all()
    assert agent.act is None


@pytest.mark.parametrize(
    ("kind", "hyper", "error", "named"),
    [
        (judges.bradley_terry, {"embed_dim": 0}, ValueError, "embed_dim"),
        (judges.bradley_terry, {"loss_fn": "bt"}, TypeError, "loss_fn"),
        (judges.pairwise, {"rank": 0}, ValueError, "rank"),
        (judges.pairwise, {"embed_dim": 2.0}, ValueError, "embed_dim"),
    ],
)
def test_refused_hyper_parameters(kind, hyper, error, named):
    with pytest.raises(error, match=named):
        make_agent(kind, **hyper)


def test_refused_shapes():
    params = random_params(judges.bradley_terry)
    tokens, mask = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="mask"):
        judges.rewards(params, tokens, mask[:, :2], hidden_states=table_states)
    with pytest.raises(ValueError, match="second_tokens"):
        judges.bradley_terry_preferences(
            params, tokens, mask, tokens[:, :2], mask[:, :2], hidden_states=table_states
        )
