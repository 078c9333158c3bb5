"""PPO and MDPO against exact gradients and fixed points of enumerated problems."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bellmax.agents import RolloutBatch, action_laws, mdpo, optimizers, ppo
from bellmax.agents.action_laws import Gaussian

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("rollout_cases.py")))
AGENTS = {"ppo": ppo.make, "mdpo": mdpo.make}
PLAIN = {"value_coefficient": 0.0, "normalise_advantages": False}


def make(name, optimizer=None, **options):
    return AGENTS[name](
        options.pop("apply", CASES["apply"]),
        optimizer or optax.sgd(1.0),
        **{"law": CASES["LAW"], "init_params": lambda key: CASES["start"](), **options},
    )


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("trace_decay", [1.0, 0.3])
def test_the_expected_first_step_is_the_exact_policy_gradient(name, trace_decay):
    """Whatever the values are at lambda 1, and with the true ones at any lambda."""
    params = CASES["start"]()
    if trace_decay < 1:
        params["values"] = jnp.asarray(CASES["values_of"](params["logits"]), jnp.float32)
    agent = make(name, discount=1.0, trace_decay=trace_decay, **PLAIN)
    state = agent.init(jax.random.key(0), params=params)
    batch = CASES["batch_of"](params["logits"])
    new, metrics = jax.jit(agent.update)(state, batch)
    exact = jax.grad(CASES["objective"])(params["logits"])
    # The loss is a mean over two counted steps an episode, and the return their sum.
    found = 2 * (new.params["logits"] - params["logits"])
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(new.params["values"], params["values"])
    np.testing.assert_allclose(metrics["kl/behaviour"], 0, atol=1e-6)
    probs = jax.nn.softmax(params["logits"], axis=-1)
    entropy = -jnp.sum(probs * jnp.log(probs), axis=-1)
    reached = jnp.asarray([1.0, *(probs[0] @ CASES["NEXT"])])
    np.testing.assert_allclose(metrics["policy/entropy"], reached @ entropy[:3] / 2, rtol=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_the_expected_first_step_of_a_gaussian_is_exact(name):
    """Reward -(a - c)^2 under N(m, s^2): the objective is -(m - c)^2 - s^2, by quadrature."""
    mean, std, target = 0.2, 0.5, -0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    law = action_laws.gaussian(1)
    params = {"mean": jnp.asarray([mean]), "log_std": jnp.log(jnp.asarray([std]))}

    def apply(params, observations):
        zero = 0 * observations
        return Gaussian(params["mean"] + zero, params["log_std"] + zero), zero[..., 0]

    actions = jnp.asarray(mean + std * nodes, jnp.float32)[:, None, None]
    ones = jnp.ones((8, 1))
    batch = RolloutBatch(
        observations=jnp.zeros((8, 2, 1)),
        actions=actions,
        rewards=-jnp.square(actions[..., 0] - target),
        terminated=ones > 0,
        truncated=ones < 0,
        begins=ones < 0,
        behaviour_log_probs=law.log_prob(apply(params, jnp.zeros((8, 1, 1)))[0], actions),
        weight=jnp.asarray(weights / weights.sum(), jnp.float32),
    )
    agent = make(name, law=law, apply=apply, **PLAIN)
    new, _ = jax.jit(agent.update)(agent.init(jax.random.key(0), params=params), batch)
    step = jax.tree.map(lambda new, old: float((new - old)[0]), new.params, params)
    assert step["mean"] == pytest.approx(-2 * (mean - target), rel=1e-4)
    assert step["log_std"] == pytest.approx(-2 * std**2, rel=1e-4)


def bandit_apply(params, observations):
    return observations * params, 0 * observations[..., 0]


PROBS, ADVANTAGES = np.array([0.5, 0.3, 0.2]), np.array([0.61, -0.89, -0.19])


def bandit_agent(**options):
    return make(
        "mdpo", law=action_laws.categorical(3), apply=bandit_apply,
        init_params=lambda key: jnp.log(jnp.asarray(PROBS, jnp.float32)), **PLAIN, **options,
    )  # fmt: skip


def test_many_inner_steps_of_mdpo_reach_the_mirror_step():
    # pi_k exp(t A) / Z at t = .5, and the loss there, -log(Z) / t.
    tilted = PROBS * np.exp(0.5 * ADVANTAGES)
    expected = tilted / tilted.sum()
    np.testing.assert_allclose(expected, [0.644517625, 0.182669141, 0.172813234], rtol=1e-8)
    agent = bandit_agent(step_sizes=lambda k: 0.5 + 0.0 * k, num_inner_steps=400)
    batch = CASES["bandit"](PROBS, ADVANTAGES)

    @functools.partial(jax.jit, static_argnums=1)
    def train(state, count):
        return jax.lax.fori_loop(0, count, lambda _, s: agent.update(s, batch)[0], state)

    state = train(agent.init(jax.random.key(0)), 399)
    np.testing.assert_allclose(jax.nn.softmax(state.params), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(state.target_params), PROBS, rtol=1e-6)
    state, metrics = jax.jit(agent.update)(state, batch)
    np.testing.assert_allclose(metrics["loss/policy"], -2 * np.log(tilted.sum()), rtol=1e-4)
    kl = (expected * np.log(expected / PROBS)).sum()
    np.testing.assert_allclose(metrics["kl/old"], kl, rtol=1e-3)
    # The iteration is over: pi_k is the policy.
    np.testing.assert_array_equal(state.params, state.target_params)


def test_step_sizes_decline_and_iterations_add_up():
    """Two of four iterations with constant advantages: pi_0 exp(A (1 + 3/4))."""
    agent = bandit_agent(step_sizes=mdpo.declining_steps(4), num_inner_steps=300)

    @jax.jit
    def iterate(state, batch):
        def one(_, carry):
            state, metrics = agent.update(carry[0], batch)
            return state, metrics["policy/step_size"]

        return jax.lax.fori_loop(0, 300, one, (state, jnp.zeros(())))

    state, sizes = agent.init(jax.random.key(0)), []
    for _ in range(2):
        probs = jax.nn.softmax(state.params)
        state, size = iterate(state, CASES["bandit"](probs, ADVANTAGES))
        sizes.append(float(size))
    np.testing.assert_allclose(sizes, [1.0, 0.75], rtol=1e-6)
    tilted = PROBS * np.exp(1.75 * ADVANTAGES)
    np.testing.assert_allclose(jax.nn.softmax(state.params), tilted / tilted.sum(), rtol=1e-3)
    later = [mdpo.declining_steps(4)(jnp.asarray(k)) for k in (2, 3, 4, 9)]
    np.testing.assert_allclose(later, [0.5, 0.25, 0.25, 0.25])


def test_ppo_clips_ratios():
    # rho, A and the mean loss -.2333 at epsilon .2: only 1.5 with A > 0 and .5 with A < 0 are cut.
    ratios, advantages = np.array([0.5, 0.9, 1.1, 1.5, 0.5, 1.5]), np.array([1, 1, 1, 1, -1, -1.0])
    uniform = np.full(6, 1 / 6)
    batch = CASES["bandit"](uniform, advantages)
    behaviour = jnp.asarray(np.log(uniform / ratios), jnp.float32)[:, None]
    agent = make(
        "ppo", law=action_laws.categorical(6), apply=bandit_apply,
        init_params=lambda key: jnp.zeros(6), **PLAIN,
    )  # fmt: skip
    state = agent.init(jax.random.key(0))
    new, metrics = jax.jit(agent.update)(state, batch._replace(behaviour_log_probs=behaviour))
    np.testing.assert_allclose(metrics["loss/policy"], -1.4 / 6, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clipped"], 4 / 6, rtol=1e-6)
    # d loss / d log pi(a) = -rho A / 6 where not cut; logits get it less its mean.
    slope = np.where([1, 1, 1, 0, 0, 1], -ratios * advantages, 0) / 6
    np.testing.assert_allclose(new.params, -(slope - slope.sum() / 6), rtol=1e-4, atol=1e-6)


def test_values_and_entropy_have_their_weights():
    params = CASES["start"]()
    batch = CASES["batch_of"](params["logits"])
    agent = make(
        "ppo", discount=1.0, trace_decay=1.0, value_coefficient=0.5, entropy_coefficient=0.1
    )
    state = agent.init(jax.random.key(0), params=params)
    new, metrics = jax.jit(agent.update)(state, batch)
    # lambda 1: targets are returns; the mean gradient is P(state) (V - E return) / 2 counted steps.
    true, values = CASES["values_of"](params["logits"]), np.asarray(params["values"])
    probs = np.asarray(jax.nn.softmax(params["logits"], axis=-1))
    reached = np.array([1.0, *(probs[0] @ CASES["NEXT"]), 0.0])
    moved = np.asarray(new.params["values"]) - values
    np.testing.assert_allclose(moved, 0.5 * reached * (true - values) / 2, rtol=1e-4, atol=1e-6)
    total = metrics["loss/policy"] + 0.5 * metrics["loss/value"] - 0.1 * metrics["policy/entropy"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    # Standardised advantages average to 0, and so does the loss at the behaviour itself.
    np.testing.assert_allclose(metrics["loss/policy"], 0, atol=1e-6)


@pytest.mark.parametrize("name", AGENTS)
def test_states_hold_every_buffer_once_and_skipped_steps_are_counted(name):
    agent = make(name, optimizers.skip_nonfinite(optax.adam(0.1)))
    given = CASES["start"]()
    update = jax.jit(agent.update, donate_argnums=0)
    batch = CASES["batch_of"](given["logits"])
    state = agent.init(jax.random.key(0), params=given)
    for _ in range(2):
        state, metrics = update(state, batch)
        assert np.isfinite(metrics["loss"])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert int(state.step) == 2
    before = jax.device_get(state.params)
    bad = batch._replace(rewards=batch.rewards.at[0, 0].set(jnp.inf))
    state, metrics = update(state, bad)
    assert float(metrics["updates/skipped"]) == 1.0
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ("ppo", {"trace_decay": -0.1}, r"trace_decay must be in \[0, 1\], got -0.1"),
        ("ppo", {"clip_epsilon": -0.1}, "clip_epsilon must be at least 0, got -0.1"),
        ("ppo", {"value_clip": 0.0}, "value_clip must be positive or None, got 0.0"),
        ("mdpo", {"value_coefficient": -1.0}, "value_coefficient must be at least 0, got -1.0"),
        ("mdpo", {"entropy_coefficient": float("nan")}, "entropy_coefficient must be at least 0"),
        ("mdpo", {"num_inner_steps": 0}, "num_inner_steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_a_schedule_needs_an_iteration():
    with pytest.raises(ValueError, match="num_iterations must be at least 1, got 0"):
        mdpo.declining_steps(0)
