"""From the keys of a `control` config to agents that learn policies, discrete or continuous."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from bellmax.agents import (
    Agent,
    Params,
    SequenceBatch,
    TransitionBatch,
    action_laws,
    mdpo,
    mdpo_off_policy,
    ppo,
    rollouts,
    td3,
)
from bellmax.agents.action_laws import ActionLaw, Gaussian
from bellmax.agents.networks import mlp
from bellmax.envs import ArraySpec, DiscreteSpec, Environment
from bellmax.experiments import config as config_lib
from bellmax.experiments import control_loop, control_rollouts, errors, optimizers
from bellmax.experiments.control_policy_config import (
    OffPolicyConfig,
    PolicyModelConfig,
    RolloutConfig,
)
from bellmax.experiments.control_replay import Options, Replay

# Policies start nearly alike in all states: the last layer's kernel is multiplied by it.
_LAST_LAYER_SCALE = 0.01
# Limits of a squashed policy's log standard deviation, which is free to follow the state.
_LEAST_LOG_STD, _GREATEST_LOG_STD = -5.0, 2.0


class Interface(NamedTuple):
    """What an environment shows and takes, as policies see it.

    Attributes:
      law: of the actions.
      is_discrete: whether they are discrete.
      shape: of an observation.
    """

    law: ActionLaw
    is_discrete: bool
    shape: tuple[int, ...]

    def flat(self, observations: Array) -> Array:
        """Returns observations as vectors. [..., D]."""
        lead = observations.ndim - len(self.shape)
        return observations.reshape(*observations.shape[:lead], -1)

    def to_actions(self, choices: Array) -> Array:
        """Returns what the environment takes: a discrete choice as it is, else its features."""
        return choices if self.is_discrete else self.law.features(choices)


def _interface(environment: Environment, name: str, *, squash: bool) -> Interface:
    spec, actions = environment.observation_spec, environment.action_spec
    if not isinstance(spec, ArraySpec):
        raise errors.UserError(f"config.data.name must show arrays, which {name} does not.")
    if isinstance(actions, DiscreteSpec):
        return Interface(action_laws.categorical(actions.num_values), True, spec.shape)
    if len(actions.shape) != 1:
        raise errors.UserError(
            f"config.data.name must take a vector of actions, {name} takes {actions.shape}."
        )
    return Interface(action_laws.gaussian(actions.shape[0], squash=squash), False, spec.shape)


def _network(model: PolicyModelConfig, inputs: int, outputs: int) -> mlp.MLPConfig:
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[model.activation]
    with config_lib.user_errors("config.model"):
        return mlp.MLPConfig(inputs, outputs, model.hidden_sizes, activation)


def _start(network: mlp.MLPConfig, key: PRNGKeyArray) -> Params:
    params = mlp.init(network, key)
    kernel = _LAST_LAYER_SCALE * params["output"]["kernel"]
    return params | {"output": params["output"] | {"kernel": kernel}}


def _actor_critic(
    model: PolicyModelConfig, face: Interface
) -> tuple[rollouts.ActorCriticApply, Callable[[PRNGKeyArray], Params]]:
    """Returns policy and values, networks of their own; deviations do not depend on the state."""
    size = math.prod(face.shape)
    policy, value = _network(model, size, face.law.size), _network(model, size, 1)

    def init(key: PRNGKeyArray) -> Params:
        policy_key, value_key = jax.random.split(key)
        params = {"policy": _start(policy, policy_key), "value": mlp.init(value, value_key)}
        if not face.is_discrete:
            params["log_std"] = jnp.full(face.law.size, math.log(model.initial_std))
        return params

    def apply(params: Params, observations: Array) -> tuple[Any, Array]:
        seen = face.flat(observations)
        outputs: Any = mlp.apply(policy, params["policy"], seen)
        if not face.is_discrete:
            outputs = Gaussian(outputs, jnp.broadcast_to(params["log_std"], outputs.shape))
        return outputs, mlp.apply(value, params["value"], seen)[..., 0]

    return apply, init


class Method(NamedTuple):
    """What a method of rollouts is made from.

    Attributes:
      config: the run.
      place: of the method in `config.loss.names`.
      apply: the actor-critic.
      optimizer: its optimiser.
      options: what all methods share.
    """

    config: RolloutConfig
    place: int
    apply: rollouts.ActorCriticApply
    optimizer: optax.GradientTransformation
    options: dict[str, Any]

    @property
    def updates_per_rollout(self) -> int:
        """Updates on one rollout."""
        return self.config.loss.epochs[self.place] * self.config.loss.minibatches[self.place]


def _ppo(method: Method) -> Agent:
    clip = method.config.loss.clip_epsilon
    return ppo.make(method.apply, method.optimizer, clip_epsilon=clip, **method.options)


def _mdpo(method: Method) -> Agent:
    return mdpo.make(
        method.apply,
        method.optimizer,
        num_inner_steps=method.updates_per_rollout,
        step_sizes=mdpo.declining_steps(method.config.train.num_rollouts),
        **method.options,
    )


ON_POLICY: dict[str, Callable[[Method], Agent]] = {"ppo": _ppo, "mdpo": _mdpo}


def make_rollout_setup(
    config: RolloutConfig, place: int, environment: Environment
) -> control_rollouts.Setup:
    """Binds one method to an environment and networks.

    Args:
      config: the run.
      place: place of the method in `config.loss.names`.
      environment: from `control_methods.make_environment`.

    Returns:
      What the loop of rollouts needs.

    Raises:
      UserError: a key is wrong.
    """
    loss, train, name = config.loss, config.train, config.loss.names[place]
    if name not in ON_POLICY:
        raise config_lib.unknown("config.loss.names", name, ON_POLICY)
    face = _interface(environment, config.data.name, squash=False)
    apply, init_params = _actor_critic(config.model, face)
    credit = {"discount": loss.discount, "trace_decay": loss.trace_decay}
    updates = loss.epochs[place] * loss.minibatches[place] * train.num_rollouts
    optimizer = optimizers.make_optimizer(config.optimizer, updates)
    options = credit | {
        "law": face.law,
        "init_params": init_params,
        "value_coefficient": loss.value_coefficient,
        "value_clip": loss.value_clip or None,
        "entropy_coefficient": loss.entropy_coefficient,
        "normalise_advantages": loss.normalise_advantages,
    }
    with config_lib.user_errors("config.loss"):
        agent = ON_POLICY[name](Method(config, place, apply, optimizer, options))

    def greedy(state: Any, observations: Array) -> Array:
        return face.to_actions(face.law.mode(apply(state.params, observations)[0]))

    return control_rollouts.Setup(
        environment=environment,
        agent=agent,
        decide=lambda state, observations, key: rollouts.decide(
            state.params, observations, key, apply=apply, law=face.law
        ),
        to_actions=face.to_actions,
        greedy=greedy,
        with_advantages=lambda state, batch: rollouts.with_advantages(
            state.params, batch, apply=apply, **credit
        ),
        num_environments=train.num_environments,
        rollout_length=train.rollout_length,
        epochs=loss.epochs[place],
        minibatches=loss.minibatches[place],
        reward_clip=config.data.reward_clip,
        reward_scale=loss.reward_scale,
    )


# 1 / t of each method; soft actor-critic is the one whose mirror weight is its entropy's.
OFF_POLICY: dict[str, Callable[[OffPolicyConfig], float]] = {
    "mdpo_off_policy": lambda config: config.loss.inverse_step,
    "sac": lambda config: config.loss.entropy_weight,
}


def make_replay_setup(
    config: OffPolicyConfig, place: int, environment: Environment
) -> control_loop.Setup:
    """Binds one method to an environment, networks and a replay.

    Args:
      config: the run.
      place: place of the method in `config.loss.names`.
      environment: from `control_methods.make_environment`.

    Returns:
      What the loop of training needs.

    Raises:
      UserError: a key is wrong.
    """
    loss, train, name = config.loss, config.train, config.loss.names[place]
    if name not in OFF_POLICY:
        raise config_lib.unknown("config.loss.names", name, OFF_POLICY)
    face = _interface(environment, config.data.name, squash=True)
    law, size = face.law, math.prod(face.shape)
    policy = _network(config.model, size, law.size if face.is_discrete else 2 * law.size)
    value = _network(config.model, size + law.size, 1)
    first = math.log(config.model.initial_std)

    def actor(params: Params, observations: Array) -> Any:
        outputs = mlp.apply(policy, params, face.flat(observations))
        if face.is_discrete:
            return outputs
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return Gaussian(mean, jnp.clip(first + log_std, _LEAST_LOG_STD, _GREATEST_LOG_STD))

    def critic(params: Params, observations: Array, features: Array) -> Array:
        inputs = jnp.concatenate([face.flat(observations), features], axis=-1)
        return mlp.apply_ensemble(value, params, inputs)[..., 0]

    def init_params(key: PRNGKeyArray) -> td3.Networks:
        actor_key, critic_key = jax.random.split(key)
        return td3.Networks(_start(policy, actor_key), mlp.init_ensemble(value, critic_key, 2))

    with config_lib.user_errors("config.loss"):
        agent = mdpo_off_policy.make(
            actor,
            critic,
            optimizers.make_optimizer(config.optimizer, train.num_updates),
            law=law,
            init_params=init_params,
            discount=loss.discount,
            target_decay=loss.target_decay,
            inverse_step=OFF_POLICY[name](config),
            entropy_weight=loss.entropy_weight,
            num_inner_steps=loss.num_inner_steps,
            output_penalty=loss.output_penalty,
        )

    def update(state: Any, batch: SequenceBatch, key: PRNGKeyArray):
        return agent.update(state, _transitions(batch, face), key)

    def act(state: Any, observations: Array, key: PRNGKeyArray) -> Array:
        assert agent.act is not None
        return face.to_actions(agent.act(state, observations, key))

    return control_loop.Setup(
        environment=environment,
        agent=agent._replace(update=update),
        behaviour=None,
        greedy=lambda state, seen: face.to_actions(law.mode(actor(state.actor_params, seen))),
        td_errors=None,
        replay=Replay(
            Options(
                num_environments=train.num_environments,
                batch_size=train.batch_size,
                sequence_length=1,
                size=train.replay_size,
                learning_starts=train.learning_starts,
                priority_exponent=0.0,
                importance_exponent=0.0,
            )
        ),
        num_environments=train.num_environments,
        steps_per_update=train.env_steps_per_update // train.num_environments,
        observation_dtype=environment.observation_spec.dtype,
        reward_clip=config.data.reward_clip,
        reward_scale=loss.reward_scale,
        act=act,
    )


def _transitions(batch: SequenceBatch, face: Interface) -> TransitionBatch:
    """Returns sequences of one transition as transitions, with the features of their actions."""
    actions = batch.actions[:, 0]
    return TransitionBatch(
        observations=batch.observations[:, 0],
        actions=face.law.features(actions) if face.is_discrete else actions,
        next_observations=batch.observations[:, 1],
        rewards=batch.rewards[:, 0],
        terminated=batch.terminated[:, 0],
        index=batch.index,
        weight=batch.weight,
    )
