"""Generalised policy improvement: chains and finite problems whose values are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import (
    forward_backward,
    horizon_objectives,
    planning,
    task_sphere,
    td_flow,
)

DISCOUNT = 0.8
# Two rooms on a line. Task (1, 0) goes through the left one, from 0 to the door at 3, and stays;
# task (0, 1) stays there, and from the door on goes through the right one to 5.
DOOR, END = 3, 5
# A state pays when it is reached: a little at the door, and all at the end.
DOOR_PAYS, END_PAYS = 0.2, 1.0
ROOMS = jnp.eye(2)


def walk(observations, tasks):
    """1 for a step to the right, 0 for none. [..., 1]."""
    place = observations[..., 0]
    left = (place < DOOR) & (tasks[..., 0] > 0)
    right = (place >= DOOR) & (place < END) & (tasks[..., 1] > 0)
    return (left | right).astype(float)[..., None]


def pay(states):
    place = states[..., 0]
    return DOOR_PAYS * (place == DOOR) + END_PAYS * (place == END)


def exact_model(noise, condition):
    """The horizon model itself: the state after a geometric time, by that time's quantile."""
    place, action, tasks = condition[..., :1], condition[..., 1:2], condition[..., 2:]
    uniform = jax.scipy.stats.norm.cdf(noise)
    # P(K > k) = gamma^k, k = 1, 2, ...
    time = jnp.maximum(jnp.ceil(jnp.log1p(-uniform) / jnp.log(DISCOUNT)), 1)
    after = place + action
    # From there the policy takes at most the steps of its room, and never turns back.
    room_end = jnp.where(tasks[..., :1] > 0, DOOR, END)
    moves = jnp.where(walk(after, tasks) > 0, jnp.minimum(time - 1, room_end - after), 0)
    return after + moves


def exact_value(observations, actions, tasks):
    """Sums 200 steps of the chain."""

    def step(place, time):
        place = place + jnp.where(time == 0, actions, walk(place, tasks))
        return place, DISCOUNT**time * pay(place)

    return jax.lax.scan(step, observations, jnp.arange(200.0))[1].sum(axis=0)


def model_value(key=0, num_samples=2000):
    return planning.model_value(
        exact_model,
        pay,
        jax.random.key(key),
        num_samples=num_samples,
        noise_size=1,
        discount=DISCOUNT,
    )


def chain_return(act):
    """What acting pays from 0."""
    place, total = jnp.zeros((1, 1)), 0.0
    for time in range(60):
        place = place + act(place)
        total += DISCOUNT**time * float(pay(place)[0])
    return total


def test_samples_of_the_exact_model_give_closed_form_values():
    # The left policy is at the door from step 3 on: .2 gamma^2 / (1 - gamma), from 0. The right
    # one never leaves 0; from the door it is at the end from step 2 on: gamma / (1 - gamma).
    places = jnp.array([[0.0], [3.0]])
    left, right = (
        model_value()(places, walk(places, tasks), tasks)
        for tasks in (jnp.tile(task, (2, 1)) for task in ROOMS)
    )
    # Five standard errors, at most: each sample pays r / (1 - gamma) or 0, of deviation 2.5 r.
    error = 5 * 2.5 / np.sqrt(2000)
    np.testing.assert_allclose(left, [0.64, 1.0], atol=error * DOOR_PAYS)
    np.testing.assert_allclose(right, [0.0, 4.0], atol=error)


@pytest.mark.parametrize("value_fn", [exact_value, model_value()], ids=["exact", "model"])
def test_two_rooms_need_both_policies(value_fn):
    choose = jax.jit(
        functools.partial(planning.gpi_act, tasks=ROOMS, policy_fn=walk, value_fn=value_fn)
    )
    improved = chain_return(lambda place: choose(place).actions)
    single = [chain_return(lambda place, task=task: walk(place, task[None])) for task in ROOMS]
    np.testing.assert_allclose(single, [0.64, 0.0], atol=1e-4)
    # To the door with the first, reached at step 3, and on with the second, at 5 from step 5 on.
    assert improved == pytest.approx(0.2 * DISCOUNT**2 + DISCOUNT**4 / 0.2, abs=1e-4)
    # At the end both stay.
    np.testing.assert_array_equal(choose(jnp.arange(6.0)[:, None]).chosen, [0, 0, 0, 1, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_exact_values_are_never_worse_than_those_of_any_policy(seed):
    states, actions, policies, discount = 7, 3, 4, 0.9
    rng = np.random.default_rng(seed)
    moves = rng.dirichlet(np.full(states, 0.3), (states, actions))
    reward = rng.normal(size=states)
    tables = rng.integers(actions, size=(policies, states))

    def solve(choice):
        onward = moves[np.arange(states), choice]
        return np.linalg.solve(np.eye(states) - discount * onward, onward @ reward)

    singles = np.stack([solve(choice) for choice in tables])
    # Q(s, a) of every policy: reward and value of the state that is reached.
    quality = np.einsum("saz,pz->psa", moves, reward + discount * singles)
    with jax.enable_x64(True):
        choices, table = jnp.asarray(np.eye(actions)[tables]), jnp.asarray(quality)
        found = planning.gpi_act(
            jnp.eye(states),
            jnp.eye(policies),
            policy_fn=lambda state, task: jnp.einsum("bs,bp,psa->ba", state, task, choices),
            value_fn=lambda state, action, task: jnp.einsum(
                "bs,ba,bp,psa->b", state, action, task, table
            ),
        )
    np.testing.assert_allclose(found.values, singles.T, atol=1e-12)
    improved = solve(np.argmax(found.actions, axis=-1))
    assert np.all(improved >= singles.max(axis=0) - 1e-12)


def by_table(table):
    """Values of one-hot tasks in one-hot states; a table may hold what is not a number. [S, P]."""

    def value_fn(observations, actions, tasks):
        del actions
        return table[jnp.argmax(observations, axis=-1), jnp.argmax(tasks, axis=-1)]

    return value_fn


def test_ties_go_to_the_first_and_what_is_not_a_number_to_nobody():
    table = jnp.array([[1.0, 1.0, 0.5], [jnp.nan, 2.0, 3.0], [-jnp.inf, -5.0, jnp.nan]])
    found = planning.gpi_act(
        jnp.eye(3),
        jnp.eye(3),
        policy_fn=lambda states, tasks: 10 * tasks + states,
        value_fn=by_table(table),
    )
    np.testing.assert_array_equal(found.chosen, [0, 2, 1])
    np.testing.assert_array_equal(found.actions, [[11, 0, 0], [0, 1, 10], [0, 10, 1]])
    np.testing.assert_array_equal(found.values, table)


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 8])
def test_chunks_change_nothing(chunk_size):
    keys = jax.random.split(jax.random.key(0), 3)
    tasks, states = jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[1], (3, 2))
    weights = jax.random.normal(keys[2], (2 + 1 + 4, 2))

    def velocity(params, point, time, condition):
        return jnp.tanh(condition @ params) + time[..., None] * point

    value_fn = planning.model_value(
        functools.partial(
            td_flow.sample, weights, apply=velocity, objective=horizon_objectives.td2_cfm()
        ),
        lambda samples: samples[..., 0],
        jax.random.key(1),
        num_samples=6,
        noise_size=2,
        discount=DISCOUNT,
    )

    @functools.partial(jax.jit, static_argnums=0)
    def plan(size):
        return planning.gpi_act(
            states,
            tasks,
            policy_fn=lambda states, tasks: jnp.tanh(tasks[:, :1] * states[:, :1]),
            value_fn=value_fn,
            chunk_size=size,
        )

    whole, parts = plan(None), plan(chunk_size)
    assert whole.values.shape == (3, 5)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5)
    np.testing.assert_allclose(parts.actions, whole.actions, rtol=1e-6)
    np.testing.assert_array_equal(parts.chosen, whole.chosen)


def test_common_noise_leaves_the_difference_of_like_policies_alone():
    # X = w + noise with r(x) = x: values are w + (mean noise), so that the differences between
    # policies are exact however few the samples, and the values themselves are not.
    value_fn = planning.model_value(
        lambda noise, condition: condition[..., -1:] + noise,
        lambda samples: samples[..., 0],
        jax.random.key(0),
        num_samples=2,
        noise_size=1,
        discount=0.5,
    )
    tasks = jnp.array([[0.3], [1.0], [-2.0]])
    found = planning.gpi_act(
        jnp.zeros((1, 1)), tasks, policy_fn=lambda states, tasks: states, value_fn=value_fn
    ).values[0]
    assert abs(float(found[0]) - 0.6) > 0.01
    np.testing.assert_allclose(found - found[0], 2 * (tasks[:, 0] - 0.3), atol=1e-6)


def test_forward_backward_values_are_inner_products_with_the_rewards_task():
    # F = (s, a) of one head and a second that is 1 more: the least of F.w_r counts.
    def forward(params, observations, actions, tasks):
        del params, tasks
        features = jnp.concatenate([observations, actions], axis=-1)
        return jnp.stack([features, features + 1], axis=-2)

    nothing = forward_backward.Representations(None, None)
    state = forward_backward.State(None, nothing, nothing, (), (), jnp.zeros((), jnp.int32))
    value_fn = planning.forward_backward_value(state, jnp.array([2.0, -3.0]), forward=forward)
    states, actions = jnp.array([[1.0], [0.5]]), jnp.array([[1.0], [-1.0]])
    # 2 - 3 and 4 - 6; 1 + 3 and 3 - 0.
    np.testing.assert_allclose(value_fn(states, actions, jnp.zeros((2, 2))), [-2.0, 3.0])


@pytest.mark.parametrize(
    "draw",
    [
        planning.uniform_tasks(),
        planning.nearby_tasks(0.5),
        planning.trained_tasks(jnp.eye(6), state_fraction=0.5),
    ],
    ids=["uniform", "nearby", "trained"],
)
def test_candidates_begin_with_the_rewards_own_and_lie_on_the_sphere(draw):
    own = jnp.arange(6.0)
    tasks = planning.candidate_tasks(jax.random.key(0), own, 40, draw=draw)
    assert tasks.shape == (40, 6)
    np.testing.assert_allclose(jnp.linalg.norm(tasks, axis=-1), 6**0.5, rtol=1e-5)
    # 0 + 1 + 4 + 9 + 16 + 25 = 55.
    np.testing.assert_allclose(tasks[0], own * (6 / 55) ** 0.5, rtol=1e-5)
    assert len(np.unique(np.round(np.asarray(tasks), 4), axis=0)) > 20
    alone = planning.candidate_tasks(jax.random.key(0), own, 1, draw=draw)
    np.testing.assert_array_equal(alone, tasks[:1])


def test_draws_are_where_they_say():
    own, size = jnp.arange(1.0, 9.0), 8
    keys = jax.random.split(jax.random.key(0), 3)
    own = task_sphere.on_sphere(own)

    def cosines(draw, key):
        return np.asarray(draw(key, own, 4000) @ own) / size

    anywhere = cosines(planning.uniform_tasks(), keys[0])
    # Mean 0 and variance 1 / W of a cosine on the sphere; 5 standard errors.
    assert abs(anywhere.mean()) < 5 * (1 / size / 4000) ** 0.5
    assert anywhere.var() == pytest.approx(1 / size, rel=0.15)
    np.testing.assert_allclose(cosines(planning.nearby_tasks(0.0), keys[1]), 1.0, rtol=1e-5)
    # A step of half the length turns by at most arcsin(1/2), and so cosines are above .866.
    near = cosines(planning.nearby_tasks(0.5), keys[1])
    assert 0.866 <= near.min() < near.max() < 1
    states = planning.trained_tasks(jnp.eye(size), state_fraction=1.0)(keys[2], own, 100)
    np.testing.assert_allclose(np.sort(states, axis=-1)[:, :-1], 0.0)
    mixed = planning.trained_tasks(jnp.eye(size), state_fraction=0.25)(keys[2], own, 4000)
    share = np.mean(np.sum(np.asarray(mixed) != 0, axis=-1) == 1)
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)


def test_what_cannot_be_is_refused():
    plan = functools.partial(planning.gpi_act, policy_fn=walk, value_fn=exact_value)
    states, own, key = jnp.zeros((2, 1)), jnp.ones(2), jax.random.key(0)
    with pytest.raises(ValueError, match="tasks must hold at least one"):
        plan(states, jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        plan(states, ROOMS, chunk_size=0)
    with pytest.raises(AssertionError):
        plan(states[0], ROOMS)
    with pytest.raises(AssertionError):
        planning.gpi_act(
            states, ROOMS, policy_fn=walk, value_fn=lambda states, actions, tasks: actions
        )
    model = functools.partial(planning.model_value, exact_model, pay, key)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model(num_samples=0, noise_size=1, discount=0.9)
    with pytest.raises(ValueError, match="noise_size must be at least 1, got 0"):
        model(num_samples=1, noise_size=0, discount=0.9)
    with pytest.raises(ValueError, match="discount must be in"):
        model(num_samples=1, noise_size=1, discount=1.0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        planning.candidate_tasks(key, own, 0, draw=planning.uniform_tasks())
    with pytest.raises(AssertionError):
        planning.candidate_tasks(key, own, 3, draw=lambda key, own, count: own[None])
    with pytest.raises(ValueError, match="scale must be at least 0, got -1"):
        planning.nearby_tasks(-1.0)
    with pytest.raises(ValueError, match="state_fraction must be in"):
        planning.trained_tasks(jnp.eye(2), state_fraction=1.5)
    with pytest.raises(AssertionError):
        planning.trained_tasks(jnp.eye(3), state_fraction=0.5)(key, own, 2)
