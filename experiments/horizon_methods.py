"""Names of methods in `horizon` configs, and what they become: once, here."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bellmax import losses
from bellmax.agents import (
    Agent,
    Params,
    followers,
    horizon_gan,
    horizon_objectives,
    horizon_vae,
    optimizers,
    td_flow,
)
from bellmax.agents.horizon_objectives import Objective
from bellmax.agents.networks import flow, mlp
from bellmax.experiments import config as config_lib
from bellmax.experiments.horizon_config import HorizonConfig, LossConfig
from bellmax.experiments.optimizers import learning_rate_schedule, make_optimizer
from bellmax.losses.diffusion import DataRange

PATHS = {"linear": losses.linear_path, "curved": losses.curved_path}


class Model(NamedTuple):
    """A method, bound to networks.

    Attributes:
      agent: `init` and `update`.
      noise_size: features of the noise that a sample is made of.
      sample: `(params, noise[..., Z], condition[..., C]) -> samples[..., D]`.
      log_likelihood: `(params, points[..., D], condition[..., C]) -> [...]`, or None where there is
        no density.
    """

    agent: Agent
    noise_size: int
    sample: Callable[[Params, Array, Array], Array]
    log_likelihood: Callable[[Params, Array, Array], Array] | None


class _States(NamedTuple):
    """What networks and objectives are told of states, in the units that models learn in."""

    point_size: int
    condition_size: int
    data_range: DataRange


def _flow(name: str, loss: LossConfig, states: _States) -> Objective:
    del states
    makers = {
        "td_cfm": horizon_objectives.td_cfm,
        "coupled_td_cfm": horizon_objectives.coupled_td_cfm,
        "td2_cfm": horizon_objectives.td2_cfm,
    }
    return makers[name](num_steps=loss.flow_steps, path=PATHS[loss.path])


def _diffusion(name: str, loss: LossConfig, states: _States) -> Objective:
    makers = {"td_dd": horizon_objectives.td_dd, "td2_dd": horizon_objectives.td2_dd}
    return makers[name](
        num_steps=loss.diffusion_steps,
        num_levels=loss.num_levels,
        data_range=states.data_range if loss.clip_to_data else None,
    )


def _td_flow(
    make_objective: Callable[[str, LossConfig, _States], Objective],
    name: str,
    config: HorizonConfig,
    states: _States,
    common: dict[str, Any],
) -> Model:
    model, train = config.model, config.train
    with config_lib.user_errors("config.model"):
        network = flow.FlowNetworkConfig(
            point_size=states.point_size,
            condition_size=states.condition_size,
            hidden_sizes=model.hidden_sizes,
            u_shaped=model.u_shaped,
            time_features=model.time_features,
            min_frequency=model.min_frequency,
            max_frequency=model.max_frequency,
            time_sizes=model.time_sizes,
            condition_sizes=model.condition_sizes,
        )
    objective = make_objective(name, config.loss, states)
    steps = train.evaluation_flow_steps
    if make_objective is _diffusion:
        steps = train.evaluation_diffusion_steps
    bound: dict[str, Any] = {
        "apply": functools.partial(flow.apply, network),
        "objective": objective,
    }
    agent = td_flow.make(
        **bound,
        **common,
        optimizer=make_optimizer(config.optimizer, train.num_updates),
        init_params=functools.partial(flow.init, network),
    )
    return Model(
        agent=agent,
        noise_size=states.point_size,
        sample=functools.partial(td_flow.sample, **bound, num_steps=steps),
        log_likelihood=functools.partial(
            td_flow.log_likelihood, **bound, num_steps=train.likelihood_steps
        ),
    )


def _joined(network: mlp.MLPConfig, params: Params, first: Array, condition: Array) -> Array:
    return mlp.apply(network, params, jnp.concatenate([first, condition], axis=-1))


def _vae(config: HorizonConfig, states: _States, common: dict[str, Any]) -> Model:
    point, condition = states.point_size, states.condition_size
    with config_lib.user_errors("config.model"):
        # Encoder and decoder are of one shape: latents are as large as points.
        network = mlp.MLPConfig(
            point + condition, 2 * point, config.model.baseline_sizes, activation=flow.mish
        )

    def moments(part, params, first, condition):
        mean, log_variance = jnp.split(_joined(network, params[part], first, condition), 2, axis=-1)
        # Deviations of e^-5 to e: a decoder that pins a point down has no finite loss.
        return mean, 6 * jnp.tanh(log_variance / 6) - 4

    def init_params(key):
        first, second = jax.random.split(key)
        return {"encoder": mlp.init(network, first), "decoder": mlp.init(network, second)}

    decode = functools.partial(moments, "decoder")
    agent = horizon_vae.make(
        functools.partial(moments, "encoder"),
        decode,
        make_optimizer(config.optimizer, config.train.num_updates),
        latent_size=point,
        init_params=init_params,
        beta=config.loss.beta,
        **common,
    )
    sample = functools.partial(horizon_vae.sample, decode=decode, latent_size=point)
    return Model(agent, 2 * point, sample, None)


def _gan(config: HorizonConfig, states: _States, common: dict[str, Any]) -> Model:
    point, condition = states.point_size, states.condition_size
    hidden, updates = config.model.baseline_sizes, config.train.num_updates
    with config_lib.user_errors("config.model"):
        generator, discriminator = (
            mlp.MLPConfig(
                point + condition,
                outputs,
                hidden,
                activation=jax.nn.leaky_relu,
                residual=config.model.baseline_residual,
            )
            for outputs in (point, 1)
        )

    def init_params(key):
        first, second = jax.random.split(key)
        return mlp.init(generator, first), mlp.init(discriminator, second)

    # The paper's: no momentum, and a second moment that is remembered longer and longer.
    adam = optax.inject_hyperparams(optax.adam)(
        learning_rate=learning_rate_schedule(config.optimizer, updates),
        b1=0.0,
        b2=optax.linear_schedule(0.9, 0.99, updates),
        eps=config.optimizer.eps,
    )
    make_points = functools.partial(_joined, generator)
    agent = horizon_gan.make(
        make_points,
        lambda params, points, condition: _joined(discriminator, params, points, condition)[..., 0],
        optimizers.skip_nonfinite(adam),
        latent_size=point,
        init_params=init_params,
        penalty_weight=optax.linear_schedule(
            config.loss.penalty_start, config.loss.penalty_end, updates
        ),
        **common,
    )
    return Model(agent, point, make_points, None)


METHODS: dict[str, Callable[..., Model]] = {
    "td_cfm": functools.partial(_td_flow, _flow, "td_cfm"),
    "coupled_td_cfm": functools.partial(_td_flow, _flow, "coupled_td_cfm"),
    "td2_cfm": functools.partial(_td_flow, _flow, "td2_cfm"),
    "td_dd": functools.partial(_td_flow, _diffusion, "td_dd"),
    "td2_dd": functools.partial(_td_flow, _diffusion, "td2_dd"),
    "vae": _vae,
    "gan": _gan,
}


def make_model(
    config: HorizonConfig,
    name: str,
    discount: float,
    *,
    point_size: int,
    condition_size: int,
    data_range: DataRange,
) -> Model:
    """Binds a method to networks.

    Args:
      config: the run.
      name: a key of `METHODS`.
      discount: gamma.
      point_size: features of a state.
      condition_size: features of state and action.
      data_range: the least and the greatest of each feature of the states that are learnt from, in
        the units that models learn in.

    Returns:
      The model.

    Raises:
      UserError: a name is unknown, or a key is wrong.
    """
    if name not in METHODS:
        raise config_lib.unknown("config.loss.names", name, METHODS)
    if config.loss.path not in PATHS:
        raise config_lib.unknown("config.loss.path", config.loss.path, PATHS)
    common = {
        "discount": discount,
        "target_rule": followers.average(config.loss.target_decay),
        "accumulate_steps": config.train.accumulate_steps,
    }
    with config_lib.user_errors("config.loss"):
        return METHODS[name](config, _States(point_size, condition_size, data_range), common)
