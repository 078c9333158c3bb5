import pytest

from bellmax.configs.tabular import mtpo, nash_md
from bellmax.experiments import config, errors, tabular_config, tabular_games, tabular_trees

CASES = [("nash_md", variant) for variant in (None, *nash_md.VARIANTS)]
CASES += [("mtpo", variant) for variant in (None, *mtpo.VARIANTS)]


def parse(name, variant):
    loaded = config.load("tabular", name if variant is None else f"{name}:{variant}")
    return config.to_dataclass(tabular_config.TabularConfig, loaded)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_config_and_variant_is_a_valid_run(name, variant):
    parsed = parse(name, variant)
    tabular_config.check(parsed)
    tabular_games.check_methods(parsed)
    tabular_trees.check_methods(parsed)
    for game in parsed.games.names:
        if variant != "meta":
            assert tabular_games.make_game(game, parsed).num_actions >= 3
    for tree in parsed.trees.names:
        assert tabular_trees.make_tree(tree, parsed).horizon >= 2


def test_every_config_is_tested():
    # Laws of returns have keys of their own: see tests/experiments/test_tabular_distributional.py.
    laws = {"dcfp", "q_lambda"}
    assert {name for name, _ in CASES} | laws == set(config.config_names("tabular"))


def test_every_method_is_in_a_config():
    methods = parse("nash_md", None).games.methods
    # On the schedule mirror descent is what INPO does.
    assert set(methods) == set(tabular_games.METHODS) - {"mirror_descent"}
    assert set(parse("mtpo", None).trees.methods) == set(tabular_trees.METHODS)


@pytest.mark.parametrize(
    ("name", "options"), [("nash_md", nash_md.VARIANTS), ("mtpo", mtpo.VARIANTS)]
)
def test_an_unknown_variant_lists_the_options(name, options):
    with pytest.raises(errors.UserError) as raised:
        parse(name, "randon")
    for option in options:
        assert option in str(raised.value)
    assert "Did you mean 'random'?" in str(raised.value)
