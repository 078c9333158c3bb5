"""Forward-backward representations: a step's exact expectation, and what is learnt, in tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import TransitionBatch, forward_backward, task_sphere

STATES, ACTIONS, DISCOUNT = 3, 2, 0.7
# Action 0 goes round a ring and action 1 stays, but for a jump from 2 to 1.
NEXT = np.array([[1, 0], [2, 1], [0, 1]])
CHOICE = np.array([0, 1, 0])
ROWS = [grid.ravel() for grid in np.indices((STATES, ACTIONS))]


def forward(params, observations, actions, tasks):
    """Tables of states and actions; of one head. [..., 1, W]."""
    del tasks
    return jnp.einsum("...s,...a,saew->...ew", observations, actions, params)


def backward(params, observations):
    """A table of states. [..., W]."""
    return observations @ params


def actor(params, observations, tasks):
    """One policy for all tasks: a table. [..., A]."""
    del tasks
    return observations @ params


def fresh(key):
    keys = jax.random.split(key)
    return forward_backward.Networks(
        actor=jnp.asarray(np.eye(ACTIONS)[CHOICE], jnp.float32),
        forward=jax.random.normal(keys[0], (STATES, ACTIONS, 1, STATES)),
        backward=jax.random.normal(keys[1], (STATES, STATES)),
    )


def make(optimizer=None, **options):
    arguments = {
        "init_params": fresh,
        # The policy stays as it is.
        "actor_optimizer": optax.sgd(0.0),
        "discount": DISCOUNT,
        "smoothing_noise": 0.0,
        **options,
    }
    return forward_backward.make(forward, backward, actor, optimizer or optax.sgd(0.1), **arguments)


AGENT = make()
UPDATE = jax.jit(AGENT.update)


def make_batch(rows, weight=None):
    """One-hot transitions of numbers of `ROWS`."""
    state, action = (jnp.asarray(part)[rows] for part in ROWS)
    return TransitionBatch(
        observations=jnp.eye(STATES)[state],
        actions=jnp.eye(ACTIONS)[action],
        next_observations=jnp.eye(STATES)[jnp.asarray(NEXT)[state, action]],
        weight=weight,
    )


def solve():
    """Successor measure of CHOICE, law of the next states, and the resolvent, all by hand."""
    size = STATES * ACTIONS
    reach = np.eye(STATES)[NEXT[ROWS[0], ROWS[1]]]
    onward = np.zeros((size, size))
    for row in range(size):
        following = NEXT[ROWS[0][row], ROWS[1][row]]
        onward[row, following * ACTIONS + CHOICE[following]] = 1
    resolvent = np.linalg.inv(np.eye(size) - DISCOUNT * onward)
    return (resolvent @ reach).reshape(STATES, ACTIONS, STATES), reach.mean(axis=0), resolvent


def same(found, expected, tolerance=1e-6):
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-6)
    jax.tree.map(close, found, expected)


def test_the_mean_step_of_batches_of_two_is_the_exact_gradient():
    # Rows of a batch are independent, so leaving a row's own next state out keeps the mean exact.
    agent = make(optax.sgd(1.0), orthonormality_weight=0.3)
    start = agent.init(
        jax.random.key(0),
        reference_params=forward_backward.Representations(*fresh(jax.random.key(5))[1:]),
    )
    count = STATES * ACTIONS
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(count), jnp.arange(count)), axis=-1).reshape(-1, 2)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def steps(state, rows):
        return agent.update(state, make_batch(rows), jax.random.key(0))[0].params

    found = jax.tree.map(lambda new: new.mean(axis=0), steps(start, pairs))
    reached = NEXT[ROWS[0], ROWS[1]]
    law = jnp.asarray(solve()[1], jnp.float32)

    def exact(params):
        density = jnp.einsum("saw,xw->sax", params.forward[:, :, 0], params.backward)
        target = start.target_params
        following = target.forward[np.arange(STATES), CHOICE, 0] @ target.backward.T
        error = density[ROWS[0], ROWS[1]] - DISCOUNT * following[reached]
        measure = jnp.mean(error**2 @ law) / 2 - jnp.mean(density[ROWS[0], ROWS[1], reached])
        overlap = params.backward @ params.backward.T
        spread = law @ overlap**2 @ law - 2 * law @ jnp.diag(overlap)
        return measure + 0.3 * spread

    slopes = jax.grad(exact)(start.params)
    expected = jax.tree.map(lambda old, slope: old - slope, start.params, slopes)
    same(found, expected, tolerance=2e-5)


def test_batches_teach_the_successor_measure_and_the_values_of_rewards():
    steps, size = 4000, 32
    agent = make(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        target_decay=0.9,
        orthonormality_weight=0.1,
    )

    @jax.jit
    def train(state):
        def step(number, state):
            key = jax.random.fold_in(jax.random.key(1), number)
            rows = jax.random.randint(key, (size,), 0, STATES * ACTIONS)
            return agent.update(state, make_batch(rows), key)[0]

        return jax.lax.fori_loop(0, steps, step, state)

    state = train(agent.init(jax.random.key(0)))
    measure, law, resolvent = solve()
    density = np.einsum("saw,xw->sax", state.params.forward[:, :, 0], state.params.backward)
    np.testing.assert_allclose(density * law, measure, atol=0.06)
    reward = np.array([1.0, -0.5, 0.3])
    expected = (resolvent @ reward[NEXT[ROWS[0], ROWS[1]]]).reshape(STATES, ACTIONS)
    # Every next state of the data, in its frequency.
    seen = make_batch(jnp.arange(STATES * ACTIONS)).next_observations
    task = forward_backward.reward_vector(
        state, seen, jnp.asarray(seen @ reward, jnp.float32), backward=backward
    )
    every = make_batch(jnp.arange(STATES * ACTIONS))
    tasks = jnp.broadcast_to(task, (STATES * ACTIONS, STATES))
    values = forward_backward.action_values(
        state, every.observations, every.actions, tasks, tasks, forward=forward
    )
    np.testing.assert_allclose(values.reshape(STATES, ACTIONS), expected, atol=0.06)
    unit = forward_backward.task_vector(
        state, seen, jnp.asarray(seen @ reward, jnp.float32), backward=backward
    )
    np.testing.assert_allclose(jnp.linalg.norm(unit), STATES**0.5, rtol=1e-5)
    np.testing.assert_allclose(unit / unit[0], task / task[0], rtol=1e-4)


def test_tasks_are_uniform_on_their_sphere():
    tasks = np.asarray(task_sphere.sample_tasks(jax.random.key(0), 4000, 5))
    np.testing.assert_allclose((tasks**2).sum(axis=-1), 5.0, rtol=1e-5)
    # No direction is preferred: mean 0 and covariance I.
    np.testing.assert_allclose(tasks.mean(axis=0), 0.0, atol=4 / 4000**0.5)
    np.testing.assert_allclose(tasks.T @ tasks / 4000, np.eye(5), atol=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_training_tasks_mix_states_by_weight_and_the_sphere(fraction):
    count = 4000
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    # The states of weight 0 hold what must not get out.
    embeddings = embeddings.at[jnp.asarray([0, 2])].set(jnp.nan)
    weight = jnp.asarray([0.0, 1.0, 0.0, 3.0])
    tasks = np.asarray(
        task_sphere.training_tasks(
            jax.random.key(0), jnp.arange(count), embeddings, weight, state_fraction=fraction
        )
    )
    np.testing.assert_allclose((tasks**2).sum(axis=-1), 3.0, rtol=1e-4)
    scaled = np.asarray(task_sphere.on_sphere(embeddings))
    shares = [np.isclose(tasks, scaled[state], atol=1e-5).all(axis=-1).mean() for state in (1, 3)]
    bound = 4 * (0.25 / count) ** 0.5
    np.testing.assert_allclose(shares, [fraction / 4, 3 * fraction / 4], atol=bound)
    # A row's task is the row's own, in whatever company.
    some = task_sphere.training_tasks(
        jax.random.key(0), jnp.asarray([7, 2]), embeddings, weight, state_fraction=fraction
    )
    np.testing.assert_allclose(some, tasks[[7, 2]], rtol=1e-5)


def test_on_sphere_is_finite_at_0():
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(task_sphere.on_sphere(zero), 0.0)
    slope = jax.jacobian(task_sphere.on_sphere)(zero)
    assert np.isfinite(slope).all()


def test_given_tasks_are_those_of_policies_and_features():
    @jax.jit
    def tasks_seen(state, batch):
        seen = []

        def noting_actor(params, observations, tasks):
            seen.append(tasks)
            return actor(params, observations, tasks)

        def noting_forward(params, observations, actions, tasks):
            seen.append(tasks)
            return forward(params, observations, actions, tasks)

        agent = forward_backward.make(
            noting_forward, backward, noting_actor, optax.sgd(0.1), init_params=fresh
        )
        agent.update(state, batch, jax.random.key(0))
        return seen

    batch, state = make_batch(jnp.arange(6)), make().init(jax.random.key(0))
    given = task_sphere.sample_tasks(jax.random.key(3), 6, STATES)
    for tasks in tasks_seen(state, batch._replace(tasks=given)):
        np.testing.assert_array_equal(tasks, given)
    first, *rest = tasks_seen(state, batch)
    np.testing.assert_allclose(jnp.linalg.norm(first, axis=-1), STATES**0.5, rtol=1e-5)
    assert len(rest) == 4
    for tasks in rest:
        np.testing.assert_array_equal(tasks, first)


def test_policies_ascend_the_value_of_their_own_task():
    # F^T w is linear in the action here: dQ/da_k = F(s, k)^T w, of the F after its step.
    agent = make(optax.sgd(0.1), actor_optimizer=optax.sgd(1.0))
    batch = make_batch(jnp.arange(6))
    given = task_sphere.sample_tasks(jax.random.key(3), 6, STATES)
    start = agent.init(jax.random.key(0))
    state, metrics = jax.jit(agent.update)(start, batch._replace(tasks=given), jax.random.key(0))
    table = np.asarray(state.params.forward)[:, :, 0]
    slopes = np.zeros((STATES, ACTIONS))
    values = []
    for state_number, task in zip(ROWS[0], np.asarray(given), strict=True):
        gain = table[state_number] @ task
        slopes[state_number] += gain / 6
        values.append(gain[CHOICE[state_number]])
    np.testing.assert_allclose(
        state.actor_params, start.actor_params + slopes, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["policy/loss"], -np.mean(values), rtol=1e-5)


def test_the_least_head_values_a_reward():
    heads = jnp.asarray([[[1.0, 0.0], [0.0, 2.0]]])
    state = make().init(jax.random.key(0))
    rewards = jnp.asarray([[3.0, 1.0]])
    found = forward_backward.action_values(
        state, rewards, rewards, rewards, rewards, forward=lambda *_: heads
    )
    # 1 * 3 against 2 * 1.
    np.testing.assert_allclose(found, [2.0])


def test_an_end_takes_the_rest_of_the_measure_away():
    ended = make_batch(jnp.arange(6))._replace(terminated=jnp.ones(6, bool))
    start = AGENT.init(jax.random.key(0))
    found = UPDATE(start, ended, jax.random.key(0))
    blind = jax.jit(make(discount=0.0).update)
    same(found, blind(start, ended._replace(terminated=None), jax.random.key(0)))


def test_rows_of_weight_0_change_nothing():
    agent = make(actor_optimizer=optax.sgd(0.5), smoothing_noise=0.2)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    weight = jnp.asarray([1.0, 2.0, 0.0, 1.0, 0.5, 0.0])
    batch = make_batch(jnp.asarray([0, 3, 1, 4, 5, 2]), weight)
    spoilt = batch._replace(
        **{
            name: jnp.where(weight[:, None] > 0, getattr(batch, name), jnp.nan)
            for name in ("observations", "actions", "next_observations")
        }
    )
    expected = update(state, batch, jax.random.key(0))
    found = update(state, spoilt, jax.random.key(0))
    same(found, expected)
    assert all(np.isfinite(value) for value in found[1].values())
    # They are also nobody's pool: without them, rows that keep their numbers step alike.
    kept = jnp.asarray([0, 1, 3, 4])
    fewer = jax.tree.map(lambda leaf: leaf[kept], batch._replace(index=jnp.arange(6)))
    same(update(state, fewer, jax.random.key(0)), expected, tolerance=1e-5)


@pytest.mark.parametrize("weight", [[0.0] * 6, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
def test_one_row_or_none_is_no_accident(weight):
    state = AGENT.init(jax.random.key(0))
    found, metrics = UPDATE(
        state, make_batch(jnp.arange(6), jnp.asarray(weight)), jax.random.key(0)
    )
    assert all(np.isfinite(value) for value in metrics.values())
    if not any(weight):
        same(found.params, state.params)


def test_rewards_of_padding_are_not_read():
    state = make().init(jax.random.key(0))
    seen = jnp.eye(3).at[1].set(jnp.nan)
    rewards, weight = jnp.asarray([1.0, jnp.nan, 2.0]), jnp.asarray([3.0, 0.0, 1.0])
    found = forward_backward.reward_vector(state, seen, rewards, weight, backward=backward)
    table = np.asarray(state.params.backward)
    np.testing.assert_allclose(found, 0.75 * table[0] + 0.5 * table[2], rtol=1e-5)


def test_the_target_is_an_average_and_states_hold_every_buffer_once():
    agent = make(target_decay=0.75)
    given = fresh(jax.random.key(1))
    own = forward_backward.Representations(given.forward, given.backward)
    update = jax.jit(agent.update, donate_argnums=0)
    batch = make_batch(jnp.arange(6))
    states = (
        agent.init(jax.random.key(0), params=given),
        agent.init(jax.random.key(0), params=given, reference_params=own),
        jax.jit(agent.init)(jax.random.key(0)),
    )
    for state in states:
        before = jax.device_get(state.target_params)
        same(before, state.params)
        state, _ = update(state, batch, jax.random.key(0))
        expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, state.params, before)
        same(state.target_params, expected)
        state, metrics = update(state, batch, jax.random.key(1))
        assert np.isfinite(metrics["loss"])
        assert int(state.step) == 2
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.0}, r"discount must be in \[0, 1\), got 1.0"),
        ({"target_decay": 1.5}, r"target_decay must be in \[0, 1\], got 1.5"),
        ({"state_fraction": -0.5}, r"state_fraction must be in \[0, 1\], got -0.5"),
        ({"orthonormality_weight": -1.0}, "orthonormality_weight must be at least 0"),
        ({"smoothing_noise": float("nan")}, "smoothing_noise must be at least 0"),
        ({"smoothing_clip": -0.1}, "smoothing_clip must be at least 0, got -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
