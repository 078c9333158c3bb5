"""An environment that is learnt in seconds, and tiny configs of policies for it."""

import jax
import jax.numpy as jnp
import pytest

from bellmax.configs.control import base
from bellmax.envs import ArraySpec, DiscreteSpec, Environment, TimeStep
from bellmax.experiments import control, runner


def reach(name):
    """A point is pushed by at most .5; a step costs its distance from 1, and six steps truncate."""
    discrete = name == "discrete"

    def show(state, reward):
        place, time = state
        seen = jnp.stack([place, 1.0 * time])
        return state, TimeStep(seen, reward, jnp.zeros((), bool), time >= 6)

    def reset(key, params):
        del key, params
        return show((jnp.zeros(()), jnp.zeros((), jnp.int32)), jnp.zeros(()))

    def step(key, state, action, params):
        del key, params
        push = 0.5 * (action - 1) if discrete else jnp.clip(action[0], -0.5, 0.5)
        place = jnp.clip(state[0] + push, -2, 2)
        return show((place, state[1] + 1), -jnp.abs(place - 1))

    actions = DiscreteSpec(3) if discrete else ArraySpec((1,), low=-0.5, high=0.5)
    return Environment(reset, step, (), ArraySpec((2,)), actions)


TINY = {
    "rollouts": {
        "model": {"hidden_sizes": (8,)},
        "optimizer": {"learning_rate": 3e-2},
        "data": {"source": "reach"},
        "loss": {
            "names": ("ppo", "mdpo"),
            "epochs": (4, 8),
            "minibatches": (2, 1),
            "discount": 0.9,
        },
        "train": {
            "num_seeds": 2,
            "num_env_steps": 2400,
            "num_environments": 4,
            "rollout_length": 14,
            "rollouts_per_step": 4,
            "evaluation_episodes": 2,
            "evaluation_steps": 20,
            "evaluate_every": 3,
            "checkpoint_every": 4,
            "keep_checkpoints": 4,
        },
    },
    "replay": {
        "model": {"hidden_sizes": (32, 32), "initial_std": 0.5},
        "optimizer": {"learning_rate": 3e-3, "max_grad_norm": 10.0},
        "data": {"source": "reach"},
        "loss": {
            "names": ("mdpo_off_policy",),
            "discount": 0.9,
            "target_decay": 0.9,
            "entropy_weight": 0.02,
            "inverse_step": 0.1,
            "num_inner_steps": 20,
        },
        "train": {
            "num_seeds": 2,
            "num_env_steps": 1200,
            "num_environments": 2,
            "env_steps_per_update": 2,
            "updates_per_step": 50,
            "batch_size": 32,
            "replay_size": 1000,
            "learning_starts": 100,
            "evaluation_episodes": 2,
            "evaluation_steps": 20,
            "evaluate_every": 3,
            "checkpoint_every": 4,
            "keep_checkpoints": 4,
        },
    },
}
FLOWS = {"rollouts": base.get_rollout_config, "replay": base.get_off_policy_config}


def make_config(flow, name="continuous", **groups):
    config = FLOWS[flow]()
    for changes in (TINY[flow], {"data": {"name": name}}, groups):
        config.update(changes)
    return control.parse(config)


def train(config, workdir):
    """Returns the rows and the last state of the last method."""
    states = []
    with pytest.MonkeyPatch.context() as patch:
        run_stage = runner.run_stage

        def watched(**arguments):
            states.append(run_stage(**arguments))
            return states[-1]

        patch.setattr(runner, "run_stage", watched)
        rows = control.train(config, workdir)
    return rows, jax.device_get(states[-1])
