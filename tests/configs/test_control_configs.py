"""Every `control` config makes a run that could start."""

import jax
import jax.numpy as jnp
import pytest

from bellmax.configs.control import c51_q_lambda, mdpo_off_policy, ppo
from bellmax.envs import ArraySpec, DiscreteSpec
from bellmax.experiments import (
    config,
    control,
    control_config,
    control_methods,
    control_policies,
    control_policy_config,
    errors,
)

LAWS = ("c51_q_lambda", "qr_q_lambda")
POLICIES = {"ppo": ppo, "mdpo": ppo, "mdpo_off_policy": mdpo_off_policy}


def test_every_config_is_looked_at_here():
    assert set(config.config_names("control")) == {*LAWS, *POLICIES}


@pytest.mark.parametrize(
    "specification",
    [
        *POLICIES,
        *(f"{name}:{variant}" for name, of in POLICIES.items() for variant in of.VARIANTS),
    ],
)
def test_policies_load_and_are_checked(specification):
    keys = control.parse(config.load("control", specification))
    assert not isinstance(keys, control_config.ControlConfig)
    control_policy_config.check(keys)
    assert keys.data.source in control_methods.SOURCES
    name = specification.split(":")[0]
    assert keys.loss.names == (name,)
    if isinstance(keys, control_policy_config.RolloutConfig):
        assert name in control_policies.ON_POLICY
    else:
        assert name in control_policies.OFF_POLICY
        assert keys.train.num_updates * keys.train.env_steps_per_update > 10_000


@pytest.mark.parametrize(
    "specification",
    [*LAWS, *(f"{name}:{variant}" for name in LAWS for variant in c51_q_lambda.VARIANTS)],
)
def test_loads_and_is_checked(specification):
    keys = config.to_dataclass(control_config.ControlConfig, config.load("control", specification))
    control_config.check(keys)
    assert keys.data.source in control_methods.SOURCES
    assert set(keys.loss.names) <= set(control_methods.TRACES)
    assert keys.model.law == ("quantile" if specification.startswith("qr") else "categorical")
    # Exploration has declined and most updates are left when half of the steps are done.
    assert keys.train.epsilon_env_steps <= keys.train.num_env_steps / 2
    assert keys.train.num_updates * keys.train.env_steps_per_update > keys.train.num_env_steps / 2


@pytest.mark.parametrize("variant", ["frozen_lake", "cliff_walk"])
def test_tabular_variants_make_networks_and_environments(variant):
    specification = f"c51_q_lambda:{variant}"
    keys = config.to_dataclass(control_config.ControlConfig, config.load("control", specification))
    environment = control_methods.make_environment(keys.data)
    setup = control_methods.make_setup(keys, 0, environment)
    assert setup.observation_dtype == jnp.uint8
    assert environment.action_spec == DiscreteSpec(4)


@pytest.mark.parametrize("name", POLICIES)
def test_pendulum_is_stepped_within_the_program(name):
    """Many seeds are cheap and a run is resumed exactly, where no step calls Python."""
    pytest.importorskip("gymnax", reason="needs the extra `environments`")
    keys = control.parse(config.load("control", f"{name}:pendulum"))
    environment = control_methods.make_environment(keys.data)
    assert environment.action_spec == ArraySpec((1,), low=-1.0, high=1.0)
    key = jax.random.key(0)
    state, _ = jax.eval_shape(lambda: environment.reset(key, environment.params))
    program = jax.make_jaxpr(
        lambda state: environment.step(key, state, jnp.zeros(1), environment.params)
    )(state)
    assert "callback" not in str(program)


@pytest.mark.parametrize(
    ("specification", "meant"),
    [
        ("c51_q_lambda:minatar_breakot", "minatar_breakout"),
        ("mdpo:cartpol", "cartpole"),
        ("mdpo_off_policy:pendlum", "pendulum"),
    ],
)
def test_an_unknown_variant_is_named(specification, meant):
    with pytest.raises(errors.UserError, match=f"Did you mean '{meant}'"):
        config.load("control", specification)
