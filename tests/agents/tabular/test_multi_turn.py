"""Evaluation of multi-turn policies against the enumeration of all conversations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import tabular

HORIZON, STATES, ACTIONS, START, ALPHA = 3, 3, 2, 1, 0.2


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class Problem:
    """A dense random game of three turns, and policies."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        shape = (HORIZON, STATES)
        self.transition = rng.dirichlet(np.ones(STATES), (*shape, ACTIONS))
        upper = np.triu(rng.uniform(-0.5, 0.5, (STATES, STATES)), 1)
        self.preference = 0.5 + upper - upper.T
        self.reference, self.policy, self.opponent, self.other = (
            rng.dirichlet(np.ones(ACTIONS), shape) for _ in range(4)
        )


@pytest.fixture(params=[0, 1])
def problem(request):
    return Problem(request.param)


def conversations(problem, policy, turn=0, place=START, action=None):
    """Every conversation from a state (and action): its probability and [(turn, state, action)]."""
    turns = range(turn, HORIZON)
    for actions in itertools.product(range(ACTIONS), repeat=len(turns)):
        if action is not None and actions[0] != action:
            continue
        for answers in itertools.product(range(STATES), repeat=len(turns)):
            probability, state, path = 1.0, place, []
            for h, y, following in zip(turns, actions, answers, strict=True):
                if action is None or h > turn:
                    probability *= policy[h, state, y]
                probability *= problem.transition[h, state, y, following]
                path.append((h, state, y))
                state = following
            yield probability, path, state


def kl(first, second):
    return np.sum(first * np.log(first / second), axis=-1)


def final_law(problem, policy):
    law = np.zeros(STATES)
    for probability, _, end in conversations(problem, policy):
        law[end] += probability
    return law


def arrays(*values):
    return [jnp.array(value) for value in values]


def test_laws_of_states(problem):
    policy, transition = arrays(problem.policy, problem.transition)
    laws = tabular.occupancy(policy, transition, START)
    assert laws.shape == (HORIZON + 1, STATES)
    np.testing.assert_allclose(laws[0], np.eye(STATES)[START], atol=0)
    expected = np.zeros((HORIZON, STATES))
    for probability, path, _ in conversations(problem, problem.policy):
        for h, state, _ in path:
            expected[h, state] += probability
    np.testing.assert_allclose(laws[:-1], expected, atol=1e-14)
    np.testing.assert_allclose(laws[-1], final_law(problem, problem.policy), atol=1e-14)
    np.testing.assert_allclose(
        tabular.final_law(policy, transition, jnp.array(START)), laws[-1], atol=0
    )


def test_values_are_expectations_over_conversations(problem):
    worth = problem.preference @ final_law(problem, problem.opponent)
    divergence = kl(problem.policy, problem.reference)
    found = tabular.preference_values(
        *arrays(
            problem.policy,
            problem.opponent,
            problem.transition,
            problem.preference,
            problem.reference,
        ),
        initial_state=START,
        alpha=ALPHA,
    )
    for h, state, y in np.ndindex(HORIZON, STATES, ACTIONS):
        expected = sum(
            probability * (worth[end] - ALPHA * sum(divergence[g, x] for g, x, _ in path))
            for probability, path, end in conversations(problem, problem.policy, h, state, y)
        )
        np.testing.assert_allclose(found[h, state, y], expected, atol=1e-14)


def test_trajectory_kl_is_the_divergence_of_conversations(problem):
    def chance(policy, path):
        return np.prod([policy[step] for step in path])

    expected = sum(
        probability * np.log(chance(problem.policy, path) / chance(problem.other, path))
        for probability, path, _ in conversations(problem, problem.policy)
    )
    found = tabular.trajectory_kl(
        *arrays(problem.policy, problem.other, problem.transition), initial_state=START
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_value_difference_identity(problem):
    # V^{pi, o} - V^{pi', o} = E_{pi'} sum_h <Q^{pi, o}, pi - pi'> - alpha KL(pi) + alpha KL(pi'):
    # Q^pi - Q^pi' of a state is p (V^pi - V^pi') - alpha (KL(pi) - KL(pi')), unrolled along pi'.
    transition, preference, reference = arrays(
        problem.transition, problem.preference, problem.reference
    )
    pi, other, opponent = arrays(problem.policy, problem.other, problem.opponent)

    def values(policy):
        return tabular.preference_values(
            policy, opponent, transition, preference, reference, initial_state=START, alpha=ALPHA
        )

    q, q_other = values(pi), values(other)
    left = jnp.sum(pi[0, START] * q[0, START]) - jnp.sum(other[0, START] * q_other[0, START])
    gains = jnp.sum(q * (pi - other), axis=-1)
    gains = gains - ALPHA * kl(problem.policy, problem.reference)
    gains = gains + ALPHA * kl(problem.other, problem.reference)
    laws = tabular.occupancy(other, transition, START)[:-1]
    np.testing.assert_allclose(left, jnp.sum(laws * gains), atol=1e-14)


def test_win_rates(problem):
    transition, preference, reference = arrays(
        problem.transition, problem.preference, problem.reference
    )
    pi, other = arrays(problem.policy, problem.other)

    def rate(first, second, alpha):
        return tabular.regularised_win_rate(
            first, second, transition, preference, reference, START, alpha=alpha
        )

    laws = [final_law(problem, policy) for policy in (problem.policy, problem.other)]
    np.testing.assert_allclose(rate(pi, other, 0.0), laws[0] @ problem.preference @ laws[1])
    np.testing.assert_allclose(rate(pi, pi, ALPHA), 0.5, atol=1e-14)
    np.testing.assert_allclose(rate(pi, other, ALPHA) + rate(other, pi, ALPHA), 1.0, atol=1e-14)
    # The score of a policy is its own value plus what the other one pays.
    q = tabular.preference_values(
        pi, other, transition, preference, reference, initial_state=START, alpha=ALPHA
    )
    paid = ALPHA * tabular.trajectory_kl(other, reference, transition, START)
    np.testing.assert_allclose(
        rate(pi, other, ALPHA), jnp.sum(pi[0, START] * q[0, START]) + paid, atol=1e-14
    )


def test_duality_gap_bounds_what_any_policy_gains(problem):
    transition, preference, reference, pi = arrays(
        problem.transition, problem.preference, problem.reference, problem.policy
    )
    gap = tabular.multi_turn_duality_gap(
        pi, transition, preference, reference, initial_state=START, alpha=ALPHA
    )
    rng = np.random.default_rng(5)
    rivals = jnp.array(rng.dirichlet(np.ones(ACTIONS), (500, HORIZON, STATES)))

    def score(rival):
        return tabular.regularised_win_rate(
            rival, pi, transition, preference, reference, initial_state=START, alpha=ALPHA
        )

    best = jnp.max(jax.vmap(score)(rivals))
    assert 2 * (best - 0.5) <= gap
    # The best response is soft-optimal for the win-rates against the policy.
    worth = preference @ tabular.final_law(pi, transition, START)
    response = tabular.multi_turn_rlhf(transition, worth, reference, alpha=ALPHA)
    np.testing.assert_allclose(2 * (score(response) - 0.5), gap, atol=1e-14)


def test_one_turn_is_the_plain_game():
    # One state to act in, final states as actions.
    rng = np.random.default_rng(2)
    upper = np.triu(rng.uniform(-0.5, 0.5, (4, 4)), 1)
    game, mu, pi = jnp.array(0.5 + upper - upper.T), *jnp.array(rng.dirichlet(np.ones(4), 2))
    transition = jnp.broadcast_to(jnp.eye(4), (1, 4, 4, 4))
    reference, policy = (jnp.broadcast_to(law, (1, 4, 4)) for law in (mu, pi))
    for start in (0, 3):
        found = tabular.multi_turn_duality_gap(
            policy, transition, game, reference, start, alpha=0.1
        )
        np.testing.assert_allclose(found, tabular.duality_gap(pi, game, mu, tau=0.1), atol=1e-14)


def test_divergence_of_states_that_are_never_reached_is_not_counted():
    transition = jnp.broadcast_to(jnp.eye(2), (1, 2, 2, 2))
    reference = jnp.array([[[0.5, 0.5], [1.0, 0.0]]])
    policy = jnp.array([[[0.5, 0.5], [0.5, 0.5]]])
    assert tabular.trajectory_kl(policy, reference, transition, 0) == 0
    assert tabular.trajectory_kl(policy, reference, transition, 1) == np.inf


def test_what_leaves_the_reference_is_worth_minus_infinity_only_where_it_is_reached():
    # Two turns, the action is the next state; the reference never plays action 1 in state 1.
    transition = jnp.broadcast_to(jnp.eye(2), (2, 2, 2, 2))
    reference = jnp.full((2, 2, 2), 0.5).at[1, 1].set(jnp.array([1.0, 0.0]))
    final = jnp.array([1.0, 0.0])
    outside = jnp.full((2, 2, 2), 0.5)
    values = functools.partial(tabular.action_values, reference=reference)
    found = values(outside, transition, final, alpha=0.1)
    # From state 0 the last turn is inside: half a point. From state 1 it is not.
    np.testing.assert_allclose(found[0], [[0.5, -np.inf]] * 2)
    np.testing.assert_allclose(found[1], [[1.0, 0.0], [-np.inf, -np.inf]])
    # Without a penalty there is none.
    plain = values(outside, transition, final, alpha=0.0)
    np.testing.assert_allclose(plain, [[[0.5, 0.5]] * 2, [[1.0, 0.0]] * 2])
    # Who never goes there is not asked what it would do.
    staying = jnp.zeros((2, 2, 2)).at[:, :, 0].set(1).at[1, 1].set(0.5)
    found = values(staying, transition, final, alpha=0.1)
    np.testing.assert_allclose(found[0, 0], [1 - 0.1 * np.log(2) * 2, -np.inf], rtol=1e-6)


def test_infinite_penalties_cancel_and_none_counts_at_alpha_zero():
    transition = jnp.broadcast_to(jnp.eye(2), (1, 2, 2, 2))
    reference, inside = jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 2, 2)), jnp.eye(2)[None, [0, 0]]
    game = jnp.array([[0.5, 0.8], [0.2, 0.5]])
    half, right = jnp.full((1, 2, 2), 0.5), jnp.eye(2)[None, [1, 1]]

    def rate(policy, other, alpha):
        arguments = (policy, other, transition, game, reference)
        return float(tabular.regularised_win_rate(*arguments, alpha=alpha))

    assert rate(half, inside, 0.1) == -np.inf
    assert rate(inside, half, 0.1) == np.inf
    assert rate(half, right, 0.1) == pytest.approx(0.65)
    assert rate(half, inside, 0.0) == pytest.approx(0.35)


def test_refuses_wrong_shapes(problem):
    pi, transition, reference = arrays(problem.policy, problem.transition, problem.reference)
    with pytest.raises(ValueError, match="policy"):
        tabular.occupancy(pi[0], transition)
    with pytest.raises(ValueError, match="transition"):
        tabular.occupancy(pi, transition[..., :2])
    with pytest.raises(ValueError, match="final_values"):
        tabular.action_values(pi, transition, jnp.ones(2), reference, alpha=0.1)
    with pytest.raises(ValueError, match="alpha"):
        tabular.action_values(pi, transition, jnp.ones(3), reference, alpha=-0.1)
    with pytest.raises(TypeError, match="reference"):
        tabular.trajectory_kl(pi, reference.astype(jnp.int32), transition)
