"""Every `reason` config makes a run that could start."""

import pytest

from bellmax.configs.reason import nash_md
from bellmax.experiments import config, errors, language_config, reason_config, reason_methods

NAMES = config.config_names("reason")


@pytest.mark.parametrize(
    "specification", [*NAMES, "nash_md:all", *(f"nash_md:{name}" for name in nash_md.TAUS)]
)
def test_loads_and_is_checked(specification):
    parsed = config.to_dataclass(reason_config.ReasonConfig, config.load("reason", specification))
    reason_config.check(parsed)
    network = language_config.make_network(parsed.model, vocab_size=6)
    assert network.vocab_size == 6
    assert set(parsed.loss.names) <= set(reason_methods.METHODS)


def test_every_method_has_a_variant():
    assert set(nash_md.TAUS) == set(reason_methods.METHODS)


def test_an_unknown_variant_is_named():
    with pytest.raises(errors.UserError, match="Did you mean 'nash_ema'"):
        config.load("reason", "nash_md:nash_emma")
