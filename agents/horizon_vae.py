r"""Horizon models by a variational autoencoder, fitted to what the Bellman equation makes of it.

A sample of the model is :math:`X = \mu(Z) + \sigma(Z) \odot \epsilon` with Z and epsilon normal; a
step fits the autoencoder to the next state, or with probability gamma to a sample of the target
model at the next state and action.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, horizon, updates
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch
from bellmax.agents.horizon import State

# (params, points[..., D] or latents[..., Z], condition[..., C]) -> (mean, log-variance).
Moments = Callable[[Params, Array, Array], tuple[Array, Array]]


def sample(
    params: Params,
    noise: Float[Array, "*B Z+D"],
    condition: Float[Array, "*B C"],
    *,
    decode: Moments,
    latent_size: int,
) -> Float[Array, "*B D"]:
    """Returns samples of future states, one for each row of noise.

    Args:
      params: the model's parameters.
      noise: samples of N(0, I), for latent and decoder. [..., Z + D].
      condition: see `horizon.condition`. [..., C], the leading axes those of `noise`.
      decode: moments of a point by its latent.
      latent_size: Z.

    Returns:
      Samples. [..., D].
    """
    mean, log_variance = decode(params, noise[..., :latent_size], condition)
    return mean + jnp.exp(log_variance / 2) * noise[..., latent_size:]


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    encode: Moments,
    decode: Moments,
    latent_size: int,
    optimizer: optax.GradientTransformation,
    discount: float,
    beta: float,
    target_rule: followers.FollowRule,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step on the weighted mean loss of the transitions.

    Args:
      state: the current state; may be donated.
      batch: the transitions.
      key: of all noise, the same on every device.
      encode: moments of a latent by its point.
      decode: moments of a point by its latent.
      latent_size: Z.
      optimizer: any optax transformation.
      discount: gamma.
      beta: weight of the KL divergence.
      target_rule: how the target follows.
      policy_fn: the evaluated policy, for batches without `next_actions`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: `loss`, `grad_norm`, `updates/skipped`.

    Raises:
      ValueError: nothing says what the policy does at the next state.
    """
    rows = horizon.examples(
        batch,
        discount=discount,
        policy_fn=policy_fn,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )
    size = rows.next_states.shape[-1]

    def loss_fn(params, rows):
        uniforms, noise, latent_noise = horizon.draw(
            key, rows.numbers, latent_size + size, latent_size
        )
        bootstrap = sample(
            state.target_params, noise, rows.next_condition, decode=decode, latent_size=latent_size
        )
        data = losses.bellman_sample(rows.next_states, bootstrap, uniforms, discount=rows.discount)
        mean, log_variance = encode(params, data, rows.condition)
        latent = mean + jnp.exp(log_variance / 2) * latent_noise
        return losses.beta_vae_loss(
            data, *decode(params, latent, rows.condition), mean, log_variance, beta=beta
        )

    params, opt_state, metrics = updates.mean_loss_step(
        loss_fn,
        state.params,
        state.opt_state,
        batch=rows,
        weight=rows.weight,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )
    step = state.step + 1
    return State(params, target_rule(state.target_params, params, step), opt_state, step), metrics


def make(
    encode: Moments,
    decode: Moments,
    optimizer: optax.GradientTransformation,
    *,
    latent_size: int,
    discount: float,
    init_params: Callable[[PRNGKeyArray], Params],
    beta: float = 0.5,
    target_rule: followers.FollowRule | None = None,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of a variational horizon model.

    Args:
      encode: `(params, points[..., D], condition[..., C]) -> (mean, log_variance)`, [..., Z] each.
      decode: `(params, latents[..., Z], condition[..., C]) -> (mean, log_variance)`, [..., D] each;
        encoder and decoder are given the same tree.
      optimizer: any optax transformation.
      latent_size: Z; the paper's is the size of a state.
      discount: gamma in [0, 1).
      init_params: makes fresh parameters of both from a key.
      beta: weight of the KL divergence, >= 0.
      target_rule: how the target follows; None for `followers.average(0.999)`.
      policy_fn: `(observations[B, D], tasks[B, W] or None) -> actions[B, A]`, the evaluated policy;
        None where batches bring `next_actions`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the `pmap` or `shard_map` axis over which batches are spread, or None.

    Returns:
      The agent; `act` is None, `update` takes a `TransitionBatch`.

    Raises:
      ValueError: a number is out of range.

    References:
      Farebrother et al., Temporal Difference Flows, 2025. https://arxiv.org/abs/2503.09817
    """
    horizon.check_discount(discount)
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}.")
    if latent_size < 1:
        raise ValueError(f"latent_size must be at least 1, got {latent_size}.")
    return Agent(
        init=functools.partial(
            followers.init_with_target, init_params=init_params, optimizer=optimizer
        ),
        act=None,
        update=functools.partial(
            update,
            encode=encode,
            decode=decode,
            latent_size=latent_size,
            optimizer=optimizer,
            discount=discount,
            beta=beta,
            target_rule=followers.average(0.999) if target_rule is None else target_rule,
            policy_fn=policy_fn,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
