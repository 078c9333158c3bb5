"""Every `reason` config makes a run that could start."""

import pytest

from bellmax.configs.reason import mtpo, nash_md
from bellmax.experiments import (
    config,
    dialogue_config,
    dialogue_methods,
    errors,
    language_config,
    reason_config,
    reason_methods,
)


def test_every_config_is_tested():
    assert config.config_names("reason") == ["mtpo", "nash_md"]


@pytest.mark.parametrize(
    "specification", ["nash_md", "nash_md:all", *(f"nash_md:{name}" for name in nash_md.TAUS)]
)
def test_loads_and_is_checked(specification):
    parsed = config.to_dataclass(reason_config.ReasonConfig, config.load("reason", specification))
    reason_config.check(parsed)
    network = language_config.make_network(parsed.model, vocab_size=6)
    assert network.vocab_size == 6
    assert set(parsed.loss.names) <= set(reason_methods.METHODS)


@pytest.mark.parametrize("specification", ["mtpo", *(f"mtpo:{name}" for name in mtpo.METHODS)])
def test_conversations_load_and_are_checked(specification):
    loaded = config.load("reason", specification)
    parsed = config.to_dataclass(dialogue_config.DialogueConfig, loaded)
    dialogue_config.check(parsed)
    assert dialogue_config.make_game(parsed.data).num_turns == 3
    assert language_config.make_network(parsed.model, vocab_size=8).num_layers == 2


def test_every_method_has_a_variant():
    assert set(nash_md.TAUS) == set(reason_methods.METHODS)
    assert set(mtpo.METHODS) == set(dialogue_methods.METHODS)


def test_an_unknown_variant_is_named():
    with pytest.raises(errors.UserError, match="Did you mean 'nash_ema'"):
        config.load("reason", "nash_md:nash_emma")
