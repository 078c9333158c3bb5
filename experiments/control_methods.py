"""From the keys of a `control` config to environments, networks and agents."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from bellmax import losses
from bellmax.agents import distributional_q, followers, return_laws
from bellmax.agents.networks import value
from bellmax.envs import ArraySpec, DiscreteSpec, Environment, gridworlds, tabular, wrappers
from bellmax.envs.adapters import atari, gymnasium, gymnax
from bellmax.experiments import config as config_lib
from bellmax.experiments import control_actions, control_loop, errors, optimizers
from bellmax.experiments.control_config import ControlConfig, EnvironmentConfig
from bellmax.experiments.control_replay import Options, Replay

TRACES: dict[str, losses.TraceFn] = {
    "one_step": losses.one_step_traces,
    "q_lambda": losses.q_lambda_traces,
    "retrace": losses.retrace_traces,
    "tree_backup": losses.tree_backup_traces,
    "importance_sampling": losses.importance_traces,
}


def _tabular(name: str) -> Environment:
    # The lake's published hundred steps, and one for the way out of the goal, which pays here.
    grids = {
        "frozen_lake": functools.partial(gridworlds.frozen_lake, max_steps=101),
        "cliff_walk": functools.partial(gridworlds.cliff_walk, max_steps=200),
    }
    if name not in grids:
        raise ValueError(
            f"name must be one of {', '.join(grids)}, got {name!r}."
            f"{config_lib.did_you_mean(name, grids)}"
        )
    return wrappers.one_hot_observations(tabular.environment(grids[name]()))


SOURCES: dict[str, Callable[[str], Environment]] = {
    "tabular": _tabular,
    "gymnax": gymnax.make,
    "gymnasium": gymnasium.make,
    "atari": atari.make,
}


def make_environment(config: EnvironmentConfig) -> Environment:
    """Returns the environment of a config, which resets by itself and records its episodes.

    Continuous actions are in [-1, 1], see `control_actions.unit_actions`.

    Args:
      config: the data group.

    Returns:
      The environment.

    Raises:
      UserError: there is no such environment, or its package is not installed.
    """
    if config.source not in SOURCES:
        raise errors.UserError(
            f"config.data.source must be one of {', '.join(SOURCES)}, got {config.source!r}."
            f"{config_lib.did_you_mean(config.source, SOURCES)}"
        )
    with config_lib.user_errors("config.data"):
        try:
            environment = control_actions.unit_actions(SOURCES[config.source](config.name))
        except ImportError as error:
            raise errors.UserError(f"config.data: {error}") from error
        if config.sticky_actions:
            environment = wrappers.sticky_actions(environment, config.sticky_actions)
    return control_loop.prepare(environment)


def make_setup(config: ControlConfig, place: int, environment: Environment) -> control_loop.Setup:
    """Binds one method to an environment and a network.

    Args:
      config: the run.
      place: place of the method in `config.loss.names`.
      environment: from `make_environment`.

    Returns:
      What the loop of training needs.

    Raises:
      UserError: a key is wrong.
    """
    model, loss, train = config.model, config.loss, config.train
    name = loss.names[place]
    if name not in TRACES:
        raise config_lib.unknown("config.loss.names", name, TRACES)
    spec, actions = environment.observation_spec, environment.action_spec
    if not isinstance(spec, ArraySpec) or not isinstance(actions, DiscreteSpec):
        raise errors.UserError(
            f"config.data.name must show arrays and take one of some actions, which "
            f"{config.data.name} does not."
        )
    with config_lib.user_errors("config.model"):
        network = value.ValueNetworkConfig(
            observation_shape=spec.shape,
            num_actions=actions.num_values,
            num_outputs=model.num_outputs,
            hidden_sizes=model.hidden_sizes,
            conv_channels=model.conv_channels,
            conv_kernels=model.conv_kernels,
            conv_strides=model.conv_strides,
            observation_scale=model.observation_scale,
            dueling=model.dueling,
            noisy=model.noisy,
        )
    with config_lib.user_errors("config.loss"):
        options: dict[str, Any] = {
            "apply": functools.partial(value.apply, network),
            "law": _law(config),
        }
        backing: dict[str, Any] = {
            "trace_fn": functools.partial(TRACES[name], trace_decay=loss.trace_decays[place]),
            "mixing": loss.mixings[place],
            "discount": loss.discount,
            "double": loss.double,
        }
        epsilon = optax.linear_schedule(
            train.epsilon_start,
            train.epsilon_end,
            max(1, train.epsilon_env_steps // train.env_steps_per_update),
        )
        agent = distributional_q.make(
            **options,
            **backing,
            optimizer=optimizers.make_optimizer(config.optimizer, train.num_updates),
            init_params=functools.partial(value.init, network),
            target_rule=followers.every(loss.target_every),
            epsilon=epsilon,
        )
        # Traced once here: a wrong lambda is found before the first stage starts.
        half = jnp.full((1, 1), 0.5)
        backing["trace_fn"](half, half)
    return control_loop.Setup(
        environment=environment,
        agent=agent,
        behaviour=functools.partial(distributional_q.behaviour, **options, epsilon=epsilon),
        greedy=functools.partial(distributional_q.greedy, **options),
        td_errors=functools.partial(distributional_q.td_errors, **options, **backing),
        replay=Replay(
            Options(
                num_environments=train.num_environments,
                batch_size=train.batch_size,
                sequence_length=train.sequence_length,
                size=train.replay_size,
                learning_starts=train.learning_starts,
                priority_exponent=train.priority_exponent,
                importance_exponent=train.importance_exponent,
            )
        ),
        num_environments=train.num_environments,
        steps_per_update=train.env_steps_per_update // train.num_environments,
        # Images of MinAtar are of zeros and ones, and a one-hot state is.
        observation_dtype=jnp.uint8 if _is_binary(config) else spec.dtype,
        reward_clip=config.data.reward_clip,
    )


def _is_binary(config: ControlConfig) -> bool:
    return config.data.source == "tabular" or config.data.name.endswith("-MinAtar")


def _law(config: ControlConfig) -> return_laws.ReturnLaw:
    model, loss = config.model, config.loss
    if model.law == "quantile":
        return return_laws.quantile(kappa=loss.kappa)
    support = jnp.linspace(model.v_min, model.v_max, model.num_outputs)
    return return_laws.categorical(support, kind=loss.kind)
