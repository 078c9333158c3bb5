"""Velocity networks: a point, a time and a condition to a velocity; U-shaped with FiLM, or plain.

The same networks predict the noise of a diffusion model, its level divided by the number of levels
in the place of the time.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = Any


@dataclasses.dataclass(frozen=True)
class FlowNetworkConfig:
    """Shape of a velocity network; hashable, and checked when it is made.

    The defaults are the paper's for one policy; for many it has 1,024 wherever here is 512.

    Attributes:
      point_size: features D of a point.
      condition_size: features C of a condition, such as state and action; 0 for none.
      hidden_sizes: widths of the stages on the way down, which come back in reverse on the way up;
        of a plain network, of its layers.
      u_shaped: whether stages are joined by skips and read time and condition by FiLM; a plain
        network reads them beside the point.
      time_features: sines and cosines of the time, an even number.
      min_frequency: least frequency of them, radians by unit of time.
      max_frequency: greatest; those between are geometric.
      time_sizes: widths of the layers that read them; U-shaped only.
      condition_sizes: widths of the layers that read the condition; U-shaped only.

    References:
      Farebrother et al., Temporal Difference Flows, 2025, table 3. https://arxiv.org/abs/2503.09817
    """

    point_size: int
    condition_size: int = 0
    hidden_sizes: tuple[int, ...] = (512, 512, 512)
    u_shaped: bool = True
    time_features: int = 256
    min_frequency: float = 1.0
    max_frequency: float = 1000.0
    time_sizes: tuple[int, ...] = (256, 256)
    condition_sizes: tuple[int, ...] = (512, 512, 512)

    def __post_init__(self):
        for name, least in (("point_size", 1), ("condition_size", 0), ("time_features", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.time_features % 2:
            raise ValueError(f"time_features must be even, got {self.time_features}.")
        if not 0 < self.min_frequency <= self.max_frequency:
            raise ValueError(
                "min_frequency must be above 0 and at most max_frequency, got "
                f"{self.min_frequency} and {self.max_frequency}."
            )
        for name in ("hidden_sizes", "time_sizes", "condition_sizes"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes) or (name == "hidden_sizes" and not sizes):
                raise ValueError(f"{name} must hold sizes of at least 1, got {sizes}.")


def time_embedding(
    time: Float[Array, "*B"], *, num_features: int, min_frequency: float, max_frequency: float
) -> Float[Array, "*B F"]:
    r"""Returns sines and cosines of a time.

    .. math:: (\sin \omega_1 t, \dots, \sin \omega_n t, \cos \omega_1 t, \dots, \cos \omega_n t)

    with frequencies that are geometric from the least to the greatest.

    Args:
      time: t. [...].
      num_features: F = 2 n, even.
      min_frequency: radians by unit of time.
      max_frequency: the same.

    Returns:
      Features in [-1, 1]. [..., F].
    """
    frequencies = jnp.geomspace(min_frequency, max_frequency, num_features // 2)
    angles = time[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def mish(values: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Returns x tanh(softplus(x)), by one exponential.

    .. math:: x \, \frac{e^x (e^x + 2)}{e^x (e^x + 2) + 2}

    `jax.nn.mish` is this function, six times slower on CPU, where it takes most of the time of a
    small network.

    Args:
      values: x.

    Returns:
      An array like `values`.

    References:
      Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2019.
      https://arxiv.org/abs/1908.08681
    """
    # From 20 on the quotient is 1 in float32.
    power = jnp.exp(jnp.minimum(values, 20.0))
    product = power * (power + 2)
    return values * (product / (product + 2))


class _Stage(nn.Module):
    """A residual block whose normalised features are scaled and shifted by the context (FiLM).

    Attributes:
      features: width of its output.
    """

    features: int

    @nn.compact
    def __call__(self, inputs, context):
        """Returns the block's output. [B, D] to [B, features]."""
        hidden = nn.Dense(self.features, name="input")(inputs)
        hidden = nn.LayerNorm(use_bias=False, use_scale=False)(hidden)
        # In the place of the norm's own scale and shift: 1 and 0 at the start.
        film = nn.Dense(2 * self.features, name="film", kernel_init=nn.initializers.zeros)(context)
        scale, shift = jnp.split(film, 2, axis=-1)
        hidden = nn.Dense(self.features, name="output")(mish((1 + scale) * hidden + shift))
        if inputs.shape[-1] != self.features:
            inputs = nn.Dense(self.features, use_bias=False, name="skip")(inputs)
        return inputs + hidden


class _FlowNetwork(nn.Module):
    """The Linen module; [B, D], [B] and [B, C] to [B, D]."""

    config: FlowNetworkConfig

    @nn.compact
    def __call__(self, point, time, condition):
        """Returns velocities. [B, D]."""
        config = self.config
        features = time_embedding(
            time,
            num_features=config.time_features,
            min_frequency=config.min_frequency,
            max_frequency=config.max_frequency,
        )
        sizes = config.hidden_sizes
        if not config.u_shaped:
            hidden = jnp.concatenate([point, features, condition], axis=-1)
            for place, size in enumerate(sizes):
                hidden = mish(nn.Dense(size, name=f"hidden_{place}")(hidden))
            return nn.Dense(config.point_size, name="velocity")(hidden)

        def read(inputs, widths, name):
            for place, size in enumerate(widths):
                inputs = mish(nn.Dense(size, name=f"{name}_{place}")(inputs))
            return inputs

        parts = [read(features, config.time_sizes, "time")]
        if config.condition_size:
            parts.append(read(condition, config.condition_sizes, "condition"))
        context = jnp.concatenate(parts, axis=-1)
        hidden, kept = nn.Dense(sizes[0], name="point")(point), []
        for place, size in enumerate(sizes):
            hidden = _Stage(size, name=f"down_{place}")(hidden, context)
            kept.append(hidden)
        for place, size in reversed(list(enumerate(sizes))):
            hidden = jnp.concatenate([hidden, kept[place]], axis=-1)
            hidden = _Stage(size, name=f"up_{place}")(hidden, context)
        return nn.Dense(config.point_size, name="velocity")(hidden)


@functools.partial(jax.jit, static_argnums=0)
def init(config: FlowNetworkConfig, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters: Flax's defaults, LeCun normal kernels and biases at 0; FiLM at 0.

    Args:
      config: the network's shape.
      key: randomness; consumed.

    Returns:
      A nested dict of float32 arrays.
    """
    point, time = jnp.zeros((1, config.point_size)), jnp.zeros(1)
    return _FlowNetwork(config).init(key, point, time, jnp.zeros((1, config.condition_size)))[
        "params"
    ]


def apply(
    config: FlowNetworkConfig,
    params: Params,
    point: Float[Array, "*B D"],
    time: Float[Array, "*B"],
    condition: Float[Array, "*B C"] | None = None,
) -> Float[Array, "*B D"]:
    """Returns the velocity at points; each depends on its own point, time and condition.

    Args:
      config: the network's shape.
      params: its parameters.
      point: where. [..., D].
      time: when, in [0, 1]. [...].
      condition: under which condition; None without one. [..., C].

    Returns:
      Velocities, float32. [..., D].

    Raises:
      ValueError: a shape is not the one that was configured.
    """
    leading = point.shape[:-1]
    if point.shape[-1:] != (config.point_size,) or time.shape != leading:
        raise ValueError(
            f"point must be [..., {config.point_size}] and time [...], got {point.shape} and "
            f"{time.shape}."
        )
    if condition is None:
        condition = jnp.zeros((*leading, 0))
    if condition.shape != (*leading, config.condition_size):
        raise ValueError(
            f"condition must be {(*leading, config.condition_size)}, got {condition.shape}."
        )
    flat = (
        jnp.asarray(values, jnp.float32).reshape(-1, *values.shape[len(leading) :])
        for values in (point, time, condition)
    )
    velocity: Any = _FlowNetwork(config).apply({"params": params}, *flat)
    return velocity.reshape(point.shape)
