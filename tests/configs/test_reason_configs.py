"""Every `reason` config makes a run that could start."""

import pytest

from bellmax.configs.reason import mtpo, nash_md, tasks
from bellmax.experiments import (
    config,
    dialogue_config,
    dialogue_methods,
    errors,
    language_config,
    reason_config,
    reason_methods,
    task_config,
    task_data,
    task_methods,
    text_config,
)

ON_TASKS = (
    "agro",
    "copg",
    "grpo",
    "jepo",
    "majority",
    "pass_at_k",
    "ppo",
    "remax",
    "rloo",
    "tasks",
)


def test_every_config_is_tested():
    assert config.config_names("reason") == sorted(["gsm8k", "mtpo", "nash_md", *ON_TASKS])


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


def test_questions_load_and_are_checked():
    keys = config.load("reason", "gsm8k:grpo")
    with pytest.raises(errors.UserError, match=r"config\.data\.path is empty"):
        text_config.check(config.to_dataclass(text_config.TextConfig, keys))
    keys.update({"data": {"path": "train.jsonl", "held_out_path": "test.jsonl"}})
    parsed = config.to_dataclass(text_config.TextConfig, keys)
    text_config.check(parsed)
    assert parsed.loss.names == ("grpo",)
    assert language_config.make_network(parsed.model, vocab_size=258).num_layers == 2


@pytest.mark.parametrize("name", ON_TASKS)
def test_tasks_load_and_are_checked(name):
    for variant in ("", ":countdown"):
        loaded = config.load("reason", name + variant)
        parsed = config.to_dataclass(task_config.TaskConfig, loaded)
        task_config.check(parsed)
        task = task_data.make_task(parsed.data)
        for method, beta in zip(parsed.loss.names, parsed.loss.betas, strict=True):
            task_methods.make_method(method, beta, parsed.loss, task)
    assert parsed.data.task == "countdown"
    with pytest.raises(errors.UserError, match="there are: addition"):
        config.load("reason", f"{name}:sums")


def test_every_task_has_a_start():
    assert set(tasks.TASKS) == set(task_data.TASKS)


def test_every_method_has_a_variant():
    assert set(nash_md.TAUS) == set(reason_methods.METHODS)
    assert set(mtpo.METHODS) == set(dialogue_methods.METHODS)


def test_an_unknown_variant_is_named():
    with pytest.raises(errors.UserError, match="Did you mean 'nash_ema'"):
        config.load("reason", "nash_md:nash_emma")
