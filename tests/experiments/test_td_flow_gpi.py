"""The claim about planning over a family of policies: a tiny run of it, and its rule both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import maze
from bellmax.experiments import errors, horizon_family, horizon_planning, horizon_pushes
from bellmax.experiments.claims import registry
from bellmax.experiments.claims import td_flow_gpi as claim

SETTINGS = horizon_family.Settings(
    num_transitions=640,
    task_size=4,
    policy_sizes=(8, 8),
    model_sizes=(8,),
    batch_size=8,
    policy_updates=10,
    model_updates=10,
    train_steps=2,
    plan_steps=2,
)
PLAN = horizon_planning.Plan(
    tasks=("reach_top_left", "reach_bottom_right"),
    num_starts=4,
    num_trials=2,
    num_steps=6,
    num_candidates=3,
    num_samples=2,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpi")
    return directory, claim.learn(3, directory, settings=SETTINGS, plan=PLAN)


@pytest.mark.slow
def test_every_way_is_scored_on_every_task(found):
    _, row = found
    ways = len(horizon_planning.WAYS)
    for name in ("discounted", "total"):
        scores = np.array(row[name])
        assert scores.shape == (2, ways)
        # Rewards are in (0, 1]: of six steps.
        assert np.all((scores > 0) & (scores <= 6))
    assert np.all(np.array(row["discounted"]) <= np.array(row["total"]))
    assert np.all((np.array(row["kept"]) >= 0) & (np.array(row["kept"]) <= 1))


@pytest.mark.slow
def test_a_run_goes_on_and_other_settings_are_refused(found, monkeypatch):
    directory, row = found
    monkeypatch.setattr(horizon_family, "make_data", None)
    again = claim.learn(3, directory, settings=SETTINGS, plan=PLAN)
    assert again == json.loads(json.dumps(row))
    with pytest.raises(errors.UserError, match="other settings"):
        claim.learn(3, directory, settings=SETTINGS._replace(discount=0.5), plan=PLAN)


def test_a_step_is_half_a_second_of_the_maze():
    # From rest under a push of 1 along x: v_k = (.3 v + .01) / .4 and x moves .1 v_k, five times.
    velocity, place = 0.0, 0.1
    for _ in range(5):
        velocity = (0.3 * velocity + 0.01) / 0.4
        place += 0.1 * velocity
    states = jnp.array([[0.1, 0.24, 0.0, 0.0]])
    after = horizon_pushes.advance(states, lambda states: jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(after, [[place, 0.24, velocity, 0.0]], rtol=1e-5)


def test_collected_steps_are_steps_of_the_maze():
    data = horizon_pushes.collect(640, jax.random.key(0))
    assert data.observations.shape == (640, 4)
    assert np.all(np.asarray(maze.is_free(data.next_observations[:, :2], maze.EXORL)))
    after = horizon_pushes.advance(data.observations, lambda states: data.actions)
    np.testing.assert_allclose(after, data.next_observations, atol=1e-6)
    with pytest.raises(ValueError, match="num_transitions must be a multiple of 64, got 650"):
        horizon_pushes.collect(650, jax.random.key(0))


def test_networks_see_waves_of_the_place_beside_it(monkeypatch):
    seen = []
    for module, name in (("mlp", "apply"), ("mlp", "apply_ensemble"), ("flow", "apply")):

        def record(*args):
            seen.append(np.asarray(args[-1]))
            return jnp.ones(1)

        monkeypatch.setattr(getattr(horizon_family, module), name, record)
    networks = horizon_family.make_networks(SETTINGS._replace(octaves=2, task_size=1))
    state, action, task = (
        jnp.array(values) for values in ([0.5, -1.0, 7.0, 8.0], [2.0, 3.0], [9.0])
    )
    networks.actor(None, state, task)
    networks.forward(None, state, action, task)
    networks.backward(None, state)
    networks.velocity(None, state, jnp.zeros(()), jnp.concatenate([state, action, task]))
    angles = [0.5, 1.0], [-1.0, -2.0]
    waves = [wave for of in angles for wave in (*np.sin(of), *np.cos(of))]
    expected = [
        [*state, *waves, *task],
        [*state, *waves, *action, *task],
        [*state[:2], *waves],
        [*state, *waves, *action, *task],
    ]
    for found, row in zip(seen, expected, strict=True):
        np.testing.assert_allclose(found, row, rtol=1e-5)


@pytest.fixture(scope="module")
def barely_trained():
    """A family after two updates. Settings, data, family."""
    settings = SETTINGS._replace(policy_updates=2, model_updates=20)
    data = horizon_family.make_data(settings, 0)
    return settings, data, horizon_family.train_policies(settings, data, 0)


def test_candidates_are_the_rewards_own_and_others_near_it(barely_trained):
    settings, _, family = barely_trained
    plan = PLAN._replace(num_candidates=41, nearby_scale=0.01)
    tasks = np.asarray(horizon_planning.choose_candidates(settings, plan, family, 0))
    assert tasks.shape == (2, 41, 4)
    np.testing.assert_allclose(np.linalg.norm(tasks, axis=-1), 2.0, rtol=1e-5)
    networks = horizon_family.make_networks(settings)
    reached = networks.backward(family.policies.params.backward, family.pool)
    places = family.scale.from_model(family.pool)
    for name, (own, *others) in zip(plan.tasks, tasks, strict=True):
        paid = np.asarray(maze.reward(name, places))
        mean = np.mean(paid[:, None] * np.asarray(reached), axis=0)
        np.testing.assert_allclose(own, 2 * mean / np.linalg.norm(mean), rtol=1e-3, atol=1e-4)
        apart = np.linalg.norm(np.array(others) - own, axis=-1)
        # A step of .01 times the length of 2, less what is along it.
        assert np.all((apart > 0) & (apart < 0.0201))
    assert not np.allclose(tasks[0], tasks[1])


@pytest.mark.slow
def test_the_model_learns_of_the_tasks_that_it_is_given_alone(barely_trained):
    settings, data, family = barely_trained
    tasks = jnp.array([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    once, thrice, other = (
        horizon_family.train_model(settings, data, family.policies, given, 0)
        for given in (tasks[:1], jnp.repeat(tasks[:1], 3, axis=0), tasks[1:])
    )
    # Whichever rows are drawn, they are of the same task.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), once, thrice)
    leaves = zip(jax.tree.leaves(once), jax.tree.leaves(other), strict=True)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in leaves)


def test_returns_are_sums_of_what_is_reached():
    starts = jnp.array([[-0.15, 0.15, 0.0, 0.0]])
    reward_fn = functools.partial(maze.reward, "reach_top_left")

    def stay(states, key):
        return lambda states: jnp.zeros_like(states[:, :2]), jnp.ones(states.shape[0])

    discounted, total, own = horizon_planning.follow(
        stay, starts, reward_fn, jax.random.key(0), num_steps=3, discount=0.5
    )
    # On the goal every step pays 1.
    np.testing.assert_allclose([discounted[0], total[0], own], [1.75, 3.0, 1.0], rtol=1e-5)


def scores(ours, single, best, forward_backward):
    """Scores of three seeds; the last two ways do not count. [3, M]."""
    spread = np.array([[-0.01], [0.0], [0.01]])
    row = np.array([[single, best, forward_backward, ours, 0.1, 1.0]])
    # The noise of each seed is common to all but us.
    return row + spread * np.array([[1, 1, 1, 2, 0, 0]])


def test_rule_holds_where_planning_is_ahead_of_all_and_fails_where_it_is_not():
    # Differences have mean .05 and deviation .01: 2.48 deviations are the half of the interval.
    found = claim.gains(scores(0.5, 0.45, 0.45, 0.45))
    assert claim.holds(found)
    for mean, low, high in found.values():
        half = 4.302653 * 0.01 / 3**0.5
        np.testing.assert_allclose([mean, low, high], [0.05, 0.05 - half, 0.05 + half], rtol=1e-5)
    for rivals in ((0.48, 0.4, 0.4), (0.4, 0.48, 0.4), (0.4, 0.4, 0.48), (0.6, 0.4, 0.4)):
        assert not claim.holds(claim.gains(scores(0.5, *rivals)))


def test_scores_are_in_units_of_the_controller():
    returns = np.ones((1, 2, 6))
    returns[0, :, -1] = [2.0, 4.0]
    # (1/2 + 1/4) / 2.
    np.testing.assert_allclose(claim.normalised(returns), [[0.375] * 5 + [1.0]])


def test_run_reports_draws_and_names_all_ways(tmp_path, monkeypatch):
    def learn(seed, directory):
        scores = np.linspace(0.1, 0.2, 4 * 6).reshape(4, 6) + 0.01 * seed
        return {"discounted": scores, "total": 2 * scores, "kept": [[0.5, 0.5]] * 4}

    monkeypatch.setattr(claim, "learn", learn)
    outcome = registry.load("td_flow_gpi").run(2, tmp_path)
    # Later ways are ahead, and so model-GPI is of the three before it, in both seeds alike.
    assert outcome.passed
    assert all(mean > 0 for mean, _, _ in outcome.details["undiscounted_gains"].values())
    assert all(name in outcome.figure for name in horizon_planning.WAYS[:-1])
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planning_is_ahead_of_all_on_the_first_seed(tmp_path):
    # A quarter of an hour; all seeds take five times as long.
    row = claim.learn(claim.FIRST_SEED, tmp_path)
    (scores,) = claim.normalised(np.array([row["discounted"]]))
    ours = scores[horizon_planning.WAYS.index(claim.OURS)]
    for rival in claim.RIVALS:
        assert ours > scores[horizon_planning.WAYS.index(rival)] + 0.05
