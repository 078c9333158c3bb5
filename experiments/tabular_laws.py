"""Laws of returns for `tabular` runs: chains, methods that solve them, samples, errors, time."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bellmax import losses
from bellmax.agents import tabular
from bellmax.envs import TabularMDP, chains
from bellmax.envs import tabular as tables
from bellmax.experiments import config as config_lib
from bellmax.experiments import numbered

# Atoms of the grid that holds the truth; its gaps are far below any error that is measured.
_TRUTH_ATOMS = 4001
_TIMINGS = 15


class Chain(NamedTuple):
    """A Markov chain with rewards in [0, 1].

    Attributes:
      transition: probabilities. [S, S].
      reward: of each state. [S].
    """

    transition: Float[Array, "S S"]
    reward: Float[Array, " S"]


class Laws(NamedTuple):
    """Laws of returns, by state.

    Attributes:
      atoms: where the mass is. [S, N].
      weights: how much. [S, N].
    """

    atoms: Float[Array, "S N"]
    weights: Float[Array, "S N"]


def _corridor(key: jax.Array, num_states: int, discount: float) -> TabularMDP:
    del key
    return chains.chain(num_states, discount=discount)


ENVIRONMENTS: dict[str, Callable[[jax.Array, int, float], TabularMDP]] = {
    "two_state": lambda key, num_states, discount: chains.two_state(discount),
    "chain": _corridor,
    "low_random": lambda key, n, discount: chains.low_random(key, num_states=n, discount=discount),
    "high_random": lambda key, n, discount: chains.high_random(
        key, num_states=n, discount=discount
    ),
}


def make_chain(name: str, seed: int, *, num_states: int) -> Chain:
    """Returns the chain of a name, under the policy of its last action.

    Args:
      name: two_state, chain (always to the right), low_random or high_random.
      seed: of the random ones, which depend on it and their own name alone.
      num_states: S, of all but two_state.

    Returns:
      The chain.

    Raises:
      UserError: there is no such chain.
    """
    if name not in ENVIRONMENTS:
        raise config_lib.unknown("config.fixed_points.environments", name, ENVIRONMENTS)
    key = numbered.named_key(seed, name)
    mdp = ENVIRONMENTS[name](key, num_states, 0.0)
    last = jax.nn.one_hot(mdp.num_actions - 1, mdp.num_actions, dtype=mdp.reward.dtype)
    policy = jnp.broadcast_to(last, mdp.reward.shape)
    return Chain(*tables.policy_chain(mdp, policy))


def support(discount: float | Array, num_atoms: int) -> Float[Array, " K"]:
    """Returns atoms evenly on [0, 1 / (1 - gamma)], where returns of rewards in [0, 1] lie.

    Args:
      discount: gamma.
      num_atoms: K.

    Returns:
      The support. [K].
    """
    return jnp.linspace(0, 1 / (1 - discount), num_atoms)


def _dcfp(chain: Chain, discount, grid, num_sweeps) -> Laws:
    del num_sweeps
    probs = tabular.categorical_fixed_point(*chain, discount, grid)
    return Laws(jnp.broadcast_to(grid, probs.shape), probs)


def _dcfp_dense(chain: Chain, discount, grid, num_sweeps) -> Laws:
    del num_sweeps
    unknowns = chain.reward.size * grid.size
    probs = tabular.categorical_fixed_point(*chain, discount, grid, max_dense=unknowns)
    return Laws(jnp.broadcast_to(grid, probs.shape), probs)


def _cdp(chain: Chain, discount, grid, num_sweeps) -> Laws:
    def sweep(_, probs):
        return tabular.categorical_dp_step(probs, *chain, discount, grid)

    start = jnp.zeros((chain.reward.size, grid.size)).at[:, 0].set(1)
    probs = jax.lax.fori_loop(0, num_sweeps, sweep, start)
    return Laws(jnp.broadcast_to(grid, probs.shape), probs)


def _qdp(chain: Chain, discount, grid, num_sweeps) -> Laws:
    del num_sweeps
    quantiles = tabular.quantile_fixed_point(*chain, discount, grid.size, tolerance=1e-6)
    return Laws(quantiles, jnp.full(quantiles.shape, 1 / grid.size))


Method = Callable[[Chain, Any, Array, Any], Laws]
# (chain, discount, support, sweeps of CDP) -> laws.
METHODS: dict[str, Method] = {"dcfp": _dcfp, "dcfp_dense": _dcfp_dense, "qdp": _qdp, "cdp": _cdp}


@functools.partial(jax.jit, static_argnames="method")
def solve_chain(
    method: str,
    chain: Chain,
    discount: float | Array,
    grid: Float[Array, " K"],
    num_sweeps: int | Array,
) -> Laws:
    """Solves one chain.

    Args:
      method: a key of `METHODS`.
      chain: the chain.
      discount: gamma.
      grid: support of the categorical methods; quantiles are as many. [K].
      num_sweeps: of CDP, from point masses at the first atom.

    Returns:
      The laws.
    """
    return METHODS[method](chain, discount, grid, num_sweeps)


def estimates(chain: Chain, num_samples: int, seeds: Sequence[int]) -> Float[np.ndarray, "R S S"]:
    """Returns transitions estimated from next states, one for each seed of NumPy's generator.

    Args:
      chain: the chain.
      num_samples: next states drawn from every state.
      seeds: R of them.

    Returns:
      Shares of next states. [R, S, S].
    """
    rows = np.asarray(chain.transition, float)
    rows = rows / rows.sum(axis=1, keepdims=True)
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        drawn.append([rng.multinomial(num_samples, row) for row in rows])
    return np.array(drawn) / num_samples


def true_laws(key: jax.Array, chain: Chain, discount: float, num_returns: int) -> Laws:
    """Returns laws of sampled returns, moved onto a fine grid.

    Args:
      key: randomness.
      chain: the chain.
      discount: gamma.
      num_returns: samples of each state.

    Returns:
      Laws on a common grid; each is off by its sampling error, of order 1 / sqrt(num_returns).
    """
    # What is cut off is below 1e-3 gaps of a support of 100 atoms.
    num_steps = int(np.ceil(np.log(1e-5) / np.log(discount))) if discount > 0 else 1
    returns = tabular.sample_returns(
        key, *chain, discount, num_samples=num_returns, num_steps=num_steps
    )
    grid = support(discount, _TRUTH_ATOMS)
    weights = jnp.full(returns.shape, 1 / num_returns)
    probs = losses.categorical_projection(returns, weights, grid)
    return Laws(jnp.broadcast_to(grid, probs.shape), probs)


@functools.partial(jax.jit, static_argnames="method")
def sup_errors(
    method: str,
    transitions: Float[Array, "R S S"],
    reward: Float[Array, " S"],
    discount: float | Array,
    grid: Float[Array, " K"],
    num_sweeps: int | Array,
    truth: Laws,
) -> Float[Array, " R"]:
    """Returns the largest W1 error over states of a method, for each estimate of the transitions.

    Args:
      method: a key of `METHODS`.
      transitions: estimates. [R, S, S].
      reward: of each state. [S].
      discount: gamma.
      grid: support. [K].
      num_sweeps: of CDP.
      truth: what laws are compared with.

    Returns:
      Errors. [R].
    """

    def one(transition):
        laws = METHODS[method](Chain(transition, reward), discount, grid, num_sweeps)
        return jnp.max(tabular.wasserstein_distance(*laws, *truth))

    return jax.lax.map(one, transitions)


def seconds(method: str, chain: Chain, discount: float, grid: Array, num_sweeps: int) -> float:
    """Returns how long a method takes on one chain, compiled: the fastest of a few runs.

    What else the machine does can only add to it.

    Args:
      method: a key of `METHODS`.
      chain: the chain.
      discount: gamma.
      grid: support. [K].
      num_sweeps: of CDP.

    Returns:
      Seconds.
    """
    found = []
    for _ in range(_TIMINGS + 1):
        start = time.perf_counter()
        jax.block_until_ready(solve_chain(method, chain, discount, grid, num_sweeps))
        found.append(time.perf_counter() - start)
    return min(found[1:])
