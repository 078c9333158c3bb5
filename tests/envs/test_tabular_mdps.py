"""Tabular MDPs: tables that are laws, published numbers, and an environment that samples them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import DiscreteSpec, chains, gridworlds, tabular, wrappers


def draw(seed):
    key = jax.random.key(seed)
    return chains.garnet(
        key, num_states=7, num_actions=3, branching=2, reward_law=jax.random.uniform
    )


BUILDERS = {
    "two_state": chains.two_state,
    "chain": lambda: chains.chain(6, success=0.8),
    "garnet": lambda: draw(0),
    "near_certain": lambda: chains.garnet(jax.random.key(1), num_states=9, concentration=0.01),
    "low_random": lambda: chains.low_random(jax.random.key(1)),
    "high_random": lambda: chains.high_random(jax.random.key(1)),
    "lake": gridworlds.frozen_lake,
    "large_lake": lambda: gridworlds.frozen_lake(gridworlds.LAKE_8X8),
    "cliff": gridworlds.cliff_walk,
}


def optimal_values(mdp, discount, sweeps):
    """Value iteration, in NumPy."""
    transition, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
    values = np.zeros(mdp.num_states)
    for _ in range(sweeps):
        values = (reward + discount * transition @ values).max(axis=1)
    return values


@pytest.mark.parametrize("name", BUILDERS)
def test_tables_are_laws(name):
    mdp = BUILDERS[name]()
    assert mdp.transition.shape == (mdp.num_states, mdp.num_actions, mdp.num_states)
    assert mdp.reward.shape == (mdp.num_states, mdp.num_actions)
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1, atol=1e-6)
    assert mdp.transition.min() >= 0
    np.testing.assert_allclose(mdp.initial.sum(), 1)
    for state in np.flatnonzero(mdp.terminal):
        np.testing.assert_array_equal(mdp.transition[state, :, state], 1)
        np.testing.assert_array_equal(mdp.reward[state], 0)


def test_two_state_and_chain_by_hand():
    mdp = chains.two_state()
    np.testing.assert_allclose(mdp.transition[:, 0], [[0.6, 0.4], [0.2, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(mdp.reward[:, 0], [1, 0])
    mdp = chains.chain(3, success=0.75)
    left = [[0.75, 0.25, 0], [0.75, 0, 0.25], [0, 0.75, 0.25]]
    right = [[0.25, 0.75, 0], [0.25, 0, 0.75], [0, 0.25, 0.75]]
    np.testing.assert_allclose(mdp.transition[:, 0], left)
    np.testing.assert_allclose(mdp.transition[:, 1], right)
    np.testing.assert_array_equal(mdp.reward, [[0, 0], [0, 0], [1, 1]])


def test_garnet_has_its_branching_and_concentration():
    mdp = BUILDERS["garnet"]()
    assert np.all(np.sum(np.asarray(mdp.transition) > 0, axis=-1) == 2)
    assert mdp.reward.min() >= 0
    assert mdp.reward.max() <= 1
    # The largest probability of a Dirichlet law: near 1 for a small concentration, near 1 / S for a
    # large one.
    spread = {
        concentration: float(
            chains.garnet(jax.random.key(2), num_states=9, concentration=concentration)
            .transition.max(axis=-1)
            .mean()
        )
        for concentration in (0.01, 1000.0)
    }
    assert spread[0.01] > 0.8
    assert 1 / 9 < spread[1000.0] < 0.14


def test_low_random_is_nearly_certain_and_high_random_nearly_uniform():
    low, high = BUILDERS["low_random"](), BUILDERS["high_random"]()
    for mdp in (low, high):
        assert mdp.transition.shape == (10, 1, 10)
        assert 0 <= float(mdp.reward.min()) <= float(mdp.reward.max()) <= 1
    assert float(low.transition.max(axis=-1).mean()) > 0.9
    assert float(high.transition.max()) < 0.3


def test_two_draws_differ_and_a_draw_repeats():
    first, again, other = (draw(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.transition, again.transition)
    assert np.abs(np.asarray(first.transition - other.transition)).max() > 0.1


@pytest.mark.parametrize(
    ("lake", "value"),
    [
        # Exact: from the start the best policy reaches the goal with probability 14 / 17, and on
        # the large lake surely.
        (gridworlds.LAKE_4X4, 14 / 17),
        (gridworlds.LAKE_8X8, 1.0),
    ],
)
def test_frozen_lake_is_solved_as_often_as_published(lake, value):
    mdp = gridworlds.frozen_lake(lake)
    np.testing.assert_allclose(optimal_values(mdp, 1.0, 5000)[0], value, atol=2e-4)


def test_frozen_lake_has_the_published_value_at_discount_099():
    # V*(0) = 0.5420259 at discount 0.99, as value iteration on Gymnasium's table gives; here the
    # goal pays one step later.
    values = optimal_values(gridworlds.frozen_lake(), 0.99, 3000)
    np.testing.assert_allclose(values[0] / 0.99, 0.5420259, atol=1e-5)


def test_frozen_lake_rows_by_hand():
    mdp = gridworlds.frozen_lake()
    # Cell 0, left: stays by moving left or slipping up, slips down to cell 4.
    np.testing.assert_allclose(mdp.transition[0, 0, [0, 4]], [2 / 3, 1 / 3], rtol=1e-6)
    # Cell 14, right: goal 15, or the edge below, or up to 10.
    np.testing.assert_allclose(mdp.transition[14, 2, [15, 14, 10]], 1 / 3, rtol=1e-6)
    # Cell 6, up: up to 2, or the holes at 5 and 7.
    np.testing.assert_allclose(mdp.transition[6, 3, [2, 5, 7]], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(mdp.transition[15, :, 16], 1)
    np.testing.assert_array_equal(mdp.reward.sum(axis=1), 4 * np.eye(17)[15])
    assert np.flatnonzero(mdp.terminal).tolist() == [5, 7, 11, 12, 16]
    firm = gridworlds.frozen_lake(success=1.0)
    np.testing.assert_array_equal(firm.transition[0, 1], np.eye(17)[4])


def test_cliff_walk_is_thirteen_steps_long():
    mdp = gridworlds.cliff_walk()
    # Up, 11 times right, down.
    assert optimal_values(mdp, 1.0, 100)[36] == -13
    assert mdp.reward[36, 1] == -100
    np.testing.assert_array_equal(mdp.transition[36, 1], np.eye(48)[36])
    np.testing.assert_array_equal(mdp.transition[35, 2], np.eye(48)[47])
    assert np.flatnonzero(mdp.terminal).tolist() == [47]


def test_steps_follow_the_tables():
    mdp = BUILDERS["garnet"]()
    count = 20_000

    def sample(key):
        keys = jax.random.split(key)
        state, first = tabular.reset(keys[0], mdp)
        following, seen = tabular.step(keys[1], state, jnp.array(2), mdp)
        return first, following, seen

    first, following, seen = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), count))
    np.testing.assert_array_equal(first.observation, 0)
    np.testing.assert_array_equal(first.reward, 0)
    np.testing.assert_array_equal(seen.reward, mdp.reward[0, 2])
    np.testing.assert_array_equal(seen.observation, following.place)
    np.testing.assert_array_equal(following.time, 1)
    shares = np.bincount(seen.observation, minlength=7) / count
    # Five standard errors of a share.
    np.testing.assert_allclose(shares, mdp.transition[0, 2], atol=5 * 0.5 / np.sqrt(count))


def test_ends_are_kept_apart():
    mdp = gridworlds.frozen_lake(success=1.0, max_steps=3)
    step = jax.jit(tabular.step)
    state, seen = jax.jit(tabular.reset)(jax.random.key(0), mdp)
    ends = [(bool(seen.terminated), bool(seen.truncated))]
    for action in (0, 0, 0):
        state, seen = step(jax.random.key(1), state, jnp.array(action), mdp)
        ends.append((bool(seen.terminated), bool(seen.truncated)))
    assert ends == [(False, False)] * 3 + [(False, True)]
    # Down and right is a hole at the moment of the limit: it has ended, and was not cut off.
    state, seen = tabular.reset(jax.random.key(0), mdp)
    for action in (0, 1, 2):
        state, seen = step(jax.random.key(1), state, jnp.array(action), mdp)
    assert (int(seen.observation), bool(seen.terminated), bool(seen.truncated)) == (5, True, False)
    state, seen = step(jax.random.key(1), state, jnp.array(2), mdp)
    assert (int(seen.observation), float(seen.reward)) == (5, 0.0)


def test_reset_and_step_have_one_structure():
    mdp = chains.two_state()
    before = jax.eval_shape(tabular.reset, jax.random.key(0), mdp)
    after = jax.eval_shape(tabular.step, jax.random.key(0), before[0], jnp.array(0), mdp)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    described = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(t)] for t in (before, after)]
    assert described[0] == described[1]


def test_episodes_follow_each_other_under_auto_reset():
    mdp = gridworlds.cliff_walk(max_steps=2)
    env = wrappers.auto_reset(tabular.environment(mdp))
    assert env.action_spec == DiscreteSpec(4)
    assert env.observation_spec == DiscreteSpec(48)
    state, first = jax.jit(env.reset)(jax.random.key(0), env.params)
    step = jax.jit(env.step)
    seen = [(int(first.observation), float(first.reward), False)]
    for seed in range(4):
        state, after = step(jax.random.key(seed), state, jnp.array(0), env.params)
        seen.append((int(after.observation), float(after.reward), bool(after.truncated)))
    # Up twice, cut off; the next step only shows the start; up again.
    assert seen == [
        (36, 0, False),
        (24, -1, False),
        (12, -1, True),
        (36, 0, False),
        (24, -1, False),
    ]


def test_chains_of_a_policy_by_sums():
    mdp = BUILDERS["garnet"]()
    policy = np.random.default_rng(0).dirichlet(np.ones(3), 7).astype(np.float32)
    transition, reward = tabular.policy_chain(mdp, jnp.array(policy))
    tables = [np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)]
    for state in range(7):
        law = sum(policy[state, a] * tables[0][state, a] for a in range(3))
        np.testing.assert_allclose(transition[state], law, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(reward[state], policy[state] @ tables[1][state], rtol=1e-5)
    pairs, pair_reward = tabular.action_chain(mdp, jnp.array(policy))
    for state, action, following, later in ((0, 0, 3, 1), (5, 2, 1, 0), (6, 1, 6, 2)):
        expected = tables[0][state, action, following] * policy[following, later]
        np.testing.assert_allclose(pairs[3 * state + action, 3 * following + later], expected)
        np.testing.assert_allclose(pair_reward[3 * state + action], tables[1][state, action])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: tabular.make(jnp.ones((2, 2)), jnp.ones((2, 1)), 0.9), "transition"),
        (lambda: tabular.make(jnp.ones((2, 1, 2)), jnp.ones(2), 0.9), "reward"),
        (lambda: tabular.make(jnp.ones((2, 1, 2)), jnp.ones((2, 1)), 1.0), "discount"),
        (
            lambda: tabular.make(
                jnp.ones((2, 1, 2)), jnp.ones((2, 1)), 0.9, initial=jnp.ones((2, 1))
            ),
            "initial",
        ),
        (
            lambda: tabular.make(
                jnp.ones((2, 1, 2)), jnp.ones((2, 1)), 0.9, terminal=jnp.ones(3, bool)
            ),
            "terminal",
        ),
        (lambda: chains.two_state(discount=-0.1), "discount"),
        (lambda: chains.chain(1), "num_states"),
        (lambda: chains.chain(3, success=1.5), "success"),
        (lambda: chains.garnet(jax.random.key(0), num_states=0), "num_states"),
        (lambda: chains.garnet(jax.random.key(0), num_states=3, branching=4), "branching"),
        (
            lambda: chains.garnet(jax.random.key(0), num_states=3, concentration=0.0),
            "concentration",
        ),
        (lambda: gridworlds.frozen_lake(("SF", "FFG")), "lake"),
        (lambda: gridworlds.frozen_lake(("SF", "FX")), "lake"),
        (lambda: gridworlds.frozen_lake(("SF", "FF")), "goal"),
        (lambda: gridworlds.frozen_lake(success=-0.1), "success"),
        (lambda: gridworlds.cliff_walk(max_steps=0), "max_steps"),
        (lambda: tabular.policy_chain(chains.two_state(), jnp.ones((1, 2))), "policy"),
        (lambda: tabular.action_chain(chains.two_state(), jnp.ones(2)), "policy"),
    ],
)
def test_refuses_what_is_wrong(call, word):
    with pytest.raises(ValueError, match=word):
        call()
