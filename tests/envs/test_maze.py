"""The point-mass maze against closed forms, MuJoCo's numbers, symmetry and derived rewards."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import maze, wrappers

SYMMETRIES = {
    "quarter turn": np.array([[0.0, -1.0], [1.0, 0.0]]),
    "mirror": np.array([[-1.0, 0.0], [0.0, 1.0]]),
    "diagonal": np.array([[0.0, 1.0], [1.0, 0.0]]),
}


@functools.lru_cache(maxsize=1)
def states_everywhere():
    return maze.sample_states(jax.random.key(0), 10_000, speed=0.1)


@jax.jit
def push(states, actions, params=maze.EXORL):
    """States after each of the actions [T, *B, 2]."""

    def body(state, action):
        state = maze.next_state(state, action, params)
        return state, state

    return jax.lax.scan(body, states, actions)[1]


def wandering_actions(steps, count, seed=0):
    """A slow random walk, clipped: actions of long pushes, a third of them at the bound."""
    rng = np.random.default_rng(seed)
    walk, noise = [], np.zeros((count, 2))
    for _ in range(steps):
        noise = 0.95 * noise + 0.31 * rng.normal(size=(count, 2))
        walk.append(noise)
    return jnp.asarray(np.stack(walk), jnp.float32)


def body(x, y, vx=0.0, vy=0.0):
    return jnp.array([x, y, vx, vy], float)


# ------------------------------------------------------------------------- physics


def test_free_flight_is_the_closed_form():
    # v_n = v_inf + (v_0 - v_inf) q^n with q = m / (m + h d) = 0.3 / 0.32 and v_inf = 0.1 a;
    # x_n = x_0 + h (n v_inf + (v_0 - v_inf) q (1 - q^n) / (1 - q)).
    with jax.enable_x64(True):
        action = jnp.array([0.7, -0.3])
        path = np.asarray(push(body(-0.2, 0.2, 0.02, 0.01), jnp.tile(action, (40, 1))))
    number, decay = np.arange(1, 41)[:, None], 0.9375
    limit = np.array([0.07, -0.03])
    gone = np.array([0.02, 0.01]) - limit
    np.testing.assert_allclose(path[:, 2:], limit + gone * decay**number, atol=1e-14)
    away = 0.02 * (number * limit + gone * decay * (1 - decay**number) / (1 - decay))
    np.testing.assert_allclose(path[:, :2], np.array([-0.2, 0.2]) + away, atol=1e-14)


def test_free_flight_is_that_of_mujoco():
    # Measured with MuJoCo 4.0 and ExoRL's model: one step, and ten.
    path = push(body(-0.2, 0.2), jnp.tile(jnp.array([0.7, -0.3]), (10, 1)))
    np.testing.assert_allclose(path[0], [-0.199913, 0.199963, 0.004375, -0.001875], atol=1e-6)
    np.testing.assert_allclose(path[9], [-0.195986, 0.198280, 0.033288, -0.014266], atol=1e-6)


def test_a_mass_pushed_into_a_wall_stays_there_as_in_mujoco():
    # Measured with MuJoCo 4.0: (-0.0299, 0.1239) after 191 steps, creeping at 0.0007 a second.
    path = push(body(-0.1, 0.1, 0.1), jnp.tile(jnp.array([1.0, 0.5]), (191, 1)))
    np.testing.assert_allclose(path[-1, [0, 2, 3]], [-0.03, 0.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(path[-1], path[60])
    np.testing.assert_allclose(path[-1, :2], [-0.0299, 0.1239], atol=3e-3)
    # Against the upper edge: (-0.1799, 0.2900) after 191 steps.
    path = push(body(-0.2, 0.2, 0.0, 0.1), jnp.tile(jnp.array([0.3, 1.0]), (191, 1)))
    np.testing.assert_allclose(path[-1, :2], [-0.1799, 0.29], atol=3e-3)


@pytest.mark.parametrize(
    ("friction", "action", "speed"),
    [
        # Held where mu |a_n| >= |a_t|; else the steady speed is 0.1 (a_t - mu a_n).
        (1.0, (1.0, 0.5), 0.0),
        (0.0, (1.0, 0.5), 0.05),
        (0.5, (0.4, 1.0), 0.08),
        (1.0, (0.4, 1.0), 0.06),
    ],
)
def test_friction_is_coulombs(friction, action, speed):
    params = maze.EXORL._replace(friction=friction)
    path = push(body(-0.031, 0.04), jnp.tile(jnp.array(action), (60, 1)), params)
    np.testing.assert_allclose(path[-1, [0, 2]], [-0.03, 0.0], atol=1e-6)
    assert float(path[-1, 3]) == pytest.approx(speed * (1 - 0.9375**60), abs=2e-3)


def test_nothing_is_ever_in_a_wall_and_no_speed_grows():
    states = states_everywhere()
    path = push(states, wandering_actions(150, len(states)))
    assert maze.is_free(path[..., :2]).all()
    speeds = np.linalg.norm(path[..., 2:], axis=-1)
    # |v'| <= (m |v| + h f |a|) / (m + h d) <= max(|v|, 0.1 sqrt 2), and contact takes from it.
    before = np.concatenate([np.linalg.norm(states[None, :, 2:], axis=-1), speeds[:-1]])
    assert (speeds <= np.maximum(before, 0.1 * math.sqrt(2)) + 1e-6).all()
    # Walls are touched: some are where they are put, at the distance of the radius.
    assert (np.abs(path[..., :2]).max(-1) >= 0.29 - 1e-6).mean() > 0.05


def test_no_wall_is_passed_at_five_times_the_speed():
    # 0.49 metres per second, 0.0098 in a step: less than the radius, 0.01.
    count = 4000
    angle = jnp.asarray(np.random.default_rng(1).uniform(0, 2 * np.pi, count), jnp.float32)
    place = states_everywhere()[:count, :2]
    velocity = 0.49 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    fast = maze.EXORL._replace(damping=0.0, force=0.0, friction=0.0)
    states = jnp.concatenate([place, velocity], -1)
    path = push(states, jnp.zeros((60, count, 2)), fast)
    assert maze.is_free(path[..., :2]).all()
    x, y = np.moveaxis(np.concatenate([place[None], path[..., :2]]), -1, 0)
    for across, along in ((x, y), (y, x)):
        crosses = np.sign(across[1:]) != np.sign(across[:-1])
        assert crosses.any()
        # Passages begin where the bars end.
        assert np.abs(along[1:])[crosses].min() >= 0.18


@pytest.mark.parametrize("name", SYMMETRIES)
def test_the_maze_is_symmetric(name):
    turn = jnp.asarray(SYMMETRIES[name], jnp.float32)

    def turned(arrays):
        halves = jnp.split(arrays, arrays.shape[-1] // 2, axis=-1)
        return jnp.concatenate([half @ turn.T for half in halves], axis=-1)

    states, actions = states_everywhere()[:500], wandering_actions(40, 500)
    with jax.default_matmul_precision("float32"):
        plain, other = push(states, actions), push(turned(states), turned(actions))
        np.testing.assert_allclose(other, turned(plain), atol=2e-6)
    boxes = np.asarray(maze.walls()).reshape(6, 2, 2) @ SYMMETRIES[name].T
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], -1)
    assert {tuple(np.round(box, 5)) for box in boxes} == {
        tuple(np.round(box, 5)) for box in np.asarray(maze.walls(), np.float64)
    }


def test_free_places():
    edge = 0.01 / math.sqrt(2)
    places = {
        (0.0, 0.0): False,
        (0.0, 0.1901): True,  # 0.0101 above the upper bar's end
        (0.0, 0.1899): False,
        (0.0301, 0.1): True,
        (0.0299, 0.1): False,
        (-0.1, -0.0299): False,
        (0.02 + edge + 1e-4, 0.18 + edge + 1e-4): True,  # the round corner
        (0.02 + edge - 1e-4, 0.18 + edge - 1e-4): False,
        (0.29, -0.29): True,
        (0.2901, 0.0): False,
    }
    free = maze.is_free(jnp.array(list(places)))
    np.testing.assert_array_equal(free, list(places.values()))


def test_states_are_uniform_on_free_places():
    states = np.asarray(states_everywhere())
    assert maze.is_free(jnp.asarray(states[:, :2])).all()
    assert np.abs(states[:, 2:]).max() <= 0.1
    # Per quadrant: 0.29^2 less two bars 0.18 x 0.03 that share 0.03^2, less two ends 0.02 x 0.01
    # with a quarter of a disc each.
    area = 4 * (0.29**2 - 2 * 0.18 * 0.03 + 0.03**2 - 2 * (0.02 * 0.01 + math.pi * 1e-4 / 4))
    boxes = [
        ((-0.02, 0.19), (0.02, 0.29), 0.04 * 0.1),  # the upper passage
        ((-0.29, 0.03), (-0.03, 0.29), 0.26**2),  # the upper left room
    ]
    for low, high, size in boxes:
        share = size / area
        seen = ((states[:, :2] >= low) & (states[:, :2] <= high)).all(-1).mean()
        assert abs(seen - share) <= 5 * math.sqrt(share / len(states))


# ------------------------------------------------------------------------- environment


def test_an_episode_begins_at_rest_in_the_upper_left_room_and_is_truncated():
    environment = maze.make("reach_top_left", max_steps=3)
    keys = jax.random.split(jax.random.key(0), 500)
    _, first = jax.vmap(environment.reset, in_axes=(0, None))(keys, environment.params)
    places = np.asarray(first.observation)
    assert ((places[:, 0] >= -0.29) & (places[:, 0] <= -0.15)).all()
    assert ((places[:, 1] >= 0.15) & (places[:, 1] <= 0.29)).all()
    np.testing.assert_allclose(places[:, :2].mean(0), [-0.22, 0.22], atol=0.01)
    np.testing.assert_array_equal(places[:, 2:], 0.0)
    state, _ = environment.reset(jax.random.key(0), environment.params)
    step = jax.jit(environment.step)
    for number in range(1, 4):
        before = state.body
        action = jnp.array([0.3, -0.4])
        state, seen = step(jax.random.key(1), state, action, environment.params)
        np.testing.assert_allclose(seen.observation, maze.next_state(before, action), atol=1e-7)
        paid = maze.reward("reach_top_left", seen.observation, action)
        assert float(seen.reward) == pytest.approx(float(paid), abs=1e-6)
        assert bool(seen.truncated) == (number == 3)
        assert not bool(seen.terminated)


def test_wrappers_work_on_it_and_structures_agree():
    environment = wrappers.record_episodes(wrappers.auto_reset(maze.make("loop", max_steps=4)))
    assert environment.observation_spec.shape == (4,)
    assert environment.action_spec.shape == (2,)
    state, first = environment.reset(jax.random.key(0), environment.params)

    def body(state, key):
        return environment.step(key, state, jnp.ones(2), environment.params)

    state, seen = jax.lax.scan(body, state, jax.random.split(jax.random.key(1), 10))
    np.testing.assert_array_equal(np.nonzero(seen.truncated)[0], [3, 8])
    assert int(state.episodes) == 2
    assert jax.tree.structure(first) == jax.tree.structure(seen)
    assert [leaf.dtype for leaf in first] == [leaf.dtype for leaf in seen]
    # The fifth step shows the next start, at rest.
    np.testing.assert_array_equal(seen.observation[4, 2:], 0.0)


def test_physics_can_be_swept():
    sweep = jax.tree.map(lambda value: jnp.full(3, value), maze.EXORL)
    sweep = sweep._replace(damping=jnp.array([0.5, 1.0, 2.0]))
    moved = jax.vmap(maze.next_state, in_axes=(None, None, 0))(
        body(-0.2, 0.2), jnp.array([1.0, 0.0]), sweep
    )
    # v' = h f / (m + h d).
    np.testing.assert_allclose(moved[:, 2], 0.002 / (0.3 + 0.02 * sweep.damping), rtol=1e-5)
    states = jax.vmap(lambda key: maze.sample_states(key, 4))(jax.random.split(jax.random.key(0)))
    assert maze.is_free(states[..., :2]).all()


# ------------------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("task", "observation", "action", "expected"),
    [
        # 10^-((d - 0.015) / 0.09)^2: within the goal, a margin off, half of one off.
        ("reach_top_left", (-0.14, 0.15, 0, 0), None, 1.0),
        ("reach_top_right", (0.15, 0.045, 0, 0), None, 0.1),
        ("reach_bottom_right", (0.21, -0.15, 0, 0), None, 10**-0.25),
        # (4 + mean(1 - a^2)) / 5: 0.8 at full force, 0.9 with one component of it.
        ("reach_bottom_left", (-0.15, -0.15, 0, 0), (1, -1), 0.8),
        ("reach_bottom_left", (-0.15, -0.15, 0, 0), (0, -1), 0.9),
        # On the diamond at the right speeds, clockwise, in each room.
        ("loop", (-0.12, 0.12, 0.08, 0.08), None, 1.0),
        ("loop", (0.12, 0.12, 0.08, -0.08), None, 1.0),
        ("loop", (0.12, -0.12, -0.08, -0.08), None, 1.0),
        ("loop", (-0.12, -0.12, -0.08, 0.08), None, 1.0),
        # One speed half a margin slow; the other way round; 0.03 off the line.
        ("loop", (0.12, 0.12, 0.055, -0.08), None, 2.5 / 3),
        ("loop", (-0.12, 0.12, -0.08, -0.08), None, 1 / 3),
        ("loop", (-0.12, 0.12 + 0.03 * math.sqrt(2), 0.08, 0.08), None, 2.5 / 3),
        # Clockwise at 0.05 on each edge; anticlockwise; in a corner; in the middle.
        ("square", (0.0, 0.25, 0.05, 0), None, 0.5),
        ("square", (0.25, 0.0, 0, -0.05), None, 0.5),
        ("square", (0.0, -0.25, -0.05, 0), None, 0.5),
        ("square", (-0.25, 0.0, 0, 0.05), None, 0.5),
        ("square", (0.0, 0.25, -0.05, 0), None, 0.0),
        ("square", (0.25, 0.25, 0.05, -0.05), None, 0.0),
        ("square", (0.1, 0.1, 0.05, 0), None, 0.0),
        # Anticlockwise, slow above and below and fast at the sides; too near the edge.
        ("fast_slow", (0.0, 0.25, -0.045, 0), None, 1.0),
        ("fast_slow", (0.25, 0.0, 0, 0.095), None, 1.0),
        ("fast_slow", (0.0, -0.25, 0.055, 0), None, 0.5),
        ("fast_slow", (-0.25, 0.0, 0, -0.095), None, 1.0),
        ("fast_slow", (0.0, 0.29, -0.045, 0), None, 0.0),
        # Far from the goal five times the clockwise speed, a hundred times the other way's.
        ("reach_bottom_left_long", (0.0, 0.25, 0.08, 0), None, 0.4),
        ("reach_bottom_left_long", (0.0, 0.25, -0.08, 0), None, -8.0),
        ("reach_bottom_left_long", (0.2, 0.0, 0, -0.3), None, 0.5),
        ("reach_bottom_left_long", (0.0, 0.0, 0.1, 0.1), None, 0.0),
        ("reach_bottom_left_long", (-0.15, -0.15, 0, 0), (1, 1), 0.8),
    ],
)
def test_rewards_at_known_points(task, observation, action, expected):
    observation = jnp.array(observation, float)
    action = None if action is None else jnp.array(action, float)
    assert float(maze.reward(task, observation, action)) == pytest.approx(expected, abs=2e-5)
    # A batch is its members; actions of 0 are no actions.
    batch = jnp.stack([observation, observation]).reshape(2, 1, 4)
    idle = jnp.zeros((2, 1, 2)) if action is None else jnp.tile(action, (2, 1, 1))
    np.testing.assert_allclose(maze.TASKS[task](batch, idle), [[expected]] * 2, atol=2e-5)


def test_exorls_margin_is_to_be_had():
    # 10^-((0.03 - 0.015) / 0.015)^2.
    place = body(0.15, 0.18)[None]
    narrow = maze.reach_reward(place, goal=maze.GOALS["reach_top_right"], margin=0.015)
    np.testing.assert_allclose(narrow, [0.1], atol=1e-5)


# ------------------------------------------------------------------------- policies


@functools.lru_cache(maxsize=1)
def controlled():
    """Where each controller leads from 400 states in a thousand steps: name -> [T, 400, 4]."""
    names = [*maze.GOALS, "reach_bottom_left_long", "loop"]

    @jax.jit
    def roll(states):
        return {name: maze.rollout(states, maze.controller(name), 1000) for name in names}

    return jax.tree.map(np.asarray, roll(states_everywhere()[:400]))


@pytest.mark.parametrize("task", [*maze.GOALS, "reach_bottom_left_long"])
def test_controllers_reach_their_goals_from_everywhere(task):
    start, path = np.asarray(states_everywhere()[:400]), controlled()[task]
    rooms = (start[:, 0] > 0) + 2 * (start[:, 1] > 0)
    assert set(rooms) == {0, 1, 2, 3}
    goal = np.array(maze.GOALS[task.removesuffix("_long")])
    away = np.linalg.norm(path[..., :2] - goal, axis=-1)
    assert (away < 0.015).argmax(0).max() < 700
    # They come to rest there.
    assert away[-1].max() < 1e-3
    assert np.abs(path[-1, :, 2:]).max() < 1e-3
    assert maze.is_free(jnp.asarray(path[..., :2])).all()


def test_the_long_way_is_clockwise():
    path = controlled()["reach_bottom_left_long"]
    turned = np.unwrap(np.arctan2(path[..., 1], path[..., 0]), axis=0)
    upper_left = (path[0, :, 0] < -0.1) & (path[0, :, 1] > 0.1)
    # From (-0.15, 0.15) to (-0.15, -0.15) over three rooms: three quarters of a turn.
    np.testing.assert_allclose((turned[-1] - turned[0])[upper_left], -1.5 * np.pi, atol=0.6)
    short = controlled()["reach_bottom_left"]
    turned = np.unwrap(np.arctan2(short[..., 1], short[..., 0]), axis=0)
    np.testing.assert_allclose((turned[-1] - turned[0])[upper_left], 0.5 * np.pi, atol=0.6)


def test_the_loop_loops():
    path = controlled()["loop"]
    turned = np.unwrap(np.arctan2(path[..., 1], path[..., 0]), axis=0)
    turns = -(turned[-1] - turned[399]) / (2 * np.pi)
    # A side is 0.24 long along either axis, 3 seconds at 0.08: a turn in 12 seconds, 600 steps, and
    # some for the corners.
    assert turns.min() > 0.85
    assert turns.max() <= 1.0
    paid = np.asarray(maze.reward("loop", jnp.asarray(path[400:])))
    assert paid.mean(0).min() > 0.9
    assert maze.is_free(jnp.asarray(path[..., :2])).all()


def test_a_rollout_is_the_environments():
    environment, policy = maze.make("loop"), maze.controller("loop")
    state, seen = environment.reset(jax.random.key(3), environment.params)
    path = maze.rollout(seen.observation, policy, 20)
    step = jax.jit(environment.step)
    for expected in path:
        state, seen = step(jax.random.key(0), state, policy(seen.observation), environment.params)
        np.testing.assert_allclose(seen.observation, expected, atol=1e-6)


# ------------------------------------------------------------------------- data


def still(observations, key):
    del key
    return jnp.zeros_like(observations[:, :2])


def test_collected_transitions_follow_the_physics_and_begin_anew():
    data = maze.collect(
        jax.random.key(0), still, num_steps=50, num_envs=8, noise=1.0, episode_steps=20
    )
    assert [leaf.shape for leaf in data] == [(400, 4), (400, 2), (400, 4)]
    moved = jax.jit(maze.next_state)(data.observations, data.actions)
    np.testing.assert_allclose(data.next_observations, moved, atol=1e-6)
    assert np.abs(data.actions).max() == 1.0
    paths = [np.asarray(leaf).reshape(50, 8, -1) for leaf in data]
    goes_on = (paths[0][1:] == paths[2][:-1]).all((-2, -1))
    np.testing.assert_array_equal(np.nonzero(~goes_on)[0] + 1, [20, 40])
    again = maze.collect(
        jax.random.key(0), still, num_steps=50, num_envs=8, noise=1.0, episode_steps=20
    )
    np.testing.assert_array_equal(again.next_observations, data.next_observations)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_has_its_size_and_correlation(correlation):
    data = maze.collect(
        jax.random.key(0), still, num_steps=200, num_envs=400, noise=0.2, correlation=correlation
    )
    noise = np.asarray(data.actions, np.float64).reshape(200, 800)
    assert noise.std() == pytest.approx(0.2, rel=0.03)
    assert noise[0].std() == pytest.approx(0.2, rel=0.15)
    together = (noise[1:] * noise[:-1]).mean() / 0.04
    assert together == pytest.approx(correlation, abs=0.05)


def test_without_noise_the_data_are_the_policys():
    policy = maze.controller("reach_top_right")
    data = maze.collect(
        jax.random.key(0),
        lambda observations, key: policy(observations),
        num_steps=5,
        num_envs=6,
        noise=0.0,
    )
    np.testing.assert_allclose(data.actions, policy(data.observations), atol=1e-6)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("task must be one of", lambda: maze.make("nowhere")),
        ("task must be one of", lambda: maze.reward("nowhere", jnp.zeros(4))),
        ("task must be one of", lambda: maze.controller("square")),
        ("max_steps must be", lambda: maze.make(max_steps=0)),
        ("count must be", lambda: maze.sample_states(jax.random.key(0), 0)),
        ("num_steps must be", lambda: maze.rollout(jnp.zeros(4), maze.controller("loop"), 0)),
        (
            "episode_steps must be",
            lambda: maze.collect(
                jax.random.key(0), still, num_steps=1, num_envs=1, episode_steps=0
            ),
        ),
        (
            "noise must be",
            lambda: maze.collect(jax.random.key(0), still, num_steps=1, num_envs=1, noise=-1.0),
        ),
        (
            "correlation must be",
            lambda: maze.collect(
                jax.random.key(0), still, num_steps=1, num_envs=1, correlation=1.0
            ),
        ),
    ],
)
def test_what_is_out_of_range_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
