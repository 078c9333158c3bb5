"""Decoders: how the next token's logits come from a model, with a cache, without, or from several.

A decoder is a frozen dataclass, so that two made of equal parts are equal and `jax.jit` compiles
once for both. Functions are equal to themselves alone: a decoder that holds one is made once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bellmax.agents import networks
from bellmax.agents.agent import Params
from bellmax.agents.language import LanguageModel


class Decoder(Protocol):
    """What `sampling.generate` asks of a model."""

    def prepare(self, params: Params) -> Params:
        """Returns the parameters as the steps want them; called once a generation."""
        ...

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        """Returns an empty cache for so many rows and so many tokens, padding included."""
        ...

    def step(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        cache: Any,
        positions: Int[Array, "B T"],
        select: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], Any]:
        """Reads a block of tokens.

        Args:
          params: from `prepare`.
          tokens: the next tokens of each row. [B, T].
          cache: what was read so far.
          positions: each token's place among the row's real tokens, from 0; below 0 for padding.
            [B, T].
          select: place in the block of the token whose successor is wanted. [B].

        Returns:
          Logits of that successor [B, V], and the new cache.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TransformerDecoder:
    """Decodes with a key-value cache.

    Attributes:
      config: the network's shape; a network with `scan_layers` is unrolled for decoding, since a
        scan would copy the whole cache for every token.
    """

    config: networks.TransformerConfig

    @property
    def _unrolled(self) -> networks.TransformerConfig:
        return dataclasses.replace(self.config, scan_layers=False, remat=False)

    def prepare(self, params: Params) -> Params:
        """Returns the parameters with their layers unstacked; see `Decoder.prepare`."""
        return networks.unstack_layers(params) if self.config.scan_layers else params

    def init_cache(self, batch_size: int, max_length: int) -> networks.Cache:
        """Returns an empty cache; see `Decoder.init_cache`."""
        return networks.init_cache(self._unrolled, batch_size, max_length)

    def step(self, params, tokens, cache, positions, select):
        """Reads a block of tokens; see `Decoder.step`."""
        logits, cache = networks.decode_step(
            self._unrolled, params, tokens, cache, positions, select=select
        )
        return logits[:, 0], cache


class _Seen(NamedTuple):
    """Tokens that an `UncachedDecoder` has read, each row from its first real token on. [B, S]."""

    tokens: Int[Array, "B S"]


@dataclasses.dataclass(frozen=True)
class UncachedDecoder:
    """Decodes with any causal network by reading all tokens again for every new one: right, slow.

    Attributes:
      apply: `(params, tokens[B, T]) -> logits[B, T, V]`; position t sees tokens 0..t only.
    """

    apply: Callable[[Params, Array], Array]

    def prepare(self, params: Params) -> Params:
        """Returns the parameters as they are."""
        return params

    def init_cache(self, batch_size: int, max_length: int) -> _Seen:
        """Returns room for the tokens."""
        return _Seen(jnp.zeros((batch_size, max_length), jnp.int32))

    def step(self, params, tokens, cache, positions, select):
        """Reads a block of tokens; see `Decoder.step`."""
        rows = jnp.arange(tokens.shape[0])
        # Written at their positions, the real tokens lie together on the left whatever side the
        # padding was on: no token sees padding, and the network needs no mask.
        places = jnp.where(positions >= 0, positions, cache.tokens.shape[1])
        seen = cache.tokens.at[rows[:, None], places].set(tokens, mode="drop")
        logits = self.apply(params, seen)
        return logits[rows, positions[rows, select]].astype(jnp.float32), _Seen(seen)


@dataclasses.dataclass(frozen=True)
class CombinedDecoder:
    """Samples token by token from a function of several models' logits.

    Its parameters are a tuple, one tree for each decoder.

    Attributes:
      decoders: one for each model; they share a vocabulary.
      logits_fn: `(*logits[B, V]) -> logits[B, V]`, in the order of the decoders.
    """

    decoders: tuple[Decoder, ...]
    logits_fn: Callable[..., Array]

    def _check(self, params: Params) -> None:
        if not isinstance(params, tuple) or len(params) != len(self.decoders):
            raise ValueError(
                f"params must be a tuple of {len(self.decoders)} trees, one for each decoder, got "
                f"{type(params).__name__}."
            )

    def prepare(self, params: Params) -> Params:
        """Returns each decoder's own parameters, prepared."""
        self._check(params)
        return tuple(d.prepare(p) for d, p in zip(self.decoders, params, strict=True))

    def init_cache(self, batch_size: int, max_length: int) -> tuple[Any, ...]:
        """Returns a cache for each decoder."""
        return tuple(d.init_cache(batch_size, max_length) for d in self.decoders)

    def step(self, params, tokens, cache, positions, select):
        """Reads a block of tokens with every model; see `Decoder.step`."""
        steps = [
            d.step(p, tokens, c, positions, select)
            for d, p, c in zip(self.decoders, params, cache, strict=True)
        ]
        logits, caches = zip(*steps, strict=True)
        return self.logits_fn(*logits), caches


def as_decoder(model: Any) -> Decoder:
    """Returns the decoder of a model.

    Args:
      model: a decoder; a `networks.TransformerConfig`; `networks.apply` or `networks.decode_step`
        with the config bound, or a `LanguageModel` that has such an `apply`: decoded with a cache.
        Any other `apply(params, tokens[B, T]) -> logits[B, T, V]`: decoded without one.

    Returns:
      The decoder.

    Raises:
      TypeError: `model` is none of these.
    """
    if isinstance(model, LanguageModel):
        return as_decoder(model.apply)
    if isinstance(model, networks.TransformerConfig):
        return TransformerDecoder(model)
    if isinstance(model, TransformerDecoder | UncachedDecoder | CombinedDecoder):
        return model
    if all(callable(getattr(model, name, None)) for name in ("prepare", "init_cache", "step")):
        return model
    if isinstance(model, functools.partial) and not model.keywords and len(model.args) == 1:
        (config,) = model.args
        ours = model.func in (networks.apply, networks.decode_step)
        if ours and isinstance(config, networks.TransformerConfig):
            return TransformerDecoder(config)
    if callable(model):
        apply: Any = model
        return UncachedDecoder(apply)
    raise TypeError(
        "decode_fn must be a decoder, a LanguageModel, a TransformerConfig, or a function "
        f"(params, tokens) -> logits, got {model!r}."
    )


def combine(models: Sequence[Any], logits_fn: Callable[..., Array]) -> CombinedDecoder:
    """Returns a decoder that samples from a function of several models' logits.

    The geometric mixture of a policy and its reference, the opponent of Nash-MD, is

        combine((model, model), functools.partial(losses.geometric_mixture_logits, mixture=0.125))

    with parameters `(params, reference_params)`.

    Args:
      models: anything that `as_decoder` takes, one for each model; they share a vocabulary.
      logits_fn: `(*logits[B, V]) -> logits[B, V]`. `jax.jit` compiles anew for every new function:
        make it once.

    Returns:
      The decoder.

    Raises:
      ValueError: there are no models.
      TypeError: a model is none of what `as_decoder` takes.
    """
    if not models:
        raise ValueError("models must hold at least one model, got none.")
    return CombinedDecoder(tuple(as_decoder(model) for model in models), logits_fn)
