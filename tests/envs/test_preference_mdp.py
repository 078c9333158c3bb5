"""Preference MDPs: tables that are laws, and an environment that samples from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import preference_mdp

BUILDERS = {
    "deterministic": preference_mdp.deterministic_tree,
    "stochastic": preference_mdp.stochastic_tree,
    "random_tree": lambda: preference_mdp.random_tree(jax.random.key(0), horizon=3, num_actions=2),
    "random_mdp": lambda: preference_mdp.random_mdp(
        jax.random.key(1), horizon=2, num_states=3, num_actions=2
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_tables_are_laws_and_preferences(name):
    mdp = BUILDERS[name]()
    assert mdp.transition.shape == (
        mdp.horizon,
        mdp.num_states,
        mdp.num_actions,
        mdp.num_states,
    )
    assert mdp.reference.shape == mdp.transition.shape[:3]
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(mdp.reference.sum(axis=-1), 1, rtol=1e-6)
    assert mdp.transition.min() >= 0
    np.testing.assert_allclose(mdp.final_preference + mdp.final_preference.T, 1, rtol=1e-6)


def test_small_trees_by_hand():
    for mdp, follow in (
        (preference_mdp.deterministic_tree(), [[1, 0], [0, 1]]),
        (preference_mdp.stochastic_tree(), [[0.8, 0.2], [0.3, 0.7]]),
    ):
        np.testing.assert_allclose(mdp.transition[0, 0, :, :2], follow, rtol=1e-6)
        np.testing.assert_allclose(mdp.transition[0, 0, :, 2:], 0)
        # A (0) leads to A0, A1 and B (1) to B0, B1, whatever the other side says.
        np.testing.assert_allclose(mdp.transition[1, :2].reshape(4, 4), np.eye(4))
        np.testing.assert_allclose(mdp.reference[0, 0], [0.6, 0.4])
        np.testing.assert_allclose(mdp.reference[1, :2], [[0.5, 0.5], [0.7, 0.3]])
        np.testing.assert_allclose(mdp.final_preference[0], [0.5, 0.8, 0.3, 0.6])
        assert mdp.initial_state == 0


def test_random_tree_has_disjoint_children():
    mdp = BUILDERS["random_tree"]()
    reached = np.eye(8)[0]
    for turn in range(3):
        states = np.flatnonzero(reached)
        assert states.tolist() == list(range(2**turn))
        for state in states:
            (children,) = np.nonzero(np.asarray(mdp.transition[turn, state]).sum(axis=0))
            assert children.tolist() == [2 * state, 2 * state + 1]
        reached = np.einsum("x,xyz->z", reached, mdp.transition[turn])


def rollouts(mdp, count):
    """States, time steps and actions of many conversations under the reference."""

    def one(key):
        reset_key, *keys = jax.random.split(key, 1 + 2 * mdp.horizon)
        state, first = preference_mdp.reset(reset_key, mdp)
        seen = [first]
        for turn in range(mdp.horizon):
            logits = jnp.log(mdp.reference[turn, state.place])
            action = jax.random.categorical(keys[2 * turn], logits)
            state, seen_now = preference_mdp.step(keys[2 * turn + 1], state, action, mdp)
            seen.append(seen_now)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), count))


def test_conversations_follow_the_tables():
    mdp, count = preference_mdp.stochastic_tree(), 20_000
    ends, steps = rollouts(mdp, count)
    # A with 0.6 * 0.8 + 0.4 * 0.3 = 0.6; then (0.5, 0.5) and (0.7, 0.3).
    law = np.array([0.3, 0.3, 0.28, 0.12])
    found = np.bincount(ends.place, minlength=4) / count
    np.testing.assert_array_less(np.abs(found - law), 5 * np.sqrt(law * (1 - law) / count))
    np.testing.assert_array_equal(steps.observation[0, :, 0], [0, 1, 2])
    np.testing.assert_array_equal(steps.observation[:, -1, 1], ends.place)
    np.testing.assert_array_equal(steps.terminated[0], [False, False, True])
    assert not steps.truncated.any()
    assert not steps.reward.any()


def test_preferences_follow_the_table():
    mdp, count = preference_mdp.deterministic_tree(), 20_000
    first, second = (preference_mdp.State(jnp.array(place), jnp.array(2)) for place in (0, 3))
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.vmap(lambda key: preference_mdp.prefer(key, first, second, mdp))(keys)
    np.testing.assert_allclose(drawn.mean(), 0.6, atol=5 * np.sqrt(0.24 / count))


def test_reset_and_step_have_one_structure():
    mdp = preference_mdp.stochastic_tree()
    key, action = jax.random.key(0), jnp.array(1)
    first = jax.eval_shape(preference_mdp.reset, key, mdp)
    later = jax.eval_shape(preference_mdp.step, key, first[0], action, mdp)
    assert jax.tree.structure(first) == jax.tree.structure(later)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(later), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)


def test_a_conversation_that_has_ended_stays():
    mdp = preference_mdp.deterministic_tree()
    ended = preference_mdp.State(jnp.array(3, jnp.int32), jnp.array(2, jnp.int32))
    state, seen = preference_mdp.step(jax.random.key(0), ended, jnp.array(0), mdp)
    assert (int(state.place), int(state.turn)) == (3, 2)
    assert seen.terminated


def test_tables_may_be_swept():
    many = jax.vmap(lambda key: preference_mdp.random_tree(key, horizon=2, num_actions=2))(
        jax.random.split(jax.random.key(0), 3)
    )
    keys = jax.random.split(jax.random.key(1), 3)
    state, seen = jax.vmap(preference_mdp.reset)(keys, many)
    state, seen = jax.vmap(preference_mdp.step)(keys, state, jnp.array([0, 1, 0]), many)
    assert seen.observation.shape == (3, 2)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (
            lambda: preference_mdp.random_tree(jax.random.key(0), horizon=0, num_actions=2),
            "horizon",
        ),
        (
            lambda: preference_mdp.random_mdp(
                jax.random.key(0), horizon=1, num_states=1, num_actions=2
            ),
            "num_states",
        ),
        (lambda: preference_mdp.tree(jnp.ones((4, 4)), jnp.ones((2, 3, 2))), "final states"),
        (lambda: preference_mdp.tree(jnp.ones((4, 4)), jnp.ones((2, 4))), "reference"),
        (
            lambda: preference_mdp.tree(
                jnp.ones((4, 4)), jnp.ones((2, 4, 2)), jnp.ones((2, 4, 2, 3))
            ),
            "branching",
        ),
    ],
)
def test_refuses_sizes_that_do_not_fit(make, word):
    with pytest.raises(ValueError, match=word):
        make()
