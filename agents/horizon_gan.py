"""Horizon models by a generative adversarial network, fitted to the Bellman equation's samples.

A generator makes future states of noise; a discriminator tells them from the next state, or with
probability gamma from a sample of the target generator at the next state and action. Both learn by
the relativistic losses with zero-centred penalties.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from bellmax import losses
from bellmax.agents import followers, horizon, updates
from bellmax.agents.agent import Agent, Metrics, Params, TransitionBatch

# (params, latents[..., Z], condition[..., C]) -> points[..., D].
Generator = Callable[[Params, Array, Array], Array]
# (params, points[..., D], condition[..., C]) -> scores[...].
Discriminator = Callable[[Params, Array, Array], Array]


class State(NamedTuple):
    """All that changes.

    Attributes:
      params: the generator's parameters.
      target_params: the target generator's.
      discriminator_params: the discriminator's.
      opt_state: the generator's optimiser state.
      discriminator_opt_state: the discriminator's.
      step: steps taken so far, each of both.
    """

    params: Params
    target_params: Params
    discriminator_params: Params
    opt_state: optax.OptState
    discriminator_opt_state: optax.OptState
    step: Int[Array, ""]


def init(
    key: PRNGKeyArray,
    example_batch: TransitionBatch | None = None,
    *,
    params: tuple[Params, Params] | None = None,
    reference_params: Params | None = None,
    init_params: Callable[[PRNGKeyArray], tuple[Params, Params]],
    optimizer: optax.GradientTransformation,
) -> State:
    """Starts from given parameters, or from fresh ones; the target is a copy.

    Args:
      key: randomness of fresh parameters; consumed.
      example_batch: not needed, and there for the signature that all agents share.
      params: the generator's and the discriminator's, copied; None for fresh ones.
      reference_params: the target generator's, copied; None for a copy of the generator's.
      init_params: makes fresh parameters of both from a key.
      optimizer: any optax transformation, which each has a state of.

    Returns:
      The first state.
    """
    del example_batch
    generator, discriminator = init_params(key) if params is None else updates.copy_tree(params)
    return State(
        params=generator,
        target_params=updates.copy_tree(
            generator if reference_params is None else reference_params
        ),
        discriminator_params=discriminator,
        opt_state=optimizer.init(generator),
        discriminator_opt_state=optimizer.init(discriminator),
        step=jnp.zeros((), jnp.int32),
    )


def update(
    state: State,
    batch: TransitionBatch,
    key: PRNGKeyArray,
    *,
    generator: Generator,
    discriminator: Discriminator,
    latent_size: int,
    optimizer: optax.GradientTransformation,
    discount: float,
    penalty_weight: optax.Schedule,
    target_rule: followers.FollowRule,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """Takes one step of the discriminator, then one of the generator against the new one.

    Args:
      state: the current state; may be donated.
      batch: the transitions.
      key: of all noise, the same on every device.
      generator: makes points of latents.
      discriminator: scores points.
      latent_size: Z.
      optimizer: any optax transformation.
      discount: gamma.
      penalty_weight: of the gradient penalties, by step.
      target_rule: how the target generator follows.
      policy_fn: the evaluated policy, for batches without `next_actions`.
      accumulate_steps: parts of a batch that are learnt from one after another, see
        `updates.gradient_step`.
      axis_name: the device axis over which the batch is spread, or None.

    Returns:
      The new state and metrics: of the generator `loss`, `grad_norm`, `updates/skipped`; of the
      discriminator `discriminator/loss` and `discriminator/grad_norm`.

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

    def samples(rows):
        uniforms, target_noise, noise = horizon.draw(key, rows.numbers, latent_size, latent_size)
        bootstrap = generator(state.target_params, target_noise, rows.next_condition)
        real = losses.bellman_sample(rows.next_states, bootstrap, uniforms, discount=rows.discount)
        return real, generator(state.params, noise, rows.condition), noise

    def score(params, rows):
        return lambda points: discriminator(params, points, rows.condition)

    def discriminator_loss(params, examples):
        rows, (real, fake, _) = examples
        return losses.relativistic_discriminator_loss(
            score(params, rows), real, fake, penalty_weight=penalty
        )

    def generator_loss(params, examples):
        rows, (real, _, noise) = examples
        return losses.relativistic_generator_loss(
            score(discriminator_params, rows), real, generator(params, noise, rows.condition)
        )

    penalty = jnp.asarray(penalty_weight(state.step), jnp.float32)
    step_fn = functools.partial(
        updates.mean_loss_step,
        batch=(rows, updates.map_parts(samples, rows, accumulate_steps)),
        weight=rows.weight,
        optimizer=optimizer,
        axis_name=axis_name,
        accumulate_steps=accumulate_steps,
    )
    discriminator_params, discriminator_opt_state, judged = step_fn(
        discriminator_loss, state.discriminator_params, state.discriminator_opt_state
    )
    params, opt_state, metrics = step_fn(generator_loss, state.params, state.opt_state)
    step = state.step + 1
    target = target_rule(state.target_params, params, step)
    metrics |= {f"discriminator/{name}": judged[name] for name in ("loss", "grad_norm")}
    return State(
        params, target, discriminator_params, opt_state, discriminator_opt_state, step
    ), metrics


def make(
    generator: Generator,
    discriminator: Discriminator,
    optimizer: optax.GradientTransformation,
    *,
    latent_size: int,
    discount: float,
    init_params: Callable[[PRNGKeyArray], tuple[Params, Params]],
    penalty_weight: optax.Schedule,
    target_rule: followers.FollowRule | None = None,
    policy_fn: horizon.PolicyFn | None = None,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> Agent:
    """Binds the static parts of an adversarial horizon model.

    Args:
      generator: `(params, latents[..., Z], condition[..., C]) -> points[..., D]`; it is how the
        model is sampled, too.
      discriminator: `(params, points[..., D], condition[..., C]) -> scores[...]`.
      optimizer: any optax transformation; the paper's is Adam with a second moment's decay from .9
        to .99 over training.
      latent_size: Z; the paper's is the size of a state.
      discount: gamma in [0, 1).
      init_params: makes fresh parameters of generator and discriminator from a key.
      penalty_weight: by step, an optax schedule; the paper's goes from .05 to .005.
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
      Huang et al., The GAN is dead; long live the GAN!, 2024. https://arxiv.org/abs/2501.05441
    """
    horizon.check_discount(discount)
    if latent_size < 1:
        raise ValueError(f"latent_size must be at least 1, got {latent_size}.")
    return Agent(
        init=functools.partial(init, init_params=init_params, optimizer=optimizer),
        act=None,
        update=functools.partial(
            update,
            generator=generator,
            discriminator=discriminator,
            latent_size=latent_size,
            optimizer=optimizer,
            discount=discount,
            penalty_weight=penalty_weight,
            target_rule=followers.average(0.999) if target_rule is None else target_rule,
            policy_fn=policy_fn,
            accumulate_steps=accumulate_steps,
            axis_name=axis_name,
        ),
    )
