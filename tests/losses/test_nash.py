"""Nash-MD-PG: mixtures of laws, and expected gradients over enumerated sequences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

CYCLE = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
REFERENCE = np.array([0.5, 0.3, 0.2])


def mixed(policy, reference, mixture):
    logits = losses.geometric_mixture_logits(
        jnp.log(jnp.asarray(policy)), jnp.log(jnp.asarray(reference)), mixture=mixture
    )
    return np.exp(logits)


def test_mixture_by_hand():
    # The square roots of (.6, .3, .1), normalised.
    found = mixed([0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3], 0.5)
    np.testing.assert_allclose(found, [0.47273387, 0.33427333, 0.19299280], rtol=1e-6)


def test_mixture_of_zero_is_the_policy_and_of_one_the_reference():
    policy, reference = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.0, -3.0])
    for mixture, law in ((0, policy), (1.0, reference)):
        found = losses.geometric_mixture_logits(policy, reference, mixture=mixture)
        np.testing.assert_allclose(found, jax.nn.log_softmax(law), rtol=1e-6)


def test_constants_in_the_logits_change_nothing():
    policy, reference = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.0, -3.0])
    found = losses.geometric_mixture_logits(policy + 7, reference - 20, mixture=0.25)
    expected = losses.geometric_mixture_logits(policy, reference, mixture=0.25)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_mixture_of_each_row_and_traced():
    policy, reference = jnp.array([[0.3, -1.0], [0.5, 0.1]]), jnp.array([[1.0, 0.0], [2.0, 4.0]])
    weights = jnp.array([0.25, 1.0])
    found = jax.jit(lambda b: losses.geometric_mixture_logits(policy, reference, mixture=b))(
        weights
    )
    for row in range(2):
        one = losses.geometric_mixture_logits(
            policy[row], reference[row], mixture=float(weights[row])
        )
        np.testing.assert_allclose(found[row], one, rtol=1e-6)
    with pytest.raises(ValueError, match="mixture"):
        losses.geometric_mixture_logits(policy, reference, mixture=jnp.ones((2, 1)))


@pytest.mark.parametrize("mixture", [0.0, 0.25, 1.0])
def test_impossible_actions(mixture):
    policy = jnp.array([0.0, -jnp.inf, 1.0, -jnp.inf])
    reference = jnp.array([0.5, 0.2, -jnp.inf, -jnp.inf])
    # Possible is what every law of positive weight allows.
    allowed = {
        0.0: [True, False, True, False],
        0.25: [True, False, False, False],
        1.0: [True, True, False, False],
    }[mixture]

    def total(policy, reference, weight):
        found = losses.geometric_mixture_logits(policy, reference, mixture=weight)
        return jnp.sum(jnp.where(jnp.array(allowed), found, 0)), found

    value_and_grad = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, found), slopes = jax.jit(value_and_grad)(policy, reference, mixture)
    np.testing.assert_array_equal(found > -jnp.inf, allowed)
    np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-6)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_laws_without_a_common_action():
    def total(policy):
        found = losses.geometric_mixture_logits(policy, jnp.array([-jnp.inf, 0.0]), mixture=0.5)
        return jnp.sum(jnp.where(found > -jnp.inf, found, 0)), found

    gradient, found = jax.grad(total, has_aux=True)(jnp.array([0.0, -jnp.inf]))
    np.testing.assert_array_equal(found, [-np.inf, -np.inf])
    np.testing.assert_array_equal(gradient, [0, 0])


def test_nan_shows():
    found = losses.geometric_mixture_logits(
        jnp.array([jnp.nan, -jnp.inf]), jnp.zeros(2), mixture=0.5
    )
    assert np.isnan(found[0])


def test_mixing_tokens_is_not_mixing_sequences():
    # Two tokens of two symbols: P(0) = .7, P(0|0) = .6, P(0|1) = .2, a uniform reference, b = 1/2.
    first, second = np.array([0.7, 0.3]), np.array([[0.6, 0.4], [0.2, 0.8]])
    half = np.array([0.5, 0.5])
    tokens = mixed(first, half, 0.5)[:, None] * mixed(second, np.tile(half, (2, 1)), 0.5)
    sequences = mixed((first[:, None] * second).reshape(-1), np.full(4, 0.25), 0.5)
    np.testing.assert_allclose(
        tokens.reshape(-1), [0.33270422, 0.27165186, 0.13188131, 0.26376262], rtol=1e-6
    )
    np.testing.assert_allclose(
        sequences, [0.33893824, 0.27674192, 0.12810661, 0.25621323], rtol=1e-6
    )
    divergence = np.sum(sequences * np.log(sequences / tokens.reshape(-1)))
    np.testing.assert_allclose(divergence, 2.690626e-4, rtol=1e-3)


def test_divergence_from_the_mixture_has_a_share_of_the_gradient():
    # grad KL(pi, stop(pi^(1-b) mu^b)) = b grad KL(pi, mu): the sum of pi grad log pi vanishes.
    logits, reference, share = jnp.array([0.3, -1.0, 0.7]), jnp.array([1.0, 0.0, -0.5]), 0.3

    def divergence(logits, other):
        log_probs = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - other))

    with jax.enable_x64(True):
        logits, reference = (jnp.asarray(x, jnp.float64) for x in (logits, reference))
        mixture = losses.geometric_mixture_logits(logits, reference, mixture=share)
        found = jax.grad(divergence)(logits, mixture)
        expected = share * jax.grad(divergence)(logits, jax.nn.log_softmax(reference))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_batch_by_hand():
    log_probs = jnp.array([[-1.0, -0.5, -2.0], [-0.7, -1.2, jnp.nan]])
    reference = jnp.array([[-1.2, -0.9, -1.5], [-0.9, -1.0, jnp.inf]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0]])
    wins = jnp.array([0.8, 0.3])

    def total(log_probs, reference, wins):
        return losses.nash_md_pg_token_loss(log_probs, reference, mask, wins, tau=0.1).sum()

    # Ratios .2, .4, -.5 and .2, -.2: to come are .1, -.1, -.5 and 0, -.2, and the brackets
    # .3 - .01, .3 + .01, .3 + .05 and -.2, -.2 + .02.
    value, slopes = jax.value_and_grad(total, argnums=(0, 1, 2))(log_probs, reference, wins)
    np.testing.assert_allclose(slopes[0], [[-0.29, -0.31, -0.35], [0.2, 0.18, 0]], rtol=1e-5)
    np.testing.assert_allclose(value / 2, 0.3945, rtol=1e-6)
    for slope in slopes[1:]:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))
    # Of whole completions: brackets .3 - .01 and -.2, sums -3.5 and -1.9.
    sums = losses.sequence_log_probs(log_probs, mask), losses.sequence_log_probs(reference, mask)
    found = losses.nash_md_pg_loss(*sums, wins, tau=0.1)
    np.testing.assert_allclose(found, [3.5 * 0.29, -1.9 * 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.mean(), 0.3175, rtol=1e-6)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_masked_tokens_may_hold_anything(poison):
    rng = np.random.default_rng(0)
    log_probs, reference = -jnp.abs(jnp.asarray(rng.standard_normal((2, 4, 5)), jnp.float32))
    mask = jnp.asarray(rng.integers(0, 2, (4, 5))).at[0].set(0)
    wins = jnp.array([0.1, 0.9, 0.5, 0.7])

    def total(log_probs, reference):
        return losses.nash_md_pg_token_loss(log_probs, reference, mask, wins, tau=0.3).sum()

    def run(*tokens):
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*tokens)

    dirty = (jnp.where(mask != 0, array, poison) for array in (log_probs, reference))
    jax.tree.map(np.testing.assert_array_equal, run(*dirty), run(log_probs, reference))


def test_refuses_preferences_of_tokens():
    tokens = jnp.zeros((2, 3))
    with pytest.raises(Exception, match="preferences"):
        losses.nash_md_pg_token_loss(tokens, tokens, tokens, tokens, tau=0.1)
    for loss in (losses.nash_md_pg_loss, losses.nash_md_pg_token_loss):
        arrays = (tokens[0], tokens[0], tokens[0], tokens[0, 0])
        with pytest.raises(ValueError, match="tau"):
            loss(*(arrays if loss is losses.nash_md_pg_token_loss else arrays[:3]), tau=-1.0)


def two_token_log_probs(logits):
    """Log-probabilities [4, 2] of 00, 01, 10, 11 with P(0) = sigma(a), P(0|i) = sigma(b_i)."""
    stay, leave = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    first = jnp.stack([stay[0], stay[0], leave[0], leave[0]])
    second = jnp.stack([stay[1], leave[1], stay[2], leave[2]])
    return jnp.stack([first, second], axis=-1)


def test_the_divergence_of_two_tokens_needs_what_is_to_come():
    # P(0) = .7, P(0|0) = .6, P(0|1) = .2 and a uniform reference. The preference is a constant,
    # so that at tau = 1 the expected gradient of the loss is that of the divergence.
    with jax.enable_x64(True):
        probs = jnp.array([0.7, 0.6, 0.2])
        logits = jnp.log(probs / (1 - probs))
        reference = jnp.full((4, 2), jnp.log(0.5))
        weights = jnp.exp(two_token_log_probs(logits).sum(axis=-1))

        def divergence(logits):
            log_probs = two_token_log_probs(logits).sum(axis=-1)
            return jnp.sum(jnp.exp(log_probs) * (log_probs - reference.sum(axis=-1)))

        def to_come(logits):
            arrays = two_token_log_probs(logits), reference, jnp.ones((4, 2)), jnp.full(4, 0.8)
            return weights @ losses.nash_md_pg_token_loss(*arrays, tau=1.0)

        def sequence(logits):
            sums = two_token_log_probs(logits).sum(axis=-1), reference.sum(axis=-1)
            return weights @ losses.nash_md_pg_loss(*sums, jnp.full(4, 0.8), tau=1.0)

        def own(logits):
            arrays = two_token_log_probs(logits), reference, jnp.full((4, 2), 0.8)
            return weights @ losses.nash_md_pg_loss(*arrays, tau=1.0).sum(axis=-1)

        value, exact = jax.jit(jax.value_and_grad(divergence))(logits)
        np.testing.assert_allclose(value, 0.15420117, rtol=1e-7)
        np.testing.assert_allclose(exact, [0.14168461, 0.06811814, -0.06654213], rtol=1e-7)
        np.testing.assert_allclose(jax.jit(jax.grad(to_come))(logits), exact, atol=1e-14)
        np.testing.assert_allclose(jax.jit(jax.grad(sequence))(logits), exact, atol=1e-14)
        # Each token with its own log-ratio alone is wrong by 26% in the first one.
        local = [0.17793255, 0.06811814, -0.06654213]
        np.testing.assert_allclose(jax.jit(jax.grad(own))(logits), local, rtol=1e-7)


def completions(vocabulary, length):
    """Returns tokens [S, T], prefix numbers [S, T] and masks [S, T] of all completions.

    Token 0 ends a completion; what follows it is not counted.
    """
    rows, prefixes = {}, {}
    for tokens in itertools.product(range(vocabulary), repeat=length):
        end = tokens.index(0) + 1 if 0 in tokens else length
        rows[tokens[:end]] = None
    for tokens in rows:
        for end in range(len(tokens)):
            prefixes.setdefault(tokens[:end], len(prefixes))
    shape = (len(rows), length)
    table, numbers, mask = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, int)
    for i, tokens in enumerate(rows):
        table[i, : len(tokens)] = tokens
        numbers[i, : len(tokens)] = [prefixes[tokens[:end]] for end in range(len(tokens))]
        mask[i, : len(tokens)] = 1
    return table, numbers, mask, len(prefixes)


@pytest.mark.parametrize("tau", [0.0, 0.37])
def test_expected_gradient_over_all_completions(tau):
    # Three symbols and up to four tokens, a random game over whole completions, a fixed opponent:
    # the expectation is a sum over all pairs, and the objective is differentiated as it is written.
    tokens, numbers, mask, count = completions(3, 4)
    size = len(tokens)
    rng = np.random.default_rng(0)
    upper = np.triu(rng.uniform(size=(size, size)), 1)
    game = upper + np.tril(1 - upper.T, -1) + np.eye(size) / 2
    with jax.enable_x64(True):
        logits, reference_logits, opponent_logits = jnp.asarray(
            rng.standard_normal((3, count, 3)), jnp.float64
        )

        def token_log_probs(logits):
            log_probs = jax.nn.log_softmax(logits, axis=-1)[numbers, tokens]
            return jnp.where(mask, log_probs, jnp.nan)

        def sums(logits):
            return jnp.nansum(token_log_probs(logits), axis=-1)

        opponent = jnp.exp(sums(opponent_logits))
        np.testing.assert_allclose(opponent.sum(), 1, rtol=1e-12)

        def objective(logits):
            log_probs = sums(logits)
            divergence = log_probs - sums(reference_logits)
            return jnp.exp(log_probs) @ (game @ opponent - tau * divergence)

        weights = jnp.exp(sums(logits))[:, None] * opponent

        def pairs(array):
            return jnp.broadcast_to(array[:, None], (size, *weights.shape[1:], *array.shape[1:]))

        def of_sums(logits):
            arrays = pairs(sums(logits)), pairs(sums(reference_logits)), jnp.asarray(game)
            return jnp.sum(weights * losses.nash_md_pg_loss(*arrays, tau=tau))

        def of_tokens(logits):
            policy, reference = (
                pairs(token_log_probs(logits)),
                pairs(token_log_probs(reference_logits)),
            )
            arrays = policy, reference, pairs(mask), jnp.asarray(game)
            return jnp.sum(weights * losses.nash_md_pg_token_loss(*arrays, tau=tau))

        expected = -jax.jit(jax.grad(objective))(logits)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(jax.jit(jax.grad(of_sums))(logits), expected, atol=1e-10)
        np.testing.assert_allclose(jax.jit(jax.grad(of_tokens))(logits), expected, atol=1e-10)


# Specification C.4, tau = .1: where Nash-MD-PG comes to rest at each weight of the reference.
RESTS = {
    0.0: [0.4008888504, 0.2118222568, 0.3872888928],
    0.125: [0.3991294360, 0.1925484673, 0.4083220967],
    0.25: [0.3994546160, 0.1694826400, 0.4310627440],
    0.5: [0.4155489532, 0.1154461509, 0.4690048958],
    1.0: [0.6751277411, 0.0548211624, 0.2700510964],
}


@functools.partial(jax.jit, static_argnames="tau")
def expected_loss(logits, opponent, tau):
    """The loss over actions of the policy and of an opponent, sampled and then held fixed."""
    log_probs = jax.nn.log_softmax(logits)
    policy = jax.lax.stop_gradient(jnp.exp(log_probs))
    rows = jnp.broadcast_to(log_probs[:, None], (3, 3))
    reference = jnp.broadcast_to(jnp.log(REFERENCE)[:, None], (3, 3))
    found = losses.nash_md_pg_loss(rows, reference, jnp.asarray(CYCLE), tau=tau)
    return policy @ found @ jax.lax.stop_gradient(opponent)


@pytest.mark.parametrize("mixture", RESTS)
def test_rests_at_the_fixed_point_of_its_opponent(mixture):
    with jax.enable_x64(True):
        logits = jnp.log(jnp.array(RESTS[mixture]))
        opponent = mixed(RESTS[mixture], REFERENCE, mixture)
        gradient = jax.grad(expected_loss)(logits, opponent, 0.1)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("mixture", "expected"),
    {
        0.0: (-0.04420170, 0.01085157, 0.03335013),
        0.25: (-0.04346963, 0.02187867, 0.02159096),
        0.5: (-0.04287642, 0.03503699, 0.00783943),
        1.0: (-0.04220170, 0.06585157, -0.02364987),
    }.items(),
)
def test_gradient_in_a_table(mixture, expected):
    # At pi = (.2, .5, .3): pi_i times what action i scores, centred; worked out in float64.
    with jax.enable_x64(True):
        policy = np.array([0.2, 0.5, 0.3])
        opponent = mixed(policy, REFERENCE, mixture)
        found = jax.grad(expected_loss)(jnp.log(policy), opponent, 0.1)
        scores = CYCLE @ opponent - 0.1 * np.log(policy / REFERENCE)
    np.testing.assert_allclose(found, expected, atol=6e-9)
    np.testing.assert_allclose(found, -policy * (scores - policy @ scores), atol=1e-12)
