"""Every `control` config makes a run that could start."""

import jax.numpy as jnp
import pytest

from bellmax.configs.control import c51_q_lambda
from bellmax.envs import DiscreteSpec
from bellmax.experiments import config, control_config, control_methods, errors

NAMES = config.config_names("control")


@pytest.mark.parametrize(
    "specification",
    [*NAMES, *(f"{name}:{variant}" for name in NAMES for variant in c51_q_lambda.VARIANTS)],
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


def test_an_unknown_variant_is_named():
    with pytest.raises(errors.UserError, match="Did you mean 'minatar_breakout'"):
        config.load("control", "c51_q_lambda:minatar_breakot")
