"""Named games against their definitions and equilibria; builders and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import preference_games as games

NAMED = {
    "rock_paper_scissors": (games.rock_paper_scissors, np.full(3, 1 / 3)),
    "dice": (games.dice, np.full(3, 1 / 3)),
    "asymmetric_cycle": (games.asymmetric_cycle, np.array([0.3, 0.3, 0.4])),
    "four_actions": (games.four_actions, np.array([1, 4, 0, 2]) / 7),
    "rater_types": (lambda: games.rater_types(0.1), np.array([1 / 3 + 0.05, 1 / 3 + 0.05, 7 / 30])),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", NAMED)
def test_named_games_and_their_equilibria(name):
    make, nash = NAMED[name]
    game = make()
    preference = np.asarray(game.preference)
    np.testing.assert_allclose(preference + preference.T, 1, atol=1e-15)
    np.testing.assert_allclose(np.diag(preference), 0.5)
    np.testing.assert_allclose(game.reference, 1 / game.num_actions)
    np.testing.assert_allclose(nash.sum(), 1)
    # No action beats the equilibrium.
    assert (preference @ nash).max() <= 0.5 + 1e-12
    # Somebody beats somebody in a ring.
    wins = (preference > 0.5).astype(int)
    assert np.trace(np.linalg.matrix_power(wins, 3)) > 0


def test_three_cycle_rule():
    # Advantages a of 1 over 2, b of 2 over 3, c of 3 over 1: (b, c, a) / (a + b + c).
    preference = np.asarray(games.asymmetric_cycle().preference)
    a, b, c = preference[0, 1] - 0.5, preference[1, 2] - 0.5, preference[2, 0] - 0.5
    np.testing.assert_allclose([a, b, c], [0.4, 0.3, 0.3], atol=1e-15)
    nash = np.array([b, c, a]) / (a + b + c)
    np.testing.assert_allclose(preference @ nash, 0.5, atol=1e-15)


def test_dice_by_throwing_them():
    # A classic non-transitive set; faces as likely as each other.
    faces = [(2, 4, 9), (1, 6, 8), (3, 5, 7)]
    expected = [
        [0.5 if d is e else np.mean([x > y for x in d for y in e]) for e in faces] for d in faces
    ]
    np.testing.assert_allclose(games.dice().preference, np.array(expected), atol=1e-15)


@pytest.mark.parametrize("imbalance", [-1 / 3, -0.01, 0.0, 0.1, 1 / 3])
def test_rater_types_are_a_population(imbalance):
    shares = np.array([1 / 3 - imbalance, 1 / 3 + imbalance / 2, 1 / 3 + imbalance / 2])
    preference = np.full((3, 3), 0.5)
    for share, (better, worse) in zip(shares, [(1, 0), (0, 2), (2, 1)], strict=True):
        preference[better, worse] += share / 2
        preference[worse, better] -= share / 2
    game = games.rater_types(imbalance)
    np.testing.assert_allclose(game.preference, preference, atol=1e-15)
    np.testing.assert_allclose(game.preference[1, 0], 2 / 3 - imbalance / 2, atol=1e-15)
    nash = np.array([1 / 3 + imbalance / 2, 1 / 3 + imbalance / 2, 1 / 3 - imbalance])
    np.testing.assert_allclose(preference @ nash, 0.5, atol=1e-15)


def test_rater_types_can_be_swept():
    swept = jax.vmap(lambda e: games.rater_types(e).preference)(jnp.array([0.0, 0.2]))
    np.testing.assert_allclose(swept[1], games.rater_types(0.2).preference, atol=1e-15)


def test_best_elo_is_not_the_best_win_rate_under_constraints():
    # Rewards (0, log 9, log 2) and policies with pi_1 = 2 pi_2. The mean reward is log 2 + q log
    # (9/8), best at q = 1/3, yet that policy loses to action 3: 2/3 * 2/3 + 1/3 * 2/11 = 50/99.
    game = games.bradley_terry(jnp.log(jnp.array([1.0, 9.0, 2.0])))
    np.testing.assert_allclose(game.preference[2, :2], [2 / 3, 2 / 11], atol=1e-15)
    shares = np.linspace(0, 1 / 3, 101)
    policies = np.stack([2 * shares, shares, 1 - 3 * shares], axis=1)
    mean_rewards = policies @ np.log([1, 9, 2])
    np.testing.assert_allclose(policies[mean_rewards.argmax()], [2 / 3, 1 / 3, 0], atol=1e-12)
    win_rates = np.array([0, 0, 1]) @ np.asarray(game.preference) @ policies.T
    assert np.all(win_rates >= 0.5 - 1e-15)
    np.testing.assert_allclose(win_rates[-1], 50 / 99, atol=1e-12)


def test_random_games_are_antisymmetric_exactly_and_repeat():
    one = games.random_antisymmetric(jax.random.key(0), num_actions=20)
    preference = np.asarray(one.preference)
    assert np.all(preference + preference.T == 1)
    assert preference.min() < 0.05
    assert preference.max() > 0.95
    again = games.random_antisymmetric(jax.random.key(0), num_actions=20)
    np.testing.assert_array_equal(again.preference, preference)
    other = games.random_antisymmetric(jax.random.key(1), num_actions=20)
    assert not np.array_equal(other.preference, preference)
    many = jax.vmap(lambda key: games.random_antisymmetric(key, num_actions=4))(
        jax.random.split(jax.random.key(2), 3)
    )
    assert many.preference.shape == (3, 4, 4)


def test_measured_matrices():
    game = games.from_payoffs(np.array([[0, 40], [-40, 0]]), scale=100)
    np.testing.assert_allclose(game.preference, [[0.5, 0.7], [0.3, 0.5]])
    # What is off is divided between the two sides.
    game = games.from_win_rates(np.array([[0.5, 0.71], [0.3, 0.5]]), tolerance=0.02)
    np.testing.assert_allclose(game.preference, [[0.5, 0.705], [0.295, 0.5]])


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        (np.ones((2, 3)), r"\[A, A\]"),
        (np.ones((0, 0)), r"\[A, A\]"),
        (np.array([[0.5, np.nan], [0.5, 0.5]]), "finite"),
        (np.array([[0.5, 1.1], [-0.1, 0.5]]), r"\[0, 1\]"),
        (np.array([[0.5, 0.9], [0.2, 0.5]]), r"0.9 at \[0, 1\] and 0.2 at \[1, 0\]"),
        (np.array([[0.6, 0.5], [0.5, 0.5]]), r"\[0, 0\]"),
    ],
)
def test_refuses_what_is_no_preference_matrix(matrix, word):
    with pytest.raises(ValueError, match=word):
        games.from_win_rates(matrix)


def test_refuses_other_mistakes():
    with pytest.raises(ValueError, match="scale"):
        games.from_payoffs(np.zeros((2, 2)), scale=0.0)
    with pytest.raises(ValueError, match="at most scale"):
        games.from_payoffs(np.array([[0.0, 3.0], [-3.0, 0.0]]), scale=2.0)
    with pytest.raises(ValueError, match="reference"):
        games.dice(jnp.ones(2))
    with pytest.raises(ValueError, match="imbalance"):
        games.rater_types(0.5)
    with pytest.raises(ValueError, match="num_actions"):
        games.random_antisymmetric(jax.random.key(0), num_actions=0)
    with pytest.raises(ValueError, match="rewards"):
        games.bradley_terry(jnp.ones((2, 2)))


def test_default_is_float32_outside_double_precision():
    with jax.enable_x64(False):
        assert games.four_actions().preference.dtype == jnp.float32
        assert games.rater_types(0.1).preference.dtype == jnp.float32
