"""Sampling of completions: jitted decoding of prompts of different lengths, from any law of tokens.

    model = functools.partial(networks.apply, config)
    completion = sampling.generate(model, params, prompts, key, max_new_tokens=64, stop_tokens=(2,))

The geometric mixture of two policies is sampled with `decoders.combine` in the model's place.
"""

import functools
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bellmax.agents import decoders, token_laws
from bellmax.agents.agent import Params, PromptBatch
from bellmax.agents.decoders import as_decoder, combine

__all__ = ["Completion", "as_decoder", "combine", "complete", "generate", "join"]


class Completion(NamedTuple):
    """What was sampled after each prompt; the prompt itself is not repeated.

    Attributes:
      tokens: ids, the stop token included; 0 after it. [B, N].
      log_probs: log-probability of each token under the model at temperature 1, nats; 0 after the
        stop token. Of a combination of models: under the combined logits. [B, N].
      sampling_log_probs: the same under the law that was sampled (temperature, top-k, top-p).
        [B, N].
      mask: 1 through the stop token, 0 after it; float32. [B, N].
    """

    tokens: Int[Array, "B N"]
    log_probs: Float[Array, "B N"]
    sampling_log_probs: Float[Array, "B N"]
    mask: Float[Array, "B N"]


class _Carry(NamedTuple):
    """The loop's state; the columns of a `Completion` lie on the first axis, [N, B]."""

    place: Int[Array, ""]
    last: Int[Array, " B"]
    running: Array
    cache: Any
    columns: Completion


def generate(
    decode_fn: Any,
    params: Params,
    prompts: Int[Array, "B P"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    prompt_mask: Array | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    stop_tokens: Sequence[int] = (),
    index: Int[Array, " B"] | None = None,
) -> Completion:
    r"""Samples a completion of each prompt, and stops early when all have ended.

    The law of a token is that of `token_laws.draw`. Compiled once for each shape of `prompts` and
    each set of static arguments (`max_new_tokens`, `top_k`, `stop_tokens`, whether the temperature
    is 0): temperature and `top_p` may change freely, and batches padded to one bucket share one
    program. It may be called inside `jax.jit`, `jax.vmap` and `jax.shard_map` as well.

    Args:
      decode_fn: the model: anything that `decoders.as_decoder` takes. `networks.apply` with its
        config bound, or a `LanguageModel` of it, decodes with a key-value cache; any other
        `apply(params, tokens) -> logits` without one.
      params: the model's parameters; a tuple of them for `decoders.combine`.
      prompts: token ids; anything where `prompt_mask` is 0. [B, P].
      key: randomness; consumed.
      max_new_tokens: most tokens N of a completion, the stop token included; at least 1.
      prompt_mask: 1 on the prompt's tokens, 0 on padding, on either side; None where there is none.
        A row needs one real token at least. [B, P].
      temperature: divides the logits; 0 takes the most likely token. May be traced if above 0.
      top_k: keep the k likeliest tokens; None for all.
      top_p: keep the fewest tokens whose probability reaches p, in (0, 1]; None or 1.0 for all. May
        be traced.
      stop_tokens: ids that end a completion; () samples N tokens.
      index: number of each row in the whole batch, which decides its randomness: with it every
        layout of devices samples the same; None for 0..B-1. [B].

    Returns:
      The completions. Nothing in them carries a gradient.

    Raises:
      ValueError: a shape or a number is out of range.
      TypeError: `prompts` are not integers, or `decode_fn` is no model.
    """
    prompts = jnp.asarray(prompts)
    _check(prompts, prompt_mask, index, max_new_tokens, stop_tokens)
    token_laws.check(temperature, top_k, top_p)
    top_p = None if isinstance(top_p, int | float) and top_p == 1 else top_p
    is_greedy = isinstance(temperature, int | float) and temperature == 0
    rows = jnp.arange(prompts.shape[0]) if index is None else jnp.asarray(index)
    real = jnp.ones(prompts.shape, bool) if prompt_mask is None else jnp.asarray(prompt_mask) != 0
    completion = _generate(
        as_decoder(decode_fn),
        params,
        prompts,
        real,
        jax.vmap(functools.partial(jax.random.fold_in, key))(rows),
        None if is_greedy else jnp.asarray(temperature, jnp.float32),
        None if top_p is None else jnp.asarray(top_p, jnp.float32),
        max_new_tokens=int(max_new_tokens),
        top_k=top_k,
        stop_tokens=tuple(int(token) for token in stop_tokens),
    )
    return jax.lax.stop_gradient(completion)


def complete(
    decode_fn: Any, params: Params, prompts: PromptBatch, key: PRNGKeyArray, **generation: Any
) -> Completion:
    """Samples a completion of each prompt of a batch.

    Args:
      decode_fn: the model, see `generate`.
      params: its parameters.
      prompts: the prompts; a row's randomness is decided by its `index`.
      key: randomness; consumed.
      **generation: further arguments of `generate`.

    Returns:
      The completions.
    """
    return generate(
        decode_fn,
        params,
        prompts.tokens,
        key,
        prompt_mask=prompts.mask,
        index=prompts.index,
        **generation,
    )


def _check(prompts, prompt_mask, index, max_new_tokens, stop_tokens) -> None:
    if not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise TypeError(f"prompts must hold integers, got dtype {prompts.dtype}.")
    if prompts.ndim != 2 or prompts.shape[1] < 1:
        raise ValueError(f"prompts must be [B, P] with P at least 1, got shape {prompts.shape}.")
    if prompt_mask is not None and jnp.shape(prompt_mask) != prompts.shape:
        raise ValueError(
            f"prompt_mask must have prompts' shape {prompts.shape}, got {jnp.shape(prompt_mask)}."
        )
    if index is not None and jnp.shape(index) != prompts.shape[:1]:
        raise ValueError(f"index must have shape {prompts.shape[:1]}, got {jnp.shape(index)}.")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, numbers.Integral):
        raise TypeError(f"max_new_tokens must be an integer, got {max_new_tokens!r}.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if not isinstance(stop_tokens, Iterable):
        raise TypeError(f"stop_tokens must be a sequence of ids, got {stop_tokens!r}.")
    if any(token < 0 for token in stop_tokens):
        raise ValueError(f"stop_tokens must not be negative, got {tuple(stop_tokens)}.")


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("max_new_tokens", "top_k", "stop_tokens")
)
def _generate(
    decoder: decoders.Decoder,
    params,
    prompts,
    real,
    row_keys,
    temperature,
    top_p,
    *,
    max_new_tokens,
    top_k,
    stop_tokens,
) -> Completion:
    batch, width = prompts.shape
    params = decoder.prepare(params)
    lengths = jnp.sum(real, axis=1, dtype=jnp.int32)
    positions = jnp.where(real, jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, -1)
    last_real = jnp.max(jnp.where(real, jnp.arange(width), 0), axis=1)

    def draw(logits, place) -> token_laws.Draw:
        logits = logits.astype(jnp.float32)
        if temperature is None:
            return token_laws.greedy(logits)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, place)))(row_keys)
        return token_laws.draw(uniform, logits, temperature=temperature, top_k=top_k, top_p=top_p)

    def write(carry: _Carry, logits) -> _Carry:
        drawn, running = draw(logits, carry.place), carry.running
        tokens = jnp.where(running, drawn.tokens, 0)
        row = Completion(
            tokens,
            jnp.where(running, drawn.log_probs, 0.0),
            jnp.where(running, drawn.sampling_log_probs, 0.0),
            running.astype(jnp.float32),
        )
        columns = jax.tree.map(
            lambda column, new: jax.lax.dynamic_update_index_in_dim(column, new, carry.place, 0),
            carry.columns,
            row,
        )
        for stop in stop_tokens:
            running = running & (tokens != stop)
        return _Carry(carry.place + 1, tokens, running, carry.cache, columns)

    def step(carry: _Carry) -> _Carry:
        place = (lengths + carry.place - 1)[:, None]
        here = jnp.zeros(batch, jnp.int32)
        logits, cache = decoder.step(params, carry.last[:, None], carry.cache, place, here)
        return write(carry._replace(cache=cache), logits)

    def unfinished(carry: _Carry):
        return (carry.place < max_new_tokens) & jnp.any(carry.running)

    cache = decoder.init_cache(batch, width + max_new_tokens)
    logits, cache = decoder.step(params, prompts, cache, positions, last_real)
    floats = jnp.zeros((max_new_tokens, batch), jnp.float32)
    empty = Completion(floats.astype(jnp.int32), floats, floats, floats)
    # All true, and made of the logits: under `shard_map` it then differs by device from the start,
    # as it will in the loop.
    is_nan = jnp.isnan(logits[:, 0])
    running = is_nan | ~is_nan
    nothing = jnp.zeros(batch, jnp.int32)
    start = _Carry(jnp.zeros((), jnp.int32), nothing, running, cache, empty)
    columns = jax.lax.while_loop(unfinished, step, write(start, logits)).columns
    return Completion(*(column.T for column in columns))


def join(
    prompts: Int[Array, "B P"], completion: Completion, *, prompt_mask: Array | None = None
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Returns rows of prompt and completion, padded on the right, as every agent reads them.

    Args:
      prompts: token ids. [B, P].
      completion: from `generate` with these prompts.
      prompt_mask: as in `generate`. [B, P].

    Returns:
      Tokens, 0 on padding, and a mask that is 1 on the tokens of the completion. [B, P + N] each.

    Raises:
      ValueError: the shapes do not belong together.
    """
    if prompts.shape[0] != completion.tokens.shape[0]:
        raise ValueError(
            f"completion must have a row for each of {prompts.shape[0]} prompts, got "
            f"{completion.tokens.shape[0]}."
        )
    _check(prompts, prompt_mask, None, 1, ())
    real = jnp.ones(prompts.shape, bool) if prompt_mask is None else jnp.asarray(prompt_mask) != 0
    counted = completion.mask != 0
    kept = jnp.concatenate([real, counted], axis=1)
    tokens = jnp.concatenate([prompts, completion.tokens], axis=1)
    # Stable: real tokens keep their order and move to the left of the padding.
    order = jnp.argsort(~kept, axis=1, stable=True)
    is_completion = jnp.concatenate([jnp.zeros_like(real), counted], axis=1)
    tokens = jnp.take_along_axis(jnp.where(kept, tokens, 0), order, axis=1)
    return tokens, jnp.take_along_axis(is_completion, order, axis=1).astype(jnp.float32)
