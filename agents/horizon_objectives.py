"""Objectives of horizon models: which loss a network learns by, and how it is sampled.

A network is one function of points and times. For flows it is the velocity; for diffusion the
noise, at a level divided by the number of levels, which falls from noise to data while a flow's
time rises.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.losses.diffusion import DataRange
from bellmax.losses.ode import VelocityFn
from bellmax.losses.paths import PathFn


class Draws(NamedTuple):
    """The randomness of a step of training, of each example.

    Attributes:
      time: uniform in [0, 1), one for both terms of the loss. [B].
      direct_noise: N(0, I), where the path to the next state starts. [B, D].
      noise: N(0, I), where the target's flow starts. [B, D].
      fresh_noise: N(0, I), where a path to the target's sample starts. [B, D].
    """

    time: Float[Array, " B"]
    direct_noise: Float[Array, "B D"]
    noise: Float[Array, "B D"]
    fresh_noise: Float[Array, "B D"]


class Objective(NamedTuple):
    """What a network predicts.

    Attributes:
      loss: `(network, target_network, next_states[B, D], draws, discount) -> [B]`; the network has
        the state and action bound, the target network the next ones.
      sample: `(network, noise[..., D], num_steps) -> samples[..., D]`.
      flow: `network -> velocity_fn`, from noise at time 0 to samples at time 1; what
        `losses.flow_log_likelihood` integrates.
    """

    loss: Callable[[VelocityFn, VelocityFn, Array, Draws, Array], Array]
    sample: Callable[[VelocityFn, Array, int], Array]
    flow: Callable[[VelocityFn], VelocityFn]


# (target network, draws) -> (point, what the network should say there).
Bootstrap = Callable[[VelocityFn, Draws], tuple[Array, Array]]
# (target network, draws, levels, alpha-bars) -> (point, noise that the network should say there).
LevelBootstrap = Callable[[VelocityFn, Draws, Array, Array], tuple[Array, Array]]


def _flow_sample(network: VelocityFn, noise: Array, num_steps: int) -> Array:
    end = jnp.ones(noise.shape[:-1], noise.dtype)
    return losses.integrate_midpoint(network, noise, end, num_steps=num_steps)


def _flow(bootstrap: Bootstrap, path: PathFn) -> Objective:
    def loss(network, target_network, next_states, draws, discount):
        direct, velocity = path(draws.direct_noise, next_states, draws.time)
        point, bootstrap_velocity = bootstrap(target_network, draws)
        return losses.td_flow_loss(
            network(direct, draws.time),
            velocity,
            network(point, draws.time),
            bootstrap_velocity,
            discount=discount,
        )

    return Objective(loss, _flow_sample, lambda network: network)


def monte_carlo(*, path: PathFn = losses.linear_path) -> Objective:
    """Returns flow matching of the states themselves: no bootstrap, whatever the discount.

    Given samples of a horizon model in the place of next states it is Monte-Carlo flow matching.

    Args:
      path: (noise, data, time) -> (point, velocity).

    References:
      Lipman et al., Flow Matching for Generative Modeling, 2023. https://arxiv.org/abs/2210.02747
    """

    def loss(network, target_network, next_states, draws, discount):
        del target_network, discount
        point, velocity = path(draws.direct_noise, next_states, draws.time)
        return losses.flow_matching_loss(network(point, draws.time), velocity)

    return Objective(loss, _flow_sample, lambda network: network)


def td_cfm(*, num_steps: int = 10, path: PathFn = losses.linear_path) -> Objective:
    """Returns TD-CFM: paths from fresh noise to the target's samples.

    Args:
      num_steps: midpoint steps of the bootstrap.
      path: (noise, data, time) -> (point, velocity).

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    return _flow(
        lambda target, draws: losses.td_cfm_bootstrap(
            target, draws.noise, draws.fresh_noise, draws.time, num_steps=num_steps, path=path
        ),
        path,
    )


def coupled_td_cfm(*, num_steps: int = 10, path: PathFn = losses.linear_path) -> Objective:
    """Returns TD-CFM(C): paths from the noise that became the target's sample.

    Args:
      num_steps: midpoint steps of the bootstrap.
      path: (noise, data, time) -> (point, velocity).

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    return _flow(
        lambda target, draws: losses.coupled_td_cfm_bootstrap(
            target, draws.noise, draws.time, num_steps=num_steps, path=path
        ),
        path,
    )


def td2_cfm(*, num_steps: int = 10, path: PathFn = losses.linear_path) -> Objective:
    """Returns TD2-CFM: the target's own flow and velocity.

    Args:
      num_steps: midpoint steps of the bootstrap, from 0 to the example's time.
      path: (noise, data, time) -> (point, velocity), of the direct term.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    return _flow(
        lambda target, draws: losses.td2_cfm_bootstrap(
            target, draws.noise, draws.time, num_steps=num_steps
        ),
        path,
    )


def td_dd(
    *, num_steps: int = 20, num_levels: int = 1000, data_range: DataRange | None = None
) -> Objective:
    """Returns TD-DD: denoising diffusion of the target's samples, noised afresh.

    Args:
      num_steps: DDIM steps of the bootstrap.
      num_levels: levels N of noise.
      data_range: what denoised data are clipped to, in bootstraps and samples, see
        `losses.ddim_sample`; None for the paper's.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, appendix B.
      https://arxiv.org/abs/2503.09817
    """
    return _diffusion(
        lambda target, draws, level, alpha_bars: losses.td_dd_bootstrap(
            target,
            draws.noise,
            draws.fresh_noise,
            level,
            alpha_bars,
            num_steps=num_steps,
            data_range=data_range,
        ),
        num_levels,
        data_range,
    )


def td2_dd(
    *, num_steps: int = 20, num_levels: int = 1000, data_range: DataRange | None = None
) -> Objective:
    """Returns TD2-DD: the target's own denoising, down to a level, and its noise there.

    Args:
      num_steps: DDIM steps of the bootstrap.
      num_levels: levels N of noise.
      data_range: what denoised data are clipped to, in bootstraps and samples, see
        `losses.ddim_sample`; None for the paper's.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, appendix B.
      https://arxiv.org/abs/2503.09817
    """
    return _diffusion(
        lambda target, draws, level, alpha_bars: losses.td2_dd_bootstrap(
            target, draws.noise, level, alpha_bars, num_steps=num_steps, data_range=data_range
        ),
        num_levels,
        data_range,
    )


def _diffusion(
    bootstrap: LevelBootstrap, num_levels: int, data_range: DataRange | None
) -> Objective:
    alpha_bars = losses.noise_schedule(num_levels=num_levels)

    def by_level(network: VelocityFn):
        return lambda point, level: network(point, level.astype(point.dtype) / num_levels)

    def loss(network, target_network, next_states, draws, discount):
        level = jnp.floor(draws.time * num_levels).astype(jnp.int32)
        direct = losses.diffusion_point(next_states, draws.direct_noise, alpha_bars[level])
        point, noise = bootstrap(by_level(target_network), draws, level, alpha_bars)
        predict = by_level(network)
        return losses.td_diffusion_loss(
            predict(direct, level),
            draws.direct_noise,
            predict(point, level),
            noise,
            discount=discount,
        )

    def sample(network, noise, num_steps):
        top = jnp.full(noise.shape[:-1], num_levels - 1, jnp.int32)
        return losses.ddim_sample(
            by_level(network),
            noise,
            top,
            jnp.full_like(top, -1),
            alpha_bars,
            num_steps=num_steps,
            data_range=data_range,
        )

    def flow(network):
        def velocity(point, time):
            # Level i is time (i + 1) / N of the diffusion, which runs from data to noise.
            level = jnp.maximum(1 - time - 1 / num_levels, 0.0)
            return -losses.probability_flow_velocity(point, network(point, level), 1 - time)

        return velocity

    return Objective(loss, sample, flow)
