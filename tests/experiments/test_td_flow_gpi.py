"""The claim about planning over a family of policies: a tiny run of it, and its rule both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import maze
from bellmax.experiments import errors, horizon_family, horizon_planning
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
    monkeypatch.setattr(horizon_family, "train", None)
    again = claim.learn(3, directory, settings=SETTINGS, plan=PLAN)
    assert again == json.loads(json.dumps(row))
    with pytest.raises(errors.UserError, match="other settings"):
        claim.learn(3, directory, settings=SETTINGS._replace(discount=0.9), plan=PLAN)


def test_a_step_is_half_a_second_of_the_maze():
    # From rest under a push of 1 along x: v_k = (.3 v + .01) / .4 and x moves .1 v_k, five times.
    velocity, place = 0.0, 0.1
    for _ in range(5):
        velocity = (0.3 * velocity + 0.01) / 0.4
        place += 0.1 * velocity
    states = jnp.array([[0.1, 0.24, 0.0, 0.0]])
    after = horizon_family.advance(states, lambda states: jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(after, [[place, 0.24, velocity, 0.0]], rtol=1e-5)


def test_collected_steps_are_steps_of_the_maze():
    data = horizon_family.collect(SETTINGS, jax.random.key(0))
    assert data.observations.shape == (640, 4)
    assert np.all(np.asarray(maze.is_free(data.next_observations[:, :2], maze.EXORL)))
    after = horizon_family.advance(data.observations, lambda states: data.actions)
    np.testing.assert_allclose(after, data.next_observations, atol=1e-6)


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
def test_planning_is_ahead_of_two_rivals_on_average_and_behind_the_third(tmp_path):
    # The claim fails, and says so: the best candidate by real returns is better.
    loaded = registry.load("td_flow_gpi")
    outcome = loaded.run(loaded.default_seeds, tmp_path)
    assert not outcome.passed
    gains = outcome.details["gains"]
    assert gains["policy of the reward"][0] > 0
    assert gains["FB-GPI"][0] > 0
    assert gains["best candidate"][0] < 0
