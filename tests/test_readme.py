"""What the README shows is run."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

from bellmax import agents, losses
from bellmax.experiments import config

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_example_runs_and_learns():
    code, _ = CODE
    # 15 lines, and what they stand between.
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(4, 2, 5, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(0, 7, (4, 2, 5))),
        "mask": jnp.ones((4, 2, 5)),
        "reference_log_probs": jnp.full((4, 2), -5 * np.log(7.0)),
    }
    params = jnp.zeros((3, 7))
    opt_state = names["optimizer"].init(params)
    history = []
    for _ in range(3):
        params, opt_state, loss = names["train_step"](params, opt_state, batch)
        history.append(float(loss))
    np.testing.assert_allclose(history[0], np.log(2), rtol=1e-5)
    assert history[2] < history[1] < history[0]


def test_names_in_the_table_exist():
    for dotted in re.findall(r"`(losses|agents)\.([\w.]+)`", README):
        owner = {"losses": losses, "agents": agents}[dotted[0]]
        for part in dotted[1].split("."):
            assert hasattr(owner, part), f"README names {'.'.join(dotted)}"
            owner = getattr(owner, part)


def test_configs_that_are_named_exist():
    named = re.findall(r"(\w+) --config=(\w+)", README)
    assert len(named) == len(re.findall(r"--config=\w", README))
    for binary, name in named:
        assert name in config.config_names(binary), f"{binary} --config={name}"


def test_sampling_example_runs():
    _, code = CODE
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    completion = names["completion"]
    assert completion.tokens.shape == completion.log_probs.shape == (2, 16)
    assert (completion.mask[:, 0] == 1).all()


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"\.venv/bin/(pytest [^\n`]+)\n", README)
    assert command in (ROOT / ".ci" / "run").read_text()
