"""Temporal-difference flows: limits that all objectives share, and laws known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy import stats

from bellmax import agents
from bellmax.agents import followers, horizon, horizon_objectives, td_flow
from bellmax.agents.networks import flow

OBJECTIVES = {
    "td_cfm": horizon_objectives.td_cfm(num_steps=2),
    "coupled_td_cfm": horizon_objectives.coupled_td_cfm(num_steps=2),
    "td2_cfm": horizon_objectives.td2_cfm(num_steps=2),
    "td_dd": horizon_objectives.td_dd(num_steps=2, num_levels=50),
    "td2_dd": horizon_objectives.td2_dd(num_steps=2, num_levels=50),
}
FLOWS, DIFFUSIONS = ("td_cfm", "coupled_td_cfm", "td2_cfm"), ("td_dd", "td2_dd")
NETWORK = flow.FlowNetworkConfig(
    2, condition_size=3, hidden_sizes=(8,), u_shaped=False, time_features=4
)
SIZE = 6


def make_agent(objective, *, discount=0.9, optimizer=None, **options):
    return td_flow.make(
        functools.partial(flow.apply, NETWORK),
        optax.sgd(0.1) if optimizer is None else optimizer,
        objective=objective,
        discount=discount,
        init_params=functools.partial(flow.init, NETWORK),
        **options,
    )


def make_batch(**changes):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    batch = agents.TransitionBatch(
        normal(SIZE, 2), normal(SIZE, 1), normal(SIZE, 2), normal(SIZE, 1)
    )
    return batch._replace(**changes)


@functools.cache
def stepped(name, discount=0.9):
    agent = make_agent(OBJECTIVES[name], discount=discount)
    return agent.init(jax.random.key(1)), jax.jit(agent.update)


def assert_equal_trees(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)


@pytest.mark.parametrize("names", [FLOWS, DIFFUSIONS])
def test_without_discount_all_learn_the_next_state(names):
    batch, key = make_batch(), jax.random.key(2)
    found = []
    for name in names:
        state, update = stepped(name, 0.0)
        found.append(update(state, batch, key)[0].params)
    if names == FLOWS:
        agent = make_agent(horizon_objectives.monte_carlo())
        found.append(agent.update(agent.init(jax.random.key(1)), batch, key)[0].params)
    for other in found[1:]:
        assert_equal_trees(found[0], other)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ended_episodes_do_not_bootstrap(name):
    batch, key = make_batch(terminated=jnp.ones(SIZE, bool)), jax.random.key(2)
    state, update = stepped(name)
    plain_state, plain = stepped(name, 0.0)
    assert_equal_trees(
        update(state, batch, key)[0].params, plain(plain_state, batch, key)[0].params
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_weight_zero_change_nothing(name):
    key, state_update = jax.random.key(3), stepped(name)
    state, update = state_update
    batch = make_batch(index=jnp.arange(SIZE) + 7)
    spoilt = jax.tree.map(
        lambda leaf: (
            jnp.concatenate([leaf, jnp.full_like(leaf[:2], jnp.nan)])
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else jnp.concatenate([leaf, leaf[:2]])
        ),
        batch,
    )
    weight = jnp.concatenate([jnp.ones(SIZE), jnp.zeros(2)])
    expected = update(state, batch._replace(weight=jnp.ones(SIZE)), key)
    found = jax.jit(update)(state, spoilt._replace(weight=weight), key)
    assert_equal_trees(found, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_target_is_bootstrapped_from(name):
    """The gradient at a target of other parameters is that with the bootstrap as constants."""
    state, update = stepped(name)
    batch, key = make_batch(), jax.random.key(4)
    moved = state._replace(target_params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))
    assert float(update(moved, batch, key)[1]["loss"]) != float(
        update(state, batch, key)[1]["loss"]
    )
    # Where the target stands still, the loss of a step is a function whose slope is the step's.
    step = update(moved, batch, key)[0]
    gradient = jax.tree.map(lambda old, new: (old - new) / 0.1, moved.params, step.params)

    def loss(scale):
        shifted = jax.tree.map(lambda leaf, by: leaf + scale * by, moved.params, gradient)
        return float(update(moved._replace(params=shifted), batch, key)[1]["loss"])

    squared = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradient))
    width = 1e-2 / np.sqrt(squared)
    np.testing.assert_allclose((loss(width) - loss(-width)) / (2 * width), squared, rtol=2e-2)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_range_of_data_bounds_samples_and_bootstraps(name):
    make = getattr(horizon_objectives, name)
    rng = np.random.default_rng(1)
    noise, direct, fresh = (jnp.asarray(rng.normal(size=(SIZE, 2)), jnp.float32) for _ in range(3))
    draws = horizon_objectives.Draws(jnp.linspace(0.0, 0.9, SIZE), direct, noise, fresh)

    def network(point, level):
        del level
        return 0.9 * point

    def found(data_range):
        objective = make(num_steps=3, num_levels=50, data_range=data_range)
        loss = objective.loss(network, network, noise, draws, jnp.asarray(0.9))
        return objective.sample(network, noise, 3), loss

    samples, losses = found(None)
    low, high = jnp.array([-0.2, 0.0]), jnp.array([0.05, 0.3])
    assert not np.any((samples >= low) & (samples <= high))
    clipped, narrow = found((low, high))
    assert np.all((clipped >= low - 1e-6) & (clipped <= high + 1e-6))
    assert not np.any(np.isclose(losses, narrow, rtol=1e-3)[1:])
    # A range that holds all of them changes nothing.
    assert_equal_trees(found((-100.0, 100.0)), (samples, losses))


def test_target_follows():
    agent = make_agent(OBJECTIVES["td2_cfm"], target_rule=followers.average(0.75))
    start = agent.init(jax.random.key(0))
    after, _ = agent.update(start, make_batch(), jax.random.key(1))
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, start.params, after.params)
    assert_equal_trees(after.target_params, expected)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(start)]
    assert len(set(buffers)) == len(buffers)


def test_policy_gives_the_next_actions():
    def policy(observations, tasks):
        assert tasks is None
        return observations[:, :1] * 2

    batch = make_batch(next_actions=None)
    agent = make_agent(OBJECTIVES["td2_cfm"], policy_fn=policy)
    state = agent.init(jax.random.key(0))
    given = batch._replace(next_actions=policy(batch.next_observations, None))
    assert_equal_trees(
        agent.update(state, batch, jax.random.key(1)),
        make_agent(OBJECTIVES["td2_cfm"]).update(state, given, jax.random.key(1)),
    )
    with pytest.raises(ValueError, match="next_actions"):
        make_agent(OBJECTIVES["td2_cfm"]).update(state, batch, jax.random.key(1))


def test_refuses_a_discount_of_one():
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\), got 1"):
        make_agent(OBJECTIVES["td2_cfm"], discount=1.0)
    with pytest.raises(ValueError, match="discount"):
        horizon.value(jnp.ones((2, 1)), lambda x: x[..., 0], discount=1.0)


MEAN, SPREAD = 1.5, 0.5


def gaussian_velocity(params, point, time, condition):
    """The exact field of N(MEAN, SPREAD^2 I) under straight paths, test C3."""
    t = time[..., None]
    scale = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
    return MEAN + scale * (point - t * MEAN)


def gaussian_noise(params, point, time, condition):
    """The exact noise of N(MEAN, SPREAD^2 I) at a level over 1,000: minus the score, scaled."""
    # alpha-bar by the schedule's own product, interpolated in the level.
    betas = np.linspace(1e-4, 2e-2, 1000)
    log_kept = jnp.asarray(np.cumsum(np.log1p(-betas)), jnp.float32)
    kept = jnp.exp(jnp.interp(time * 1000, jnp.arange(1000.0), log_kept))[..., None]
    variance = kept * SPREAD**2 + 1 - kept
    return jnp.sqrt(1 - kept) * (point - jnp.sqrt(kept) * MEAN) / variance


@pytest.mark.parametrize(
    ("name", "apply", "steps"),
    [("td2_cfm", gaussian_velocity, 40), ("td2_dd", gaussian_noise, 100)],
)
def test_samples_and_densities_of_exact_networks(name, apply, steps):
    objective = getattr(horizon_objectives, name)()
    condition = jnp.zeros((4096, 1))
    noise = jax.random.normal(jax.random.key(0), (4096, 2))
    found = td_flow.sample((), noise, condition, apply=apply, objective=objective, num_steps=steps)
    # Five standard errors of the mean, and of the standard deviation; the solver adds a little.
    np.testing.assert_allclose(found.mean(axis=0), MEAN, atol=5 * SPREAD / 64 + 0.01)
    np.testing.assert_allclose(found.std(axis=0), SPREAD, atol=5 * SPREAD / 90 + 0.01)
    points = jnp.array([[1.5, 1.5], [1.0, 2.2], [0.2, 1.4]])
    density = td_flow.log_likelihood(
        (), points, condition[:3], apply=apply, objective=objective, num_steps=400
    )
    exact = stats.norm.logpdf(points, MEAN, SPREAD).sum(axis=-1)
    # Diffusion ends at N(.0098, 1) and not at N(0, 1), which 2.6 deviations out is worth .03, and
    # its schedule is a product of steps and not the integral, worth .02.
    np.testing.assert_allclose(density, exact, atol=0.005 if name == "td2_cfm" else 0.06)


def test_value_of_a_linear_reward_is_that_of_the_mean():
    """Under N(1.5, .25 I) the reward x + 2 y pays 4.5 on average, 18 over a horizon of four."""
    states = jnp.zeros((3, 2))
    found = td_flow.value(
        (),
        states,
        jnp.zeros((3, 1)),
        jax.random.key(0),
        jnp.zeros((3, 5)),
        reward_fn=lambda points: points[..., 0] + 2 * points[..., 1],
        apply=gaussian_velocity,
        objective=horizon_objectives.td2_cfm(),
        discount=0.75,
        num_samples=4096,
    )
    assert found.shape == (3,)
    # Five standard errors, of sqrt(1 + 4) / 2 a sample, four times as much over the horizon.
    np.testing.assert_allclose(found, 18.0, atol=5 * 4 * 5**0.5 / 2 / 64)


def test_value_is_the_mean_reward_over_the_horizon():
    samples = jnp.array([[[0.0], [1.0]], [[2.0], [4.0]]])
    found = horizon.value(samples, lambda x: x[..., 0], discount=0.75)
    np.testing.assert_allclose(found, [2.0, 12.0])


def test_learns_the_horizon_of_a_linear_gaussian_chain():
    """Test C5: S' = .8 S + .5 eps at gamma .9 and s = 2 has mean .571429, variance .866866."""
    network = flow.FlowNetworkConfig(
        1, condition_size=1, hidden_sizes=(32, 32), u_shaped=False, time_features=4
    )
    objective = horizon_objectives.td2_cfm(num_steps=4)
    agent = td_flow.make(
        functools.partial(flow.apply, network),
        optax.adam(optax.cosine_decay_schedule(1e-2, 600)),
        objective=objective,
        discount=0.9,
        init_params=functools.partial(flow.init, network),
        target_rule=followers.average(0.95),
    )
    nothing = jnp.zeros((128, 0))

    @jax.jit
    def train(state, key):
        def step(state, number):
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            here = 2 * jax.random.normal(keys[0], (128, 1))
            there = 0.8 * here + 0.5 * jax.random.normal(keys[1], (128, 1))
            batch = agents.TransitionBatch(here, nothing, there, nothing)
            return agent.update(state, batch, keys[2])[0], None

        return jax.lax.scan(step, state, jnp.arange(600))[0]

    state = train(agent.init(jax.random.key(0)), jax.random.key(1))
    samples = td_flow.sample(
        state.target_params,
        jax.random.normal(jax.random.key(2), (8192, 1)),
        jnp.full((8192, 1), 2.0),
        apply=functools.partial(flow.apply, network),
        objective=objective,
    )
    # Loose: the network is small and training short. The next state alone has mean 1.6, variance
    # .25, and the law far ahead mean 0 and variance .694.
    assert abs(float(samples.mean()) - 0.5714) < 0.15
    assert abs(float(samples.var()) - 0.8669) < 0.25
