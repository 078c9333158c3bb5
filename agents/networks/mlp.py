"""Plain networks: layers of features, alone or as an ensemble of equal ones."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = Any


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Shape of a plain network; hashable, and checked when it is made.

    Attributes:
      input_size: features I of an input.
      output_size: features O of an output.
      hidden_sizes: widths of the hidden layers; () for a linear map.
      activation: after every hidden layer, element-wise.
      layer_norm: after the first hidden layer, a layer norm and tanh in the place of the
        activation, which keeps the features of actors and critics bounded.
      output_tanh: outputs in (-1, 1), such as actions.
      residual: every hidden layer but the first is a block of two layers with a skip,
        a(x + B a(A x)), where B starts at 0; all of one width.
    """

    input_size: int
    output_size: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: Callable[[Array], Array] = jax.nn.relu
    layer_norm: bool = False
    output_tanh: bool = False
    residual: bool = False

    def __post_init__(self):
        for name in ("input_size", "output_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(
                f"hidden_sizes must hold sizes of at least 1, got {self.hidden_sizes}."
            )
        if self.layer_norm and not self.hidden_sizes:
            raise ValueError("layer_norm must be False without hidden_sizes, got True.")
        if self.residual and len(set(self.hidden_sizes)) > 1:
            raise ValueError(
                f"hidden_sizes must be equal in a residual network, got {self.hidden_sizes}."
            )
        if not callable(self.activation):
            raise TypeError(f"activation must be a function, got {self.activation!r}.")


class _MLP(nn.Module):
    """The Linen module; [B, I] to [B, O]."""

    config: MLPConfig

    @nn.compact
    def __call__(self, hidden):
        """Returns the outputs. [B, O]."""
        config = self.config
        for place, size in enumerate(config.hidden_sizes):
            before, hidden = hidden, nn.Dense(size, name=f"hidden_{place}")(hidden)
            if place and config.residual:
                change = nn.Dense(size, name=f"change_{place}", kernel_init=nn.initializers.zeros)
                hidden = before + change(config.activation(hidden))
            if place == 0 and config.layer_norm:
                hidden = jnp.tanh(nn.LayerNorm(name="norm")(hidden))
            else:
                hidden = config.activation(hidden)
        outputs = nn.Dense(config.output_size, name="output")(hidden)
        return jnp.tanh(outputs) if config.output_tanh else outputs


@functools.partial(jax.jit, static_argnums=0)
def init(config: MLPConfig, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters: Flax's defaults, LeCun normal kernels and biases at 0.

    Args:
      config: the network's shape.
      key: randomness; consumed.

    Returns:
      A nested dict of float32 arrays.
    """
    return _MLP(config).init(key, jnp.zeros((1, config.input_size)))["params"]


def apply(config: MLPConfig, params: Params, inputs: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Returns the outputs; each depends on its own input only.

    Args:
      config: the network's shape.
      params: its parameters.
      inputs: [..., I].

    Returns:
      Outputs. [..., O].

    Raises:
      ValueError: the inputs have another number of features.

    References:
      Ba et al., Layer Normalization, 2016. https://arxiv.org/abs/1607.06450
    """
    if inputs.shape[-1:] != (config.input_size,):
        raise ValueError(f"inputs must be [..., {config.input_size}], got {inputs.shape}.")
    rows = inputs.reshape(-1, config.input_size)
    outputs: Any = _MLP(config).apply({"params": params}, rows)
    return outputs.reshape(*inputs.shape[:-1], config.output_size)


@functools.partial(jax.jit, static_argnums=(0, 2))
def init_ensemble(config: MLPConfig, key: PRNGKeyArray, size: int) -> Params:
    """Returns fresh parameters of several networks of one shape.

    Args:
      config: the shape of each network.
      key: randomness; consumed.
      size: networks E.

    Returns:
      A nested dict of float32 arrays, those of `init` with a first axis of E.

    Raises:
      ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    return jax.vmap(functools.partial(init, config))(jax.random.split(key, size))


def apply_ensemble(
    config: MLPConfig, params: Params, inputs: Float[Array, "*B I"]
) -> Float[Array, "*B E O"]:
    """Returns the outputs of every network of an ensemble.

    Args:
      config: the shape of each network.
      params: of `init_ensemble`.
      inputs: [..., I], the same for all.

    Returns:
      Outputs. [..., E, O].

    Raises:
      ValueError: the inputs have another number of features.
    """
    outputs = jax.vmap(functools.partial(apply, config), in_axes=(0, None))(params, inputs)
    return jnp.moveaxis(outputs, 0, -2)
