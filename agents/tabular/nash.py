r"""Nash-MD and mirror descent on a preference game, exactly: one policy in, the next one out.

Both step from a policy towards what beats an opponent, with a pull towards the reference:

.. math:: \log \pi_{t+1}(y) = (1 - \eta_t \tau) \log \pi_t(y) + \eta_t \tau \log \mu(y)
          + \eta_t P(y \succ \pi') + \mathrm{const}

The opponent pi' of mirror descent is pi_t itself (self-play); that of Nash-MD is the geometric
mixture of pi_t and mu with weight eta_t tau on mu. With a constant step size mirror descent
converges to the regularised equilibrium; Nash-MD ends near it, at the fixed point of
`ipo_md_equilibrium` with mixture eta tau. With the decreasing schedule both converge.
"""

from jaxtyping import Array, Float

from bellmax.agents.tabular import _games
from bellmax.losses import _checks
from bellmax.losses._checks import Knob


def _nash_md(ratios, preference, log_reference, tau, step_size):
    mixture = (1 - step_size * tau) * ratios
    opponent = _games.to_policy(mixture, log_reference)
    return mixture + step_size * _games.centred_wins(preference, opponent)


def _iterate(
    update: _games.Update, preference, reference, tau, num_steps, learning_rate, start, *, keep
):
    _checks.positive("tau", tau)
    if learning_rate is not None:
        _games.check_pull(learning_rate, tau)
    start = reference if start is None else start
    matrix, base, first = _games.game(preference, reference=reference, start=start)
    step_sizes = _games.step_sizes(learning_rate, tau, num_steps, matrix.dtype)
    (tau,) = _games.constants(matrix, tau)
    return _games.iterate(update, first, matrix, base, tau, step_sizes, keep=keep)


def nash_md_step(
    policy: Float[Array, " A"],
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    learning_rate: Knob,
) -> Float[Array, " A"]:
    r"""Returns the policy after one step of Nash-MD.

    .. math:: \pi_{t+1} = \arg\max_\pi \; \eta P(\pi \succ \pi_t^\mu) - \mathrm{KL}(\pi, \pi_t^\mu),
              \qquad \pi_t^\mu \propto \pi_t^{1 - \eta \tau} \mu^{\eta \tau}

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      learning_rate: eta, above 0 and at most 1 / tau. May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    _games.check_pull(learning_rate, tau)
    return _games.one_step(_nash_md, policy, preference, reference, tau, learning_rate)


def nash_md_iterates(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
    start: Float[Array, " A"] | None = None,
) -> Float[Array, "T+1 A"]:
    r"""Returns every policy of Nash-MD, the first included.

    With the paper's schedule eta_t = 2 / (tau (t + 2)),

    .. math:: \mathrm{KL}(\pi^*, \pi_T) \le \frac{8}{\tau^2 (T + 1)}

    for the last policy itself, not an average. The schedule's first step has eta_0 tau = 1, so that
    the start does not matter and pi_1 is the best response to the reference.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / tau: a number, or one a step [T]; None for the
        paper's schedule. May be traced.
      start: the first policy; None for the reference. [A].

    Returns:
      Policies. [T + 1, A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023, theorem 1.
      https://arxiv.org/abs/2312.00886
    """
    return _iterate(
        _nash_md, preference, reference, tau, num_steps, learning_rate, start, keep=True
    )


def nash_md(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, " A"]:
    r"""Returns the last policy of `nash_md_iterates`, begun at the reference.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / tau: a number, or one a step [T]; None for the
        paper's schedule 2 / (tau (t + 2)). May be traced. A constant step leaves a bias of order
        eta: see `ipo_md_equilibrium`.

    Returns:
      pi_T. [A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    return _iterate(
        _nash_md, preference, reference, tau, num_steps, learning_rate, None, keep=False
    )


def mirror_descent_step(
    policy: Float[Array, " A"],
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    learning_rate: Knob,
) -> Float[Array, " A"]:
    r"""Returns the policy after one step of regularised self-play.

    .. math:: \pi_{t+1}(y) \propto \pi_t(y)^{1 - \eta \tau} \mu(y)^{\eta \tau}
              \exp(\eta P(y \succ \pi_t))

    Args:
      policy: pi_t. [A].
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      learning_rate: eta, above 0 and at most 1 / tau. May be traced.

    Returns:
      pi_{t+1}. [A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    _games.check_pull(learning_rate, tau)
    update = _games.exponential_weights
    return _games.one_step(update, policy, preference, reference, tau, learning_rate)


def mirror_descent_iterates(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
    start: Float[Array, " A"] | None = None,
) -> Float[Array, "T+1 A"]:
    r"""Returns every policy of regularised self-play, the first included.

    A constant step converges to the regularised equilibrium linearly where it is small enough for
    the game; a step that is too large for tau circles around it.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / tau: a number, or one a step [T]; None for 2 /
        (tau (t + 2)). May be traced.
      start: the first policy; None for the reference. [A].

    Returns:
      Policies. [T + 1, A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    update = _games.exponential_weights
    return _iterate(update, preference, reference, tau, num_steps, learning_rate, start, keep=True)


def mirror_descent(
    preference: Float[Array, "A A"],
    reference: Float[Array, " A"],
    *,
    tau: Knob,
    num_steps: int,
    learning_rate: Knob | None = None,
) -> Float[Array, " A"]:
    r"""Returns the last policy of `mirror_descent_iterates`, begun at the reference.

    Args:
      preference: probability that the row's action beats the column's. [A, A].
      reference: mu. [A].
      tau: temperature, > 0, nats. May be traced.
      num_steps: steps T, at least 0.
      learning_rate: eta, above 0 and at most 1 / tau: a number, or one a step [T]; None for 2 /
        (tau (t + 2)). May be traced.

    Returns:
      pi_T. [A].

    Raises:
      ValueError: a shape is wrong, or a number is out of range.
      TypeError: an array is not floating point.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023. https://arxiv.org/abs/2312.00886
    """
    update = _games.exponential_weights
    return _iterate(update, preference, reference, tau, num_steps, learning_rate, None, keep=False)
