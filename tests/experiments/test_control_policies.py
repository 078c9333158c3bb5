"""Policies of `control`: from configs to agents, discrete and continuous, and what is refused."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.configs.control import base
from bellmax.envs import ArraySpec
from bellmax.experiments import (
    control,
    control_actions,
    control_methods,
    control_policies,
    control_training,
    errors,
    mesh,
)

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("control_policy_cases.py")))
make_config, reach, train = CASES["make_config"], CASES["reach"], CASES["train"]
FLOWS = CASES["FLOWS"]


@pytest.fixture(autouse=True, scope="module")
def _reach():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(control_methods.SOURCES, "reach", reach)
        yield


@pytest.mark.slow
def test_a_policy_learns_from_a_replay(tmp_path):
    """How such a run goes on after being stopped is the loop's, and tested in test_control.py."""
    config = make_config("replay")
    (row,), state = train(config, tmp_path)
    assert max(row["last_returns"]) > -2
    assert min(row["last_returns"]) > -4
    # Actions are kept as critics read them, in [-1, 1]; rewards as they are learnt from.
    steps = state.seeds.replay.experience
    assert 0.3 < np.abs(steps.action).max() <= 1
    assert steps.action.shape[-1] == 1
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_every_flow_and_kind_of_action_makes_a_window(flow, name):
    """Traced, not run: the state keeps its shapes and types."""
    config = make_config(flow, name)
    environment = control_methods.make_environment(config.data)
    makers = {
        "rollouts": control_policies.make_rollout_setup,
        "replay": control_policies.make_replay_setup,
    }
    for place in range(len(config.loss.names)):
        setup = makers[flow](config, place, environment)
        state = jax.eval_shape(
            control_training.start(setup, 2), jax.eval_shape(lambda: jax.random.key(0))
        )
        step = control_training.train_step(setup, config.train, mesh.make_mesh())
        key = jax.eval_shape(lambda: jax.random.key(0))
        after, found = jax.eval_shape(step, state, (), key)

        def types(tree):
            return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

        assert types(after) == types(state)
        assert {"loss", "updates/done", "episodes/return", "env_steps", "kl/old"} - set(found) <= (
            {"kl/old"} if config.loss.names[place] == "ppo" else set()
        )


def test_continuous_actions_have_one_unit():
    environment = control_actions.unit_actions(reach("continuous"))
    assert environment.action_spec == ArraySpec((1,), low=-1.0, high=1.0)
    state, _ = environment.reset(jax.random.key(0), ())
    for action, moved in ((1.0, 0.5), (-0.2, 0.4), (7.0, 0.9), (-3.0, 0.4)):
        state, timestep = environment.step(jax.random.key(0), state, jnp.asarray([action]), ())
        np.testing.assert_allclose(timestep.observation[0], moved, rtol=1e-6)
    discrete = reach("discrete")
    assert control_actions.unit_actions(discrete) is discrete
    with pytest.raises(ValueError, match="whose actions have limits"):
        control_actions.unit_actions(discrete._replace(action_spec=ArraySpec((1,))))


@pytest.mark.parametrize(
    ("flow", "groups", "message"),
    [
        ("rollouts", {"train": {"rollout_length": 0}}, "config.train.rollout_length must be at"),
        ("rollouts", {"loss": {"epochs": (0, 1)}}, r"config.loss.epochs must be at least 1, got"),
        ("rollouts", {"loss": {"minibatches": (3, 1)}}, "minibatches must divide .* 56, got 3"),
        ("rollouts", {"loss": {"epochs": (1,)}}, "config.loss.epochs must hold one value for each"),
        ("rollouts", {"loss": {"names": ("ppo", "pppo")}}, "'pppo'.*Did you mean 'ppo'"),
        ("rollouts", {"loss": {"clip_epsilon": -0.1}}, "config.loss: clip_epsilon must be at"),
        ("rollouts", {"loss": {"discount": 1.5}}, r"config.loss: discount must be in \[0, 1\]"),
        ("rollouts", {"model": {"activation": "gelu"}}, "config.model.activation must be one of"),
        ("rollouts", {"model": {"initial_std": 0.0}}, "config.model.initial_std must be positive"),
        ("rollouts", {"model": {"hidden_sizes": (0,)}}, "config.model: hidden_sizes must hold"),
        ("rollouts", {"data": {"sticky_actions": 1.0}}, "config.data.sticky_actions must be in"),
        ("replay", {"loss": {"names": ("sca",)}}, "'sca'.*Did you mean 'sac'"),
        ("replay", {"loss": {"names": ("sac", "sac")}}, "config.loss.names must hold distinct"),
        ("replay", {"loss": {"num_inner_steps": 0}}, "config.loss: num_inner_steps must be at"),
        ("replay", {"train": {"replay_size": 50}}, "config.train.replay_size must hold .* 100"),
        ("replay", {"optimizer": {"name": "adams"}}, "config.optimizer.name is 'adams'"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_key(flow, groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        control.train(make_config(flow, **groups), tmp_path)


def test_a_flow_that_there_is_not_is_named():
    config = base.get_rollout_config()
    config.flow = "rollout"
    with pytest.raises(errors.UserError, match=r"config.flow .*Did you mean 'rollouts'"):
        control.parse(config)
