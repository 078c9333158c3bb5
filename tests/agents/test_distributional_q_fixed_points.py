"""Distributional Q-learning against what it must learn: exact laws and values of small MDPs.

Batches hold every trajectory, weighed by its probability, so that an update is its expectation.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax import losses
from bellmax.agents import SequenceBatch, distributional_q, followers, return_laws, tabular

# Spec, test A7: two states, two actions.
TRANSITION = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
REWARD = np.array([[1.0, 0.0], [-1.0, 0.5]])
UNIFORM = np.full((2, 2), 0.5)


def linear(params, observations, key=None):
    """A network that reads a table: one-hot states to outputs of every action."""
    del key
    return jnp.einsum("...s,sak->...ak", observations, params["table"])


def all_trajectories(transition, reward, behaviour, length):
    """Returns all trajectories, and state and action with which each begins, all equally likely."""
    states, actions = reward.shape
    places = [range(states), range(actions)] * length + [range(states)]
    paths = np.array(list(itertools.product(*places)))
    x, a = paths[:, ::2], paths[:, 1::2]
    weight = np.prod(transition[x[:, :-1], a, x[:, 1:]], axis=1) / (states * actions)
    weight = weight * np.prod(behaviour[x[:, 1:-1], a[:, 1:]], axis=1)
    x, a, weight = x[weight > 0], a[weight > 0], weight[weight > 0]
    batch = SequenceBatch(
        observations=jnp.asarray(np.eye(states, dtype=np.float32)[x]),
        actions=jnp.asarray(a),
        rewards=jnp.asarray(reward[x[:, :-1], a], jnp.float32),
        terminated=jnp.zeros(a.shape, bool),
        truncated=jnp.zeros(a.shape, bool),
        behaviour_probs=jnp.asarray(behaviour[x[:, :-1]], jnp.float32),
        weight=jnp.asarray(weight, jnp.float32),
        last_behaviour_probs=jnp.asarray(behaviour[x[:, -1]], jnp.float32),
    )
    return batch, (x[:, 0], a[:, 0])


def average(values, batch, firsts, shape):
    """Returns the weighted mean of the rows that begin with each pair."""
    totals, counts, weight = np.zeros(shape), np.zeros(shape), np.asarray(batch.weight, np.float64)
    np.add.at(totals, firsts, weight * np.asarray(values, np.float64))
    np.add.at(counts, firsts, weight)
    return totals / counts


def make(law, *, trace_decay, rate, mixing=1.0, discount=0.9):
    options = {
        "apply": linear,
        "law": law,
        "trace_fn": functools.partial(losses.q_lambda_traces, trace_decay=trace_decay),
        "mixing": mixing,
        "discount": discount,
        "double": False,
    }
    agent = distributional_q.make(
        **options,
        optimizer=optax.sgd(rate),
        init_params=lambda key: {"table": jax.random.normal(key, (1,))},
        target_rule=followers.every(1),
        epsilon=lambda step: 0.1,
    )
    return agent, jax.jit(functools.partial(distributional_q.td_errors, **options))


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(update, state, batch, steps):
    return jax.lax.fori_loop(0, steps, lambda _, state: update(state, batch)[0], state)


def start(agent, table):
    return agent.init(jax.random.key(0), params={"table": jnp.asarray(table, jnp.float32)})


# Spec, test B2.
CHAIN, CHAIN_REWARD = np.array([[[0.6, 0.4]], [[0.2, 0.8]]]), np.array([[1.0], [0.0]])
CHAIN_SUPPORT = jnp.linspace(0.0, 10.0, 5)
CHAIN_LAWS = (
    (0.110681115, 0.312177503, 0.340557276, 0.189628483, 0.046955624),
    (0.295149639, 0.383126935, 0.234133127, 0.076754386, 0.010835913),
)


def test_one_step_learns_the_categorical_fixed_point_of_a_chain():
    law = return_laws.categorical(CHAIN_SUPPORT)
    agent, _ = make(law, trace_decay=0.0, rate=6.0)
    batch, _ = all_trajectories(CHAIN, CHAIN_REWARD, np.ones((2, 1)), 1)
    state = train(agent.update, start(agent, np.zeros((2, 1, 5))), batch, 4000)
    learnt = jax.nn.softmax(state.params["table"][:, 0])
    np.testing.assert_allclose(learnt, CHAIN_LAWS, atol=2e-5)
    exact = tabular.categorical_fixed_point(
        jnp.asarray(CHAIN[:, 0]), jnp.asarray(CHAIN_REWARD[:, 0]), 0.9, CHAIN_SUPPORT
    )
    np.testing.assert_allclose(learnt, exact, atol=2e-5)


@pytest.mark.parametrize("kind", ["cross_entropy", "cramer", "clipped"])
def test_the_fixed_point_is_where_every_loss_stands_still(kind):
    law = return_laws.categorical(CHAIN_SUPPORT, kind=kind)
    agent, td_errors = make(law, trace_decay=0.0, rate=1.0)
    batch, firsts = all_trajectories(CHAIN, CHAIN_REWARD, np.ones((2, 1)), 1)
    state = start(agent, np.log(CHAIN_LAWS)[:, None])
    _, metrics = jax.jit(agent.update)(state, batch)
    assert float(metrics["grad_norm"]) < 2e-6
    errors = average(td_errors(state, batch), batch, firsts, (2, 1))
    np.testing.assert_allclose(errors, 0.0, atol=5e-6)
    # The values of the chain by hand: (I - 0.9 P)^-1 r.
    values = distributional_q.q_values(state.params, jnp.eye(2), apply=linear, law=law)
    np.testing.assert_allclose(values[:, 0], [4.375, 2.8125], rtol=1e-6)


def test_q_lambda_on_policy_learns_the_values_of_a_chain():
    # With one action there is no other policy; nothing is clipped, since 10 = 1 / (1 - 0.9).
    law = return_laws.categorical(CHAIN_SUPPORT)
    agent, _ = make(law, trace_decay=0.7, rate=6.0, mixing=0.3)
    batch, _ = all_trajectories(CHAIN, CHAIN_REWARD, np.ones((2, 1)), 3)
    state = train(agent.update, start(agent, np.zeros((2, 1, 5))), batch, 4000)
    values = distributional_q.q_values(state.params, jnp.eye(2), apply=linear, law=law)
    np.testing.assert_allclose(values[:, 0], [4.375, 2.8125], rtol=1e-4)


def backed_up(values, behaviour, *, length, trace_decay, mixing, discount=0.9):
    """Returns expected returns of T steps from every pair: the scalar recursion, backwards."""
    greedy = np.eye(values.shape[1])[values.argmax(axis=1)]
    mixed = mixing * greedy + (1 - mixing) * behaviour
    returns = REWARD + discount * TRANSITION @ (mixed * values).sum(axis=1)
    for _ in range(length - 1):
        corrected = mixed * values + trace_decay * behaviour * (returns - values)
        returns = REWARD + discount * TRANSITION @ corrected.sum(axis=1)
    return returns


@pytest.mark.parametrize("mixing", [1.0, 0.8, 0.0])
def test_expected_errors_off_policy_are_those_of_the_scalar_recursion(mixing):
    law = return_laws.categorical(jnp.linspace(-10.0, 10.0, 41))
    agent, td_errors = make(law, trace_decay=0.6, rate=1.0, mixing=mixing)
    behaviour = np.array([[0.3, 0.7], [0.5, 0.5]])
    batch, firsts = all_trajectories(TRANSITION, REWARD, behaviour, 3)
    state = start(agent, np.random.default_rng(0).normal(size=(2, 2, 41)))
    values = distributional_q.q_values(state.params, jnp.eye(2), apply=linear, law=law)
    values = np.asarray(values, np.float64)
    expected = backed_up(values, behaviour, length=3, trace_decay=0.6, mixing=mixing) - values
    found = average(td_errors(state, batch), batch, firsts, (2, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_what_is_learnt_does_not_depend_on_the_length_of_sequences(length):
    """The values of the mixed policy are the fixed point whatever T and lambda are."""
    mixing, behaviour = 0.7, np.array([[0.3, 0.7], [0.5, 0.5]])
    values = np.zeros((2, 2))
    for _ in range(500):
        greedy = np.eye(2)[values.argmax(axis=1)]
        mixed = mixing * greedy + (1 - mixing) * behaviour
        values = REWARD + 0.9 * TRANSITION @ (mixed * values).sum(axis=1)
    backup = functools.partial(backed_up, behaviour=behaviour, trace_decay=0.7, mixing=mixing)
    np.testing.assert_allclose(backup(values, length=length), values, rtol=1e-12)
    # A table of two atoms holds those values exactly: the agent has no error there.
    law = return_laws.categorical(jnp.array([-20.0, 20.0]))
    _, td_errors = make(law, trace_decay=0.7, rate=1.0, mixing=mixing)
    agent, _ = make(law, trace_decay=0.7, rate=1.0, mixing=mixing)
    upper = (values + 20) / 40
    state = start(agent, np.log(np.stack([1 - upper, upper], axis=-1)))
    batch, firsts = all_trajectories(TRANSITION, REWARD, behaviour, length)
    found = average(td_errors(state, batch), batch, firsts, (2, 2))
    np.testing.assert_allclose(found, 0.0, atol=2e-5)


def optimal_values():
    values = np.zeros((2, 2))
    for _ in range(500):
        values = REWARD + 0.9 * TRANSITION @ values.max(axis=1)
    return values


def test_q_lambda_off_policy_learns_the_optimal_values():
    law = return_laws.categorical(jnp.linspace(-10.0, 10.0, 9))
    agent, _ = make(law, trace_decay=0.3, rate=6.0)
    batch, _ = all_trajectories(TRANSITION, REWARD, UNIFORM, 3)
    state = train(agent.update, start(agent, np.zeros((2, 2, 9))), batch, 4000)
    values = distributional_q.q_values(state.params, jnp.eye(2), apply=linear, law=law)
    # Atoms that the optimum does not have lose their mass like 1 / t.
    np.testing.assert_allclose(values, optimal_values(), atol=0.05)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_one_update_moves_logits_by_the_exact_multistep_operator(num_steps):
    """Cross-entropy has gradient p - q, so that a step of SGD shows the expected target."""
    # At discount 1 with whole rewards atoms move on the grid and are never split; three moves of
    # at most 1 from the middle are not clipped. There one projection equals one a step.
    support, rng = jnp.linspace(0.0, 10.0, 11), np.random.default_rng(1)
    reward, behaviour = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([[0.3, 0.7], [0.6, 0.4]])
    laws = np.zeros((2, 2, 11))
    laws[..., 3:8] = rng.dirichlet(np.ones(5), (2, 2))
    law = return_laws.categorical(support)
    agent, _ = make(law, trace_decay=0.5, rate=4.0, discount=1.0)
    batch, _ = all_trajectories(TRANSITION, reward, behaviour, num_steps)
    before = start(agent, np.log(np.maximum(laws, 1e-12)))
    after, _ = jax.jit(agent.update)(before, batch)
    # Each of the 4 pairs has a quarter of the weight, which the rate takes back.
    targets = laws + after.params["table"] - before.params["table"]
    best = (laws @ np.asarray(support)).argmax(axis=-1)
    expected = tabular.q_lambda_dp_step(
        jnp.asarray(laws),
        jnp.asarray(TRANSITION),
        jnp.asarray(reward),
        jnp.eye(2)[best],
        jnp.asarray(behaviour),
        1.0,
        support,
        trace_decay=0.5,
        num_steps=num_steps,
    )
    np.testing.assert_allclose(targets, expected, atol=2e-5)
    assert (np.asarray(expected) < -1e-3).any() == (num_steps > 1)


@pytest.mark.parametrize("length", [1, 3])
def test_quantiles_learn_the_return_of_a_deterministic_episode(length):
    # Rewards 1, 2, 3 and the end: returns 1 + (2 + 3 / 2) / 2, 2 + 3 / 2 and 3. What would follow
    # the end is NaN.
    agent, td_errors = make(return_laws.quantile(), trace_decay=0.7, rate=3.0, discount=0.5)
    steps = np.arange(3)[:, None] + np.arange(length)
    rewards = np.where(steps < 3, 1.0 + steps, np.nan)
    batch = SequenceBatch(
        observations=jnp.asarray(np.eye(6)[np.arange(3)[:, None] + np.arange(length + 1)]),
        actions=jnp.zeros(steps.shape, jnp.int32),
        rewards=jnp.asarray(rewards),
        terminated=jnp.asarray(steps == 2),
        truncated=jnp.zeros(steps.shape, bool),
        behaviour_probs=jnp.ones((*steps.shape, 1)),
    )
    table = np.random.default_rng(2).normal(size=(6, 1, 3))
    state = train(agent.update, start(agent, table), batch, 300)
    expected = np.array([2.75, 3.5, 3.0])
    np.testing.assert_allclose(state.params["table"][:3, 0], expected[:, None] * np.ones(3), 1e-4)
    np.testing.assert_allclose(td_errors(state, batch), 0.0, atol=1e-3)
