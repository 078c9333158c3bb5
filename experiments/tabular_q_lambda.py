"""The operators of a `tabular` run: how fast Q(lambda) contracts, and where it diverges."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax.agents import tabular
from bellmax.envs import chains
from bellmax.experiments import checks, errors, metrics, plots


@dataclasses.dataclass(frozen=True)
class OperatorsConfig:
    """The keys of `config.operators`; each is described in `configs/tabular/q_lambda.py`."""

    num_states: int
    num_actions: int
    concentration: float
    discount: float
    num_atoms: int
    reach: float
    trace_decays: tuple[float, ...]
    mixtures: tuple[float, ...]
    num_iterations: int
    radii: bool
    tight_discounts: tuple[float, ...]
    num_points: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int
    operators: OperatorsConfig


class Problem(NamedTuple):
    """A decision process with a policy to evaluate and one that acts.

    Attributes:
      transition: probabilities. [S, A, S].
      reward: of each pair. [S, A].
      policy: pi, to evaluate. [S, A].
      behaviour: mu, which acts. [S, A].
      discount: gamma. [].
      support: z. [K].
    """

    transition: Float[Array, "S A S"]
    reward: Float[Array, "S A"]
    policy: Float[Array, "S A"]
    behaviour: Float[Array, "S A"]
    discount: Float[Array, ""]
    support: Float[Array, " K"]

    @property
    def mismatch(self) -> float:
        """Largest sum over actions of |pi - mu|."""
        return float(tabular.policy_distance(self.policy, self.behaviour))


def garnet(
    key: jax.Array,
    *,
    num_states: int,
    num_actions: int,
    concentration: float,
    discount: float,
    support: Float[Array, " K"],
) -> Callable[[float], Problem]:
    """Draws a Garnet whose behaviour is uniform.

    Args:
      key: randomness.
      num_states: S.
      num_actions: A.
      concentration: of the Dirichlet law of next states.
      discount: gamma.
      support: z. [K].

    Returns:
      alpha to the problem in which the policy takes one random action of each state with weight
      alpha and all with weight 1 - alpha.
    """
    table_key, action_key = jax.random.split(key)
    mdp = chains.garnet(
        table_key,
        num_states=num_states,
        num_actions=num_actions,
        concentration=concentration,
        discount=discount,
    )
    actions = jax.random.randint(action_key, (num_states,), 0, num_actions)
    certain = jax.nn.one_hot(actions, num_actions, dtype=mdp.reward.dtype)
    uniform = jnp.full(certain.shape, 1 / num_actions)

    def problem(mixture: float) -> Problem:
        policy = (1 - mixture) * uniform + mixture * certain
        return Problem(mdp.transition, mdp.reward, policy, uniform, mdp.discount, support)

    return problem


def stay_and_swap(discount: float, num_atoms: int) -> Problem:
    """Returns the problem in which the bound is tight: the policy always swaps, mu always stays.

    Args:
      discount: gamma.
      num_atoms: K.

    Returns:
      Two states, of which one pays; epsilon is 2.
    """
    stay, swap = jnp.eye(2), jnp.eye(2)[::-1]
    return Problem(
        transition=jnp.stack([stay, swap], axis=1),
        reward=jnp.array([[1.0, 1.0], [0.0, 0.0]]),
        policy=jnp.array([[0.0, 1.0]] * 2),
        behaviour=jnp.array([[1.0, 0.0]] * 2),
        discount=jnp.asarray(discount, float),
        support=jnp.linspace(0, 1 / (1 - discount), num_atoms),
    )


@jax.jit
def operator(problem: Problem, trace_decay: float | Array) -> Float[Array, "M M"]:
    """Returns Q(lambda) on differences of laws.

    Args:
      problem: the problem.
      trace_decay: lambda.

    Returns:
      The matrix of `multistep_dp_matrix`. [M, M].
    """
    traces = jnp.full(problem.policy.shape, trace_decay)
    return tabular.multistep_dp_matrix(
        problem.transition,
        problem.reward,
        problem.policy,
        problem.behaviour,
        problem.discount,
        problem.support,
        traces=traces,
    )


@functools.partial(jax.jit, static_argnums=2)
def distances(problem: Problem, matrix: Float[Array, "M M"], num_iterations: int) -> Array:
    """Returns how far iterates from uniform laws are from the fixed point.

    Args:
      problem: the problem.
      matrix: its operator. [M, M].
      num_iterations: T.

    Returns:
      Largest Cramer distances over pairs, by iteration. [T + 1].
    """
    shape = (problem.reward.size, problem.support.size)
    transition, reward, policy, _, discount, support = problem
    fixed = tabular.categorical_action_fixed_point(transition, reward, policy, discount, support)
    error = jnp.full(shape, 1 / shape[1]) - fixed.reshape(shape)
    gaps = jnp.diff(support)

    def step(values, _):
        size = jnp.sqrt(jnp.max(jnp.sum(gaps * jnp.square(values.reshape(shape[0], -1)), axis=-1)))
        return jnp.matmul(matrix, values, precision="highest"), size

    start = jnp.cumsum(error, axis=-1)[:, :-1].ravel()
    _, sizes = jax.lax.scan(step, start, length=num_iterations + 1)
    return sizes


def modulus(problem: Problem, trace_decay: float, order: int) -> float:
    """Returns the predicted contraction modulus.

    Args:
      problem: the problem.
      trace_decay: lambda.
      order: 1 for W1, 2 for the Cramer distance.

    Returns:
      beta.
    """
    return float(
        tabular.q_lambda_modulus(
            problem.policy,
            problem.behaviour,
            problem.discount,
            trace_decay=trace_decay,
            order=order,
        )
    )


def threshold(problem: Problem) -> float:
    """Returns the lambda below which the W1 modulus is below 1.

    Args:
      problem: the problem.

    Returns:
      The threshold.
    """
    return float(
        tabular.q_lambda_threshold(problem.policy, problem.behaviour, problem.discount, order=1)
    )


def check(config: Config) -> None:
    """Refuses what no single key shows to be wrong.

    Args:
      config: the run.

    Raises:
      UserError: a list is empty, or a number is out of range.
    """
    keys = config.operators
    inside = {
        "trace_decays": (keys.trace_decays, 0, 1),
        "mixtures": (keys.mixtures, 0, 1),
        "discount": ((keys.discount,), 0, 0.999),
        "tight_discounts": (keys.tight_discounts, 1e-3, 0.999),
    }
    for name, (values, low, high) in inside.items():
        if not values or not all(low <= value <= high for value in values):
            raise errors.UserError(
                f"config.operators.{name} must hold numbers in [{low}, {high}], got {values}."
            )
    at_least = {
        "num_states": (keys.num_states, 1),
        "num_actions": (keys.num_actions, 2),
        "num_atoms": (keys.num_atoms, 3),
        "num_iterations": (keys.num_iterations, 2),
        "num_points": (keys.num_points, 2),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise errors.UserError(
                f"config.operators.{name} must be at least {least}, got {value}."
            )
    for name, value in (("concentration", keys.concentration), ("reach", keys.reach)):
        if not value > 0:
            raise errors.UserError(f"config.operators.{name} must be positive, got {value}.")
    checks.seed(config.seed)


def solve(config: Config, workdir: pathlib.Path, announce: Callable[[str], None]) -> dict[str, Any]:
    """Iterates the operators and writes tables and figures.

    Args:
      config: the run.
      workdir: its folder, which exists.
      announce: says what is done next.

    Returns:
      What `result.json` holds: rows of contraction, and of divergence.

    Raises:
      UserError: the config is wrong.
    """
    check(config)
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    with jax.enable_x64(True):
        contraction, panels = _contraction(config, workdir, announce)
        divergence, more = _divergence(config.operators, announce)
    plots.save_figure(workdir / "contraction.png", panels)
    plots.save_figure(workdir / "divergence.png", more)
    result = {"contraction": contraction, "divergence": divergence}
    metrics.write_json(workdir / "result.json", result)
    metrics.print_table("Q(lambda) on a Garnet, uniform behaviour", contraction)
    metrics.print_table("Policy swaps, behaviour stays: spectral radii", divergence)
    return result


def _contraction(config: Config, workdir: pathlib.Path, announce: Callable[[str], None]):
    keys = config.operators
    make = garnet(
        jax.random.key(config.seed),
        num_states=keys.num_states,
        num_actions=keys.num_actions,
        concentration=keys.concentration,
        discount=keys.discount,
        support=jnp.linspace(-keys.reach, keys.reach, keys.num_atoms),
    )
    rows, panels = [], []
    for mixture in keys.mixtures:
        announce(f"Garnet of {keys.num_states} states, policy {mixture:g} from uniform")
        problem = make(mixture)
        curves = {}
        for trace_decay in keys.trace_decays:
            matrix = operator(problem, trace_decay)
            curve = np.asarray(distances(problem, matrix, keys.num_iterations))
            curves[trace_decay] = curve
            writer = metrics.MetricsWriter(workdir, f"garnet.{mixture:g}.{trace_decay:g}")
            for step, value in enumerate(curve):
                writer.write(step, {"distance": float(value)})
            writer.close()
            rows.append(
                {
                    "alpha": mixture,
                    "epsilon": problem.mismatch,
                    "lambda": trace_decay,
                    "radius": float(tabular.spectral_radius(matrix)) if keys.radii else "",
                    "beta_2": modulus(problem, trace_decay, 2),
                    "distance": float(curve[-1]),
                }
            )
        panels.append(contraction_panel(mixture, problem.mismatch, curves))
    return rows, panels


def contraction_panel(
    mixture: float, mismatch: float, curves: dict[float, np.ndarray]
) -> plots.Panel:
    """Returns the figure's panel of one policy.

    Args:
      mixture: alpha.
      mismatch: epsilon.
      curves: distances by lambda and iteration.

    Returns:
      A panel.
    """
    return plots.Panel(
        f"alpha = {mixture:g}, epsilon = {mismatch:.2g}",
        "application of the operator",
        "largest Cramer distance to the fixed point",
        [
            plots.Series(f"lambda = {name:g}", range(len(curve)), np.maximum(curve, 1e-14))
            for name, curve in curves.items()
        ],
        y_scale="log",
    )


def radii(problem: Problem, trace_decays: Iterable[float]) -> Float[np.ndarray, " L"]:
    """Returns spectral radii of a problem.

    Args:
      problem: the problem.
      trace_decays: lambdas, L of them.

    Returns:
      Radii. [L].
    """
    return np.array([float(tabular.spectral_radius(operator(problem, x))) for x in trace_decays])


def divergence_panels(
    problem: Problem, trace_decays: np.ndarray, found: np.ndarray
) -> list[plots.Panel]:
    """Returns radii over lambda with the predicted threshold drawn in, and iterates around it.

    Args:
      problem: the problem.
      trace_decays: lambdas. [L].
      found: radii. [L].

    Returns:
      Two panels.
    """
    limit = threshold(problem)
    predicted = [modulus(problem, value, 1) for value in trace_decays]
    name = f"gamma = {float(problem.discount):g}, epsilon = {problem.mismatch:g}"
    over = plots.Panel(
        f"Swap and stay, {name}",
        "lambda",
        "spectral radius",
        [
            plots.Series("spectral radius", trace_decays, found, style="", marker=True),
            plots.Series("predicted beta_1", trace_decays, predicted, style="--", reference=True),
            plots.Series(
                f"threshold {limit:.4g}",
                [limit, limit],
                [0, found.max()],
                reference=True,
                style=":",
            ),
        ],
        horizontal_lines=[("1", 1.0)],
    )
    series = []
    for factor in (0.5, 0.9, 1.1, 1.5):
        curve = distances(problem, operator(problem, factor * limit), 30)
        series.append(plots.Series(f"lambda = {factor:g} threshold", range(31), np.asarray(curve)))
    iterates = plots.Panel(
        f"Iterates around the threshold, gamma = {float(problem.discount):g}",
        "application of the operator",
        "largest Cramer distance to the fixed point",
        series,
        y_scale="log",
    )
    return [over, iterates]


def _divergence(keys: OperatorsConfig, announce: Callable[[str], None]):
    rows, panels = [], []
    trace_decays = np.linspace(0, 1, keys.num_points)
    for discount in keys.tight_discounts:
        announce(f"two states, discount {discount:g}: the policy swaps, the behaviour stays")
        problem = stay_and_swap(discount, keys.num_atoms)
        found = radii(problem, trace_decays)
        for trace_decay, radius in zip(trace_decays, found, strict=True):
            rows.append(
                {
                    "discount": discount,
                    "lambda": float(trace_decay),
                    "radius": float(radius),
                    "beta_1": modulus(problem, trace_decay, 1),
                    "threshold": threshold(problem),
                }
            )
        panels += divergence_panels(problem, trace_decays, found)
    return rows, panels
