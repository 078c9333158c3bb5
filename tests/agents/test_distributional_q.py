"""Distributional Q-learning step by step: what counts, what does not, and how it acts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import losses
from bellmax.agents import SequenceBatch, backups, distributional_q, followers, return_laws
from bellmax.agents.networks import value

STATES, ACTIONS, SUPPORT = 4, 3, jnp.linspace(-4.0, 4.0, 5)
DISCOUNT = 0.9
LAW = return_laws.categorical(SUPPORT)


def linear(params, observations, key=None):
    """A network that reads a table: one-hot states to outputs of every action."""
    del key
    return jnp.einsum("...s,sak->...ak", observations, params["table"])


def make(*, method=losses.retrace_traces, trace_decay=0.8, target_rule=None, law=LAW, **options):
    arguments = {
        "apply": linear,
        "law": law,
        "trace_fn": functools.partial(method, trace_decay=trace_decay),
        "mixing": 0.7,
        "discount": DISCOUNT,
        "double": False,
        **options,
    }
    agent = distributional_q.make(
        **arguments,
        optimizer=optax.sgd(0.5),
        init_params=lambda key: {"table": jax.random.normal(key, (STATES, ACTIONS, 5))},
        target_rule=target_rule or followers.every(1),
        epsilon=lambda step: 0.3,
    )
    return agent, functools.partial(distributional_q.td_errors, **arguments)


def make_batch(length, size=6, seed=0):
    rng = np.random.default_rng(seed)
    no = jnp.zeros((size, length), bool)
    return SequenceBatch(
        observations=jnp.asarray(
            np.eye(STATES, dtype=np.float32)[rng.integers(0, STATES, (size, length + 1))]
        ),
        actions=jnp.asarray(rng.integers(0, ACTIONS, (size, length))),
        rewards=jnp.asarray(rng.normal(size=(size, length)), jnp.float32),
        terminated=no,
        truncated=no,
        behaviour_probs=jnp.asarray(rng.dirichlet(np.ones(ACTIONS), (size, length)), jnp.float32),
        weight=jnp.ones(size),
    )


def start(agent, seed=0, target_seed=1):
    target = {"table": jax.random.normal(jax.random.key(target_seed), (STATES, ACTIONS, 5))}
    return agent.init(jax.random.key(seed), reference_params=target)


def step_and_errors(agent, td_errors):
    """One program with both, as the loop of training has it."""

    @jax.jit
    def both(state, batch):
        return *agent.update(state, batch), td_errors(state, batch)

    return both


def values_of(table):
    """Expectations of laws by hand. [..., A]."""
    weights = np.exp(np.asarray(table, np.float64))
    return (weights * np.asarray(SUPPORT)).sum(axis=-1) / weights.sum(axis=-1)


BOTH = step_and_errors(*make())


def same(found, expected, tolerance=1e-6):
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-6)
    jax.tree.map(close, found, expected)


def test_errors_of_one_step_by_hand():
    agent, td_errors = make()
    batch, state = make_batch(1), start(agent)
    batch = batch._replace(
        terminated=jnp.asarray([[0], [1], [0], [0], [1], [0]], bool),
        truncated=jnp.asarray([[0], [0], [1], [0], [0], [1]], bool),
    )
    online, target = (values_of(p["table"]) for p in (state.params, state.target_params))
    first, after = (np.asarray(batch.observations[:, i]).argmax(axis=-1) for i in (0, 1))
    # An end by itself takes the rest of the return away; a cut does not.
    goes_on = 1 - np.asarray(batch.terminated[:, 0])
    expected = np.asarray(batch.rewards[:, 0]) + DISCOUNT * goes_on * target[after].max(axis=-1)
    expected -= online[first, np.asarray(batch.actions[:, 0])]
    np.testing.assert_allclose(td_errors(state, batch), expected, rtol=1e-5, atol=1e-6)


def test_double_lets_the_online_network_choose():
    agent, td_errors = make(double=True)
    batch, state = make_batch(1), start(agent)
    online, target = (values_of(p["table"]) for p in (state.params, state.target_params))
    first, after = (np.asarray(batch.observations[:, i]).argmax(axis=-1) for i in (0, 1))
    chosen = online.argmax(axis=-1)
    assert (chosen != target.argmax(axis=-1))[after].any()
    expected = np.asarray(batch.rewards[:, 0]) + DISCOUNT * target[after, chosen[after]]
    expected -= online[first, np.asarray(batch.actions[:, 0])]
    np.testing.assert_allclose(td_errors(state, batch), expected, rtol=1e-5, atol=1e-6)


def test_traces_of_0_are_one_step():
    # The policy is the greedy one, as it is where a sequence of one step ends.
    long = make_batch(3)
    short = jax.tree.map(lambda leaf: leaf[:, :1], long._replace(observations=None, weight=None))
    short = short._replace(observations=long.observations[:, :2], weight=long.weight)
    both = step_and_errors(*make(method=losses.one_step_traces, trace_decay=0.0, mixing=1.0))
    state = start(make()[0])
    (found, metrics, errors), (expected, _, expected_errors) = both(state, long), both(state, short)
    same((found, errors), (expected, expected_errors))
    assert float(metrics["traces/mean"]) == 0.0


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("law", ["categorical", "quantile"])
def test_what_follows_an_end_changes_nothing(end, law):
    both = BOTH if law == "categorical" else QUANTILES
    batch, state = make_batch(4), start(make()[0])
    rows, last = np.arange(6), np.array([0, 1, 2, 0, 1, 2])
    ended = np.zeros((6, 4), bool)
    ended[rows, last] = True
    batch = batch._replace(**{end: jnp.asarray(ended)})
    after = np.arange(4) > last[:, None]
    # x_{t + 1} is still the episode's own; it is read where the episode was cut.
    unread = np.arange(5) > last[:, None] + (end == "truncated")

    def spoil(leaf, where):
        return jnp.where(where.reshape(*where.shape, *[1] * (leaf.ndim - 2)), jnp.nan, leaf)

    spoilt = batch._replace(
        observations=spoil(batch.observations, unread),
        rewards=spoil(batch.rewards, after),
        behaviour_probs=spoil(batch.behaviour_probs, after),
    )
    found, metrics, errors = both(state, spoilt)
    expected, _, expected_errors = both(state, batch)
    assert np.isfinite(metrics["loss"])
    assert float(jnp.abs(found.params["table"] - state.params["table"]).max()) > 1e-3
    same((found, errors), (expected, expected_errors))


QUANTILES = step_and_errors(*make(law=return_laws.quantile()))


@pytest.mark.parametrize("law", ["categorical", "quantile"])
def test_rows_of_weight_0_change_nothing(law):
    both = BOTH if law == "categorical" else QUANTILES
    batch, state = make_batch(4), start(make()[0])
    spoilt = jax.tree.map(
        lambda leaf: leaf.at[4:].set(jnp.nan) if leaf.dtype == jnp.float32 else leaf, batch
    )
    spoilt = spoilt._replace(weight=jnp.asarray([1.0, 2.0, 1.0, 0.5, 0.0, 0.0]))
    kept = spoilt._replace(
        **{name: jnp.nan_to_num(getattr(spoilt, name)) for name in spoilt._fields[:6]}
    )
    found, metrics, errors = both(state, spoilt)
    expected, expected_metrics, expected_errors = both(state, kept)
    same((found, metrics, errors), (expected, expected_metrics, expected_errors))
    np.testing.assert_array_equal(errors[4:], 0.0)
    assert all(np.isfinite(value) for value in metrics.values())
    # And the others count by their weights: row 1 twice is row 1 with weight 2.
    order = jnp.asarray([0, 1, 1, 2, 3, 3])
    repeated = jax.tree.map(lambda leaf: leaf[order], kept)
    repeated = repeated._replace(weight=jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.25, 0.25]))
    same(both(state, repeated)[:2], (expected, expected_metrics), tolerance=1e-5)


def test_no_counted_row_leaves_the_network_as_it_is():
    batch, state = make_batch(4), start(make()[0])
    found, metrics, errors = BOTH(state, batch._replace(weight=jnp.zeros(6)))
    same(found.params, state.params)
    assert float(metrics["loss"]) == 0.0
    assert not errors.any()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mixing", [0.0, 0.6, 1.0])
def test_the_target_policy_mixes_greedy_and_behaviour(mixing, known):
    batch = make_batch(4)
    batch = batch._replace(truncated=batch.truncated.at[0, 1].set(True).at[1, 3].set(True))
    last = np.random.default_rng(4).dirichlet(np.ones(ACTIONS), 6)
    if known:
        last[1] = np.nan
        batch = batch._replace(last_behaviour_probs=jnp.asarray(last, jnp.float32))
    next_values = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4, ACTIONS)))
    seen = []

    def trace_fn(policy, behaviour):
        seen.extend((policy, behaviour))
        return jnp.full_like(policy, 0.4)

    found = backups.backup(batch, next_values, trace_fn=trace_fn, mixing=mixing, discount=0.9)
    np.testing.assert_allclose(found.policy.sum(axis=-1), 1.0, rtol=1e-6)
    greedy = np.eye(ACTIONS)[np.asarray(next_values).argmax(axis=-1)]
    expected = mixing * greedy[:, :-1] + (1 - mixing) * np.asarray(batch.behaviour_probs[:, 1:])
    # Nobody acts where an episode was cut.
    expected[0, 1] = greedy[0, 1]
    np.testing.assert_allclose(found.policy[:, :-1], expected, atol=1e-6)
    # At the last state it may not be known who acts.
    at_end = mixing * greedy[:, -1] + (1 - mixing) * last if known else greedy[:, -1]
    at_end[1] = greedy[1, -1]
    np.testing.assert_allclose(found.policy[:, -1], at_end, atol=1e-6)
    np.testing.assert_array_equal(found.next_actions, batch.actions[:, 1:])
    rows, steps = np.indices((6, 3))
    taken = np.asarray(batch.actions[:, 1:])
    np.testing.assert_allclose(seen[0], expected[rows, steps, taken], atol=1e-6)
    np.testing.assert_array_equal(seen[1], batch.behaviour_probs[:, 1:][rows, steps, taken])
    traces = np.full((6, 3), 0.4)
    traces[0, 1] = 0.0
    np.testing.assert_allclose(found.traces, traces, rtol=1e-6)


def test_actions_are_as_frequent_as_their_behaviour():
    agent, _ = make()
    assert agent.act is not None
    state, key, count = start(agent), jax.random.key(7), 4000
    options = {"apply": linear, "law": LAW, "epsilon": lambda step: 0.3}
    seen = jnp.eye(STATES)
    probs = distributional_q.behaviour(state, seen, key, **options)
    best = distributional_q.greedy(state, seen, apply=linear, law=LAW)
    np.testing.assert_array_equal(best, values_of(state.params["table"]).argmax(axis=-1))
    np.testing.assert_allclose(probs, 0.1 + 0.7 * np.eye(ACTIONS)[best], rtol=1e-6)
    actions = agent.act(state, jnp.repeat(seen[:, None], count, axis=1), key)
    frequencies = (np.asarray(actions)[..., None] == np.arange(ACTIONS)).mean(axis=1)
    np.testing.assert_allclose(frequencies, probs, atol=4 * np.sqrt(0.25 / count))
    # Without exploration the best one is taken, by logarithms of 0.
    sure = functools.partial(
        distributional_q.act, apply=linear, law=LAW, epsilon=lambda step: 0.0 * step
    )
    np.testing.assert_array_equal(sure(state, seen, key), best)


def test_exploration_follows_the_optimiser_steps():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    state = start(make()[0])._replace(step=jnp.asarray(4))
    probs = distributional_q.behaviour(
        state, jnp.eye(STATES), jax.random.key(0), apply=linear, law=LAW, epsilon=schedule
    )
    np.testing.assert_allclose(probs.max(axis=-1), 0.4 + 0.6 / ACTIONS, rtol=1e-6)


def test_noisy_layers_act_as_they_say_under_the_same_key():
    config = value.ValueNetworkConfig((STATES,), ACTIONS, 5, hidden_sizes=(8,), noisy=True)
    apply = functools.partial(value.apply, config)
    agent, _ = make(apply=apply)
    state = agent.init(jax.random.key(0), params=value.init(config, jax.random.key(0)))
    options = {"apply": apply, "law": LAW, "epsilon": lambda step: 0.0}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def play(key):
        law = distributional_q.behaviour(state, jnp.eye(STATES), key, **options)
        return law, distributional_q.act(state, jnp.eye(STATES), key, **options)

    laws, actions = play(jax.random.split(jax.random.key(1), 200))
    # Each key is one draw of the weights, in which one action of each state is the best.
    np.testing.assert_array_equal(laws.argmax(axis=-1), actions)
    np.testing.assert_allclose(laws.max(axis=-1), 1.0)
    again, _ = play(jax.random.split(jax.random.key(1), 200))
    np.testing.assert_array_equal(laws, again)
    assert all(len(set(column.tolist())) > 1 for column in np.asarray(actions).T)


@pytest.mark.parametrize(
    ("rule", "shares"), [(followers.every(2), (0.0, 1.0)), (followers.average(0.75), (0.25, 0.25))]
)
def test_the_target_follows_its_rule(rule, shares):
    agent, _ = make(target_rule=rule)
    state, batch, update = start(agent), make_batch(2), jax.jit(agent.update)
    for share in shares:
        before = state.target_params["table"]
        state, _ = update(state, batch)
        expected = share * state.params["table"] + (1 - share) * before
        np.testing.assert_allclose(state.target_params["table"], expected, atol=1e-6)
    assert int(state.step) == 2


def test_states_hold_every_buffer_once_so_that_updates_may_take_them():
    agent, _ = make(target_rule=followers.every(1))
    given = {"table": jnp.ones((STATES, ACTIONS, 5))}
    update = jax.jit(agent.update, donate_argnums=0)
    states = (
        agent.init(jax.random.key(0), params=given),
        agent.init(jax.random.key(0), params=given, reference_params=given),
        jax.jit(agent.init)(jax.random.key(0)),
    )
    for state in states:
        same(state.target_params, state.params)
        state, _ = update(state, make_batch(2))
        state, metrics = update(state, make_batch(2))
        assert np.isfinite(metrics["loss"])
    assert not given["table"].is_deleted()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": 1.1}, r"mixing must be in \[0, 1\], got 1.1"),
        ({"mixing": float("nan")}, "mixing must be"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\], got -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: return_laws.quantile(kappa=-1.0), "kappa must be at least 0, got -1.0"),
        (lambda: return_laws.categorical(SUPPORT, kind="clip"), "kind must be .* got 'clip'"),
        (lambda: return_laws.categorical(SUPPORT[::-1]), "support must increase strictly"),
    ],
)
def test_laws_that_are_none_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
