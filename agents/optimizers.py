"""Optimisers that optax lacks: Adan as published, a guard on non-finite steps, and ObGD."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

Params = Any
Mask = Any | Callable[[Params], Any]


class AdanState(NamedTuple):
    """State of `adan`.

    Attributes:
      count: steps since the start or the last restart, an int32 scalar (`Any` to type checkers,
        which know the name as a method of tuples).
      gradient_mean: moving average of gradients.
      difference_mean: moving average of differences of successive gradients.
      square_mean: moving average of squares of the extrapolated gradient.
      previous_gradient: the last gradient.
    """

    count: Any
    gradient_mean: Params
    difference_mean: Params
    square_mean: Params
    previous_gradient: Params


class _Leaf(NamedTuple):
    """What one array's step gives; a tree of these is turned inside out once."""

    update: Any
    gradient_mean: Any
    difference_mean: Any
    square_mean: Any
    previous_gradient: Any


class _Rates(NamedTuple):
    """The three decay rates and what is added to the root."""

    b1: Any
    b2: Any
    b3: Any
    eps: Any


def adan(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    proximal: bool = True,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    r"""Returns Adan, Nesterov momentum from differences of gradients, as its authors published it.

    With g the gradient, d = g - previous g (0 at the first step), moving averages with decay rates
    b, and hats that divide by 1 - b^k at step k:

    .. math::
        m &= b_1 m + (1 - b_1) g, \quad v = b_2 v + (1 - b_2) d, \\
        n &= b_3 n + (1 - b_3) (g + b_2 d)^2, \\
        s &= \eta \frac{\hat m + b_2 \hat v}{\sqrt{\hat n} + \epsilon}, \quad
        \theta \leftarrow \frac{\theta - s}{1 + \eta \lambda}

    The b's are decay rates, as in the authors' code; the paper's beta is 1 - b. This differs from
    `optax.adan` 0.2.8, which has 1 - b2 where the algorithm has b2, decays weights additively, and
    adds 1e-8 inside the root. Clip gradients before it, in an `optax.chain`, if at all: the
    published method takes differences of clipped gradients.

    Args:
      learning_rate: eta, a float or a schedule of the step, counted from 0.
      b1: decay rate of the gradient's average, in [0, 1).
      b2: decay rate of the difference's average, in [0, 1).
      b3: decay rate of the square's average, in [0, 1).
      eps: added to the root, > 0.
      weight_decay: lambda >= 0.
      proximal: decay by the proximal step above; False multiplies parameters by 1 - eta lambda
        first (the authors' `no_prox`).
      mask: pytree of booleans, the parameters' own or a prefix of it, or a function of parameters
        that returns one: true where weights decay. None decays all.

    Returns:
      The transformation; `update` needs the parameters where `weight_decay` is not 0. Averages are
      kept in float32 for parameters of lower precision.

    Raises:
      ValueError: a rate is outside [0, 1), or `update` lacks parameters that it needs.

    References:
      Xie et al., Adan, 2022. https://arxiv.org/abs/2208.06677, and the authors' code.
    """
    for name, rate in (("b1", b1), ("b2", b2), ("b3", b3)):
        if isinstance(rate, int | float) and not 0 <= rate < 1:
            raise ValueError(f"{name} must be in [0, 1), got {rate}.")
    rates = _Rates(b1, b2, b3, eps)
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def init(params: Params) -> AdanState:
        def zeros() -> Params:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_average_dtype(p)), params)

        return AdanState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros(), zeros())

    def update(updates: Params, state: Any, params: Params | None = None):
        if decays and params is None:
            raise ValueError("adan with weight_decay needs params in update.")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = jnp.asarray(optax.safe_increment(state.count))

        def one_array(gradient, mean, difference, square, previous, param, decayed) -> _Leaf:
            averages = (mean, difference, square, previous)
            leaf = _direction(gradient.astype(mean.dtype), averages, count, rates)
            decay = jnp.where(decayed, weight_decay, 0.0) if decays else None
            change = _descend(param, rate * leaf.update, rate, decay, proximal)
            return leaf._replace(update=change.astype(jnp.asarray(param).dtype))

        # Without parameters, gradients stand in for the dtype of the updates.
        params = updates if params is None else params
        decayed = _decay_mask(mask, params)
        # One map over all trees, so that each array is read and written in one fused pass.
        stepped = jax.tree.map(one_array, updates, *state[1:], params, decayed)
        outer, inner = jax.tree.structure(updates), jax.tree.structure(_Leaf(0, 0, 0, 0, 0))
        fields = _Leaf(*jax.tree.transpose(outer, inner, stepped))
        return fields.update, AdanState(count, *fields[1:])

    return optax.GradientTransformation(init, update)


def _direction(gradient: Array, averages: tuple, count: Array, rates: _Rates) -> _Leaf:
    """Returns the new averages, and as `update` the direction that the learning rate multiplies."""
    mean, difference, square, previous = averages
    b1, b2, b3, eps = rates
    delta = jnp.where(count == 1, 0, gradient - previous)
    mean = b1 * mean + (1 - b1) * gradient
    difference = b2 * difference + (1 - b2) * delta
    square = b3 * square + (1 - b3) * jnp.square(gradient + b2 * delta)
    root = jnp.sqrt(_debias(square, b3, count)) + eps
    direction = (_debias(mean, b1, count) + b2 * _debias(difference, b2, count)) / root
    return _Leaf(direction, mean, difference, square, gradient)


def _descend(param: Array, step: Array, rate, decay, proximal: bool) -> Array:
    """Returns new minus old parameters, since optax adds updates."""
    if decay is None:
        return -step
    value = param.astype(step.dtype)
    shrink = rate * decay
    return -(step + shrink * value) / (1 + shrink) if proximal else -step - shrink * value


def _average_dtype(array: Array):
    return jnp.promote_types(jnp.asarray(array).dtype, jnp.float32)


def _debias(average: Array, rate: float, count: Array) -> Array:
    # In the average's own dtype, so that float64 parameters lose nothing.
    return average / (1 - jnp.asarray(rate, average.dtype) ** count)


def _decay_mask(mask: Mask | None, params: Params) -> Params:
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    return jax.tree.broadcast(mask(params) if callable(mask) else mask, params)


def restart_adan(opt_state: optax.OptState) -> Any:
    """Forgets Adan's averages, as the paper's restart and the authors' `restart_opt` do.

    Nothing restarts by itself: the caller decides when. A schedule inside `adan` starts over too,
    since it reads the same count.

    Args:
      opt_state: a state of `adan`, or of a chain that holds some.

    Returns:
      The state with a count of 0 and averages of 0; the next step's gradient difference is 0.
    """

    def is_adan(node) -> bool:
        return isinstance(node, AdanState)

    def restart(node):
        if not is_adan(node):
            return node
        zeros = jax.tree.map(jnp.zeros_like, node)
        return zeros._replace(previous_gradient=node.previous_gradient)

    return jax.tree.map(restart, opt_state, is_leaf=is_adan)


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
      skipped: steps that were not taken, since the start.
      inner: state of the transformation inside.
    """

    skipped: Int[Array, ""]
    inner: optax.OptState


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transformation that takes no step on a gradient that holds NaN or infinity.

    Unlike `optax.apply_if_finite` it never gives in, however many steps are bad: the count is there
    to be watched (`skipped_updates`). Under several devices give it gradients that are already
    averaged, so that all devices decide alike.

    Args:
      inner: any optax transformation.

    Returns:
      The transformation. On a bad gradient the updates are zeros and the inner state stays as it
      was.
    """

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Params, state: Any, params: Params | None = None):
        finite = jnp.array(True)
        for leaf in jax.tree.leaves(updates):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        # Selected and not branched on: a select fuses with the step, works alike under every
        # transformation, and costs nothing that a branch would save on good steps.
        new_updates, new_inner = inner.update(updates, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), new_updates)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_inner, state.inner)
        return updates, SkipNonfiniteState(state.skipped + jnp.where(finite, 0, 1), kept)

    return optax.GradientTransformation(init, update)


def skipped_updates(opt_state: optax.OptState) -> Int[Array, ""]:
    """Returns how many steps `skip_nonfinite` has skipped, wherever in a chain it stands.

    Args:
      opt_state: any optimiser state.

    Returns:
      The count summed over all guards, 0 where there is none.
    """
    guards = [
        leaf
        for leaf in jax.tree.leaves(
            opt_state, is_leaf=lambda node: isinstance(node, SkipNonfiniteState)
        )
        if isinstance(leaf, SkipNonfiniteState)
    ]
    return sum((guard.skipped for guard in guards), jnp.zeros((), jnp.int32))


def obgd_step(
    params: Params,
    trace: Params,
    gradient: Params,
    td_error: Array,
    *,
    discount: Any,
    trace_decay: Any,
    learning_rate: Any = 1.0,
    kappa: Any = 2.0,
    reset: Any = False,
) -> tuple[Params, Params]:
    r"""Takes a step of overshooting-bounded gradient descent on one transition, no batch.

    .. math::
      z \leftarrow \gamma \lambda z + \nabla f, \quad
      M = \alpha \kappa \max(|\delta|, 1) \|z\|_1, \quad
      w \leftarrow w + \min(\alpha, \alpha / M)\, \delta z

    The 1-norm of a step is at most :math:`1 / \kappa` where M > 1. For a linear prediction of
    features in [-1, 1] and no traces the error then keeps its sign: a step never overshoots.

    Args:
      params: parameters w.
      trace: eligibility trace z of the same structure; zeros before the first step.
      gradient: of the prediction f (a value, or a log-probability) by the parameters, upwards.
      td_error: delta, its temporal-difference error. Scalar.
      discount: gamma in [0, 1].
      trace_decay: lambda in [0, 1].
      learning_rate: alpha > 0, the longest step.
      kappa: bounds how far a step may reach; the paper has 2 for values and 3 for policies.
      reset: true at the end of an episode (or after an exploratory action): the trace is 0 after
        this step. May be traced.

    Returns:
      The new parameters, in the dtypes of the old, and the new trace.

    References:
      Elsayed et al., Streaming Deep Reinforcement Learning Finally Works, 2024, algorithm 3.
      https://arxiv.org/abs/2410.14606
    """
    trace = jax.tree.map(lambda z, g: discount * trace_decay * z + g, trace, gradient)
    total = sum(
        jnp.sum(jnp.abs(z), dtype=jnp.promote_types(z.dtype, jnp.float32))
        for z in jax.tree.leaves(trace)
    )
    bound = learning_rate * kappa * jnp.maximum(jnp.abs(td_error), 1.0) * total
    step = learning_rate / jnp.maximum(bound, 1.0) * td_error
    params = jax.tree.map(lambda w, z: (w + step * z).astype(w.dtype), params, trace)
    kept = jax.tree.map(lambda z: jnp.where(reset, jnp.zeros_like(z), z), trace)
    return params, kept
