"""Forward-backward losses against successor measures solved as linear systems.

Tables stand for networks, all pairs of transitions and pool states for samples, in double
precision: each expectation is exact.
"""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from bellmax import losses

# jaxtyping's own error where its checks are switched on (--jaxtyping-packages).
BAD_SHAPE = (ValueError, jaxtyping.TypeCheckError)
STATES, ACTIONS, DISCOUNT = 4, 2, 0.8


class World:
    """A small MDP with data of any law, and the successor measure of one policy."""

    def __init__(self, deterministic, seed=0):
        rng = np.random.default_rng(seed)
        self.transition = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        if deterministic:
            # Action 0 goes round and action 1 stays, but for one jump.
            self.transition = np.stack([np.roll(np.eye(STATES), 1, axis=1), np.eye(STATES)], axis=1)
            self.transition[2, 1] = np.eye(STATES)[0]
        self.data = rng.dirichlet(np.full(STATES * ACTIONS, 5.0)).reshape(STATES, ACTIONS)
        self.reached = np.einsum("sa,sax->x", self.data, self.transition)
        self.choice = rng.integers(0, ACTIONS, STATES)
        # From (s, a) to (s', choice(s')).
        onward = np.zeros((STATES, ACTIONS, STATES, ACTIONS))
        for state, action in enumerate(self.choice):
            onward[:, :, state, action] = self.transition[:, :, state]
        size = STATES * ACTIONS
        self.resolvent = np.linalg.inv(np.eye(size) - DISCOUNT * onward.reshape(size, size))
        flat = self.transition.reshape(size, STATES)
        self.measure = (self.resolvent @ flat).reshape(STATES, ACTIONS, STATES)
        self.density = self.measure / self.reached

    def rows(self):
        """All transitions (s, a, s') and their probabilities in the data."""
        s, a, x = (grid.ravel() for grid in np.indices((STATES, ACTIONS, STATES)))
        weight = (self.data[..., None] * self.transition).ravel()
        return s, a, x, weight

    def values(self, reward):
        """Values of a reward of the state that is reached."""
        expected = (self.transition @ reward).reshape(-1)
        return (self.resolvent @ expected).reshape(STATES, ACTIONS)


WORLDS = {"stochastic": World(False), "deterministic": World(True)}
every_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def measure_loss(world, forward, backward, target_forward, target_backward):
    """The expected loss of tables forward[S, A, E, W] and backward[S, W]."""
    s, a, x, weight = world.rows()
    loss = losses.forward_backward_loss(
        forward[s, a],
        backward[x],
        backward,
        target_forward[x, world.choice[x]],
        target_backward,
        jnp.full(s.shape, DISCOUNT),
        pool_weights=jnp.broadcast_to(world.reached, (s.size, STATES)),
    )
    return jnp.sum(jnp.asarray(weight) * loss)


def spread_loss(world, backward):
    shares = jnp.broadcast_to(world.reached, (STATES, STATES))
    loss = losses.orthonormality_loss(backward, backward, pool_weights=shares)
    return jnp.sum(jnp.asarray(world.reached) * loss)


def solution(world, seed=0, heads=1):
    """Tables whose product is the density exactly."""
    backward = np.random.default_rng(seed).normal(size=(STATES, STATES)) + 2 * np.eye(STATES)
    forward = world.density @ np.linalg.inv(backward.T)
    return np.repeat(forward[:, :, None], heads, axis=2), backward


@every_world
def test_the_density_has_the_mass_of_a_measure_that_is_not_normalised(world):
    np.testing.assert_allclose(world.measure.sum(axis=-1), 1 / (1 - DISCOUNT))
    if world is WORLDS["deterministic"] and world.choice[1] == 0:
        # It starts at the next state: staying in s counts s from the first step on.
        assert world.measure[1, 1, 1] >= 1


@every_world
@pytest.mark.parametrize("heads", [1, 2])
def test_the_gradient_is_0_at_the_successor_measure(world, heads):
    with jax.enable_x64(True):
        tables = tuple(map(jnp.asarray, solution(world, heads=heads)))
        slopes = jax.grad(measure_loss, (1, 2))(world, *tables, *tables)
        for slope in slopes:
            np.testing.assert_allclose(slope, 0.0, atol=1e-13)
        # And elsewhere it is not.
        other = tables[0], tables[1] + 0.1
        assert float(jnp.abs(jax.grad(measure_loss, 1)(world, *other, *other)).max()) > 1e-3


@every_world
def test_the_loss_is_half_a_squared_distance_less_a_constant(world):
    rng = np.random.default_rng(3)

    def distance(tables, target):
        # || F B - (P / rho + gamma P^pi F' B') ||^2 in L2 of data times pool.
        next_density = np.einsum("sw,xw->sx", target[0][range(STATES), world.choice, 0], target[1])
        bellman = world.transition / world.reached + DISCOUNT * world.transition @ next_density
        density = np.einsum("saew,xw->sax", tables[0], tables[1])
        shares = world.data[..., None] * world.reached
        return np.sum(shares * (density - bellman) ** 2)

    with jax.enable_x64(True):
        found, expected = [], []
        target = solution(world, seed=5)
        for _ in range(3):
            tables = (
                rng.normal(size=(STATES, ACTIONS, 1, STATES)),
                rng.normal(size=(STATES, STATES)),
            )
            found.append(float(measure_loss(world, *map(jnp.asarray, (*tables, *target)))))
            expected.append(distance(tables, target) / 2)
        np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-12)


@every_world
def test_descent_from_any_start_finds_the_measure_and_values_of_rewards(world):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 6000))

    def objective(tables, target):
        return measure_loss(world, *tables, *target) + spread_loss(world, tables[1])

    @jax.jit
    @functools.partial(jax.vmap)
    def train(start):
        def step(_, carry):
            tables, opt_state = carry
            slopes = jax.grad(objective)(tables, tables)
            changes, opt_state = optimizer.update(slopes, opt_state)
            return optax.apply_updates(tables, changes), opt_state

        return jax.lax.fori_loop(0, 6000, step, (start, optimizer.init(start)))[0]

    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        starts = (
            jnp.asarray(rng.normal(size=(3, STATES, ACTIONS, 1, STATES))),
            jnp.asarray(rng.normal(size=(3, STATES, STATES))),
        )
        forward, backward = map(np.asarray, train(starts))
    density = np.einsum("nsaew,nxw->nsax", forward, backward)
    np.testing.assert_allclose(density, np.broadcast_to(world.density, density.shape), atol=1e-4)
    # The second loss fixes B but for rotations and moves the product by nothing.
    covariance = np.einsum("x,nxw,nxv->nwv", world.reached, backward, backward)
    np.testing.assert_allclose(
        covariance, np.broadcast_to(np.eye(STATES), covariance.shape), atol=1e-4
    )
    reward = np.random.default_rng(2).normal(size=STATES)
    tasks = np.einsum("x,x,nxw->nw", world.reached, reward, backward)
    values = np.einsum("nsaew,nw->nsa", forward, tasks)
    np.testing.assert_allclose(
        values, np.broadcast_to(world.values(reward), values.shape), atol=1e-3
    )


def test_one_batch_against_loops():
    rng = np.random.default_rng(0)
    heads, size, width = 2, 5, 3
    forward, target_forward = rng.normal(size=(2, size, heads, width))
    backward, target_backward = rng.normal(size=(2, size, width))
    discounts = rng.uniform(size=size)
    counts = np.array([1.0, 2.0, 0.0, 0.5, 1.0])
    others = counts * (1 - np.eye(size))
    expected, spread = np.zeros(size), np.zeros(size)
    for i in range(size):
        for j in range(size):
            share = others[i, j] / others[i].sum()
            target = min(target_forward[i, e] @ target_backward[j] for e in range(heads))
            for e in range(heads):
                error = forward[i, e] @ backward[j] - discounts[i] * target
                expected[i] += share * error**2 / 2
            spread[i] += share * (backward[i] @ backward[j]) ** 2
        expected[i] -= sum(forward[i, e] @ backward[i] for e in range(heads))
        spread[i] += width - 2 * backward[i] @ backward[i]
    arrays = (forward, backward, backward, target_forward, target_backward, discounts)
    with jax.enable_x64(True):
        weights = jnp.asarray(others)
        found = losses.forward_backward_loss(*map(jnp.asarray, arrays), pool_weights=weights)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        both = jnp.asarray(backward)
        np.testing.assert_allclose(
            losses.orthonormality_loss(both, both, pool_weights=weights), spread, rtol=1e-12
        )


def test_without_weights_all_of_the_pool_counts_alike():
    arrays = [
        jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
        for i, shape in enumerate([(3, 2, 4), (3, 4), (5, 4), (3, 2, 4), (5, 4), (3,)])
    ]
    equal = jnp.full((3, 5), 7.0)
    np.testing.assert_allclose(
        losses.forward_backward_loss(*arrays),
        losses.forward_backward_loss(*arrays, pool_weights=equal),
        rtol=1e-5,
    )
    own, pool = arrays[1], arrays[2]
    np.testing.assert_allclose(
        losses.orthonormality_loss(own, pool),
        losses.orthonormality_loss(own, pool, pool_weights=equal),
        rtol=1e-5,
    )


def test_an_example_that_meets_nobody_has_no_quadratic_term():
    ones = jnp.ones((1, 1, 2))
    arguments = (ones, ones[0], ones[0], ones, ones[0], jnp.ones(1))
    alone = losses.forward_backward_loss(*arguments, pool_weights=jnp.zeros((1, 1)))
    np.testing.assert_array_equal(alone, [-2.0])


@every_world
def test_orthonormality_is_the_distance_of_the_covariance_to_the_identity(world):
    backward = np.random.default_rng(0).normal(size=(STATES, 3))
    covariance = (backward * world.reached[:, None]).T @ backward
    with jax.enable_x64(True):
        found = spread_loss(world, jnp.asarray(backward))
        np.testing.assert_allclose(found, np.sum((covariance - np.eye(3)) ** 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("place", "shape", "named"),
    [
        (0, (3, 4), "forward"),
        (1, (3, 2), "next_backward"),
        (2, (5, 3), "pool_backward"),
        (4, (5,), "target_pool_backward"),
        (5, (3, 1), "discounts"),
    ],
)
def test_shapes_that_do_not_fit_are_named(place, shape, named):
    shapes = [(3, 2, 4), (3, 4), (5, 4), (3, 2, 4), (5, 4), (3,)]
    shapes[place] = shape
    with pytest.raises(BAD_SHAPE, match=named):
        losses.forward_backward_loss(*map(jnp.zeros, shapes))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(BAD_SHAPE, match="pool_weights"):
        losses.orthonormality_loss(jnp.zeros((3, 4)), jnp.zeros((5, 4)), pool_weights=jnp.zeros(5))
