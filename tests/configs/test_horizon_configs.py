"""Every `horizon` config makes a run that could start."""

import jax
import pytest

from bellmax.configs.horizon import td_flow
from bellmax.experiments import (
    config,
    errors,
    horizon_config,
    horizon_control,
    horizon_methods,
    horizon_sources,
)

NAMES = config.config_names("horizon")


def load(specification):
    return config.to_dataclass(horizon_config.HorizonConfig, config.load("horizon", specification))


@pytest.mark.parametrize(
    "specification", [*NAMES, *(f"td_flow:{variant}" for variant in td_flow.VARIANTS)]
)
def test_loads_and_is_checked(specification):
    keys = load(specification)
    horizon_config.check(keys)
    assert keys.data.source in horizon_sources.SOURCES
    if keys.data.source == "dm_control":
        assert keys.data.task in horizon_control.TASKS
    assert set(keys.loss.names) <= set(horizon_methods.METHODS)
    assert keys.train.num_updates >= keys.train.evaluate_every * keys.train.updates_per_step
    for _, name, discount in horizon_config.stages(keys):
        model = horizon_methods.make_model(
            keys, name, discount, point_size=4, condition_size=6, data_range=(-1.0, 1.0)
        )
        state = jax.eval_shape(model.agent.init, jax.random.key(0))
        assert state.step.shape == ()


def test_an_unknown_variant_is_named():
    with pytest.raises(errors.UserError, match="Did you mean 'maze_loop'"):
        config.load("horizon", "td_flow:maze_lop")
