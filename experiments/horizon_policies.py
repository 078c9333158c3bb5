"""Policies that a `horizon` run evaluates: trained by TD3, on what the models learn from."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from bellmax.agents import Params, td3
from bellmax.agents.networks import mlp
from bellmax.experiments import config as config_lib
from bellmax.experiments import horizon_training, progress
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.horizon_config import HorizonConfig
from bellmax.experiments.horizon_evaluation import Scale
from bellmax.experiments.horizon_truth import POLICY_DISCOUNT, Source

# MuJoCo takes 45 seconds for so many states.
_REWARDED_AT_ONCE = 500_000


def _rewards(source: Source) -> np.ndarray:
    """Returns what the transitions pay. [N]."""
    states = source.transitions.next_observations
    pieces = np.array_split(states, -(-len(states) // _REWARDED_AT_ONCE))
    rewards = []
    with progress.Progress("rewards", len(pieces), unit="pieces") as shown:
        shown.at(0, None)
        for piece in pieces:
            rewards.append(np.asarray(source.reward_fn(jnp.asarray(piece))))
            shown.at(len(rewards), "")
    return np.concatenate(rewards)


def train_td3(
    config: HorizonConfig,
    source: Source,
    scale: Scale,
    *,
    workdir: pathlib.Path,
    key: PRNGKeyArray,
    mesh: Mesh,
) -> Callable[[Array], Array]:
    """Trains a policy for the source's reward, or restores it.

    Args:
      config: the run.
      source: transitions and reward; its own policy is not read.
      scale: the units that networks see states in.
      workdir: folder of the run; the stage is called `policy`.
      key: randomness; consumed.
      mesh: the devices.

    Returns:
      `states [..., D] -> actions [..., A]` in the source's units, without noise.

    Raises:
      UserError: training has diverged, or a checkpoint does not fit.
    """
    rows, sizes = source.transitions, config.model.policy_sizes
    state_size, action_size = rows.observations.shape[-1], rows.actions.shape[-1]
    with config_lib.user_errors("config.model"):
        actor = mlp.MLPConfig(
            state_size, action_size, sizes, layer_norm=bool(sizes), output_tanh=True
        )
        critic = mlp.MLPConfig(state_size + action_size, 1, sizes, layer_norm=bool(sizes))

    def values(params: Params, states: Array, actions: Array) -> Array:
        inputs = jnp.concatenate([states, actions], axis=-1)
        return mlp.apply_ensemble(critic, params, inputs)[..., 0]

    def init_params(key: PRNGKeyArray) -> td3.Networks:
        first, second = jax.random.split(key)
        return td3.Networks(mlp.init(actor, first), mlp.init_ensemble(critic, second, 2))

    agent = td3.make(
        functools.partial(mlp.apply, actor),
        values,
        optax.adam(config.train.policy_learning_rate),
        init_params=init_params,
        discount=POLICY_DISCOUNT,
        target_decay=config.train.policy_target_decay,
        accumulate_steps=config.train.accumulate_steps,
    )

    def policy_of(params: Any) -> Callable[[Array], Array]:
        return lambda states: mlp.apply(actor, params, scale.to_model(states))

    def evaluate(state: td3.State) -> Mapping[str, float]:
        return {"policy/value": float(value_of(mesh_lib.gather(state.actor_params)))}

    assert source.value_of is not None
    of_policy = source.value_of
    value_of = jax.jit(lambda params: of_policy(policy_of(params)))
    start_key, run_key = jax.random.split(key)
    state = horizon_training.run_stage(
        config,
        "policy",
        agent,
        rows._replace(
            observations=scale.to_model(rows.observations),
            next_observations=scale.to_model(rows.next_observations),
            next_actions=None,
            rewards=_rewards(source),
        ),
        workdir=workdir,
        num_updates=config.train.policy_updates,
        start_key=start_key,
        run_key=run_key,
        mesh=mesh,
        evaluate=evaluate,
    )
    return policy_of(mesh_lib.gather(state.actor_params))
