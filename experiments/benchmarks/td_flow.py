r"""Updates and samples of temporal-difference flows, a second, against a PyTorch loop.

The U-shaped network with FiLM, from the same parameters in both; AdamW, a moving average as target;
states of 16 numbers, actions of 4. The large shape is the paper's for one policy. Ours runs several
updates as one program, as `experiments.horizon` does; PyTorch (extra `peers`) runs them one by one,
with its optimiser fused, its average in one call, and the layers that read the condition evaluated
once for all steps of a solver, which XLA does by itself. Its threads wait for each other
at every operation, so that on a machine with other work it falls far behind: ratios to it are worth
something on an idle one only.

A bootstrap takes 10 midpoint steps, N = 21 evaluations of the target for TD2-CFM and 20 for TD-CFM.
The two evaluations of the network cost 3 each, forward and backward. `over its evaluations` is the
time over that of an update whose bootstrap is a constant, divided by the (N + 6) / 6 that this
predicts: above 1, a bootstrap costs more than what it evaluates.

Operations are those of products of matrices, 2 B K for a batch of B and K entries. With K all of
the network's, K_c, K_t and K_f those that read the condition, the time and both (FiLM), and K_0
those that read an input, to which nothing flows back:

    update   2 B (N (K - K_c) + K_c + 6 K - K_c - K_t - K_f - 2 K_0)
    sample   2 B (20 (K - K_c) + K_c)

since what reads the condition is evaluated once for the target, and what reads condition and time
once for the network's two points; their backward passes are two. Without a bootstrap N and the
first K_c are 0. For the programs that XLA makes of these on a CPU that is exact. PyTorch's share is
counted by the same formula.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import losses
from bellmax.agents import TransitionBatch, followers, horizon_objectives, networks, td_flow
from bellmax.agents.networks import flow
from bellmax.experiments.benchmarks import peers, runner
from bellmax.experiments.benchmarks.td_flow_torch import SETTINGS, TorchLearner, TorchNetwork

_STATE, _ACTION = 16, 4
# Evaluations of the target in a bootstrap, and the cost of the network's two, in evaluations.
_EVALUATIONS = {
    "TD2-CFM": 2 * SETTINGS.num_steps + 1,
    "TD-CFM": 2 * SETTINGS.num_steps,
    "no bootstrap": 0,
}
_NETWORK_EVALUATIONS = 6


class Shape(NamedTuple):
    """What is run.

    Attributes:
      name: what tables call it.
      network: the network.
      batch: transitions an update, and samples a generation.
      updates: updates a program.
      fewer: by how much to divide the counted runs.
    """

    name: str
    network: flow.FlowNetworkConfig
    batch: int
    updates: int
    fewer: int


def _network(widths: tuple[int, ...], features: int, time: int, layers: int):
    return flow.FlowNetworkConfig(
        _STATE,
        _STATE + _ACTION,
        hidden_sizes=widths,
        time_features=features,
        time_sizes=(time, time),
        condition_sizes=(widths[0],) * layers,
    )


_QUICK = (Shape("1 x 8, batch 4", _network((8,), 8, 8, 1), 4, 2, 1),)
_SHAPES = (
    Shape("3 x 128, batch 256", _network((128,) * 3, 64, 64, 2), 256, 8, 1),
    Shape("3 x 512, batch 1024", _network((512,) * 3, 256, 256, 3), 1024, 2, 3),
)


class Products(NamedTuple):
    """Entries of a network's matrices.

    Attributes:
      all: K.
      condition: K_c, of the layers that read the condition.
      time: K_t, of the layers that read the time.
      film: K_f, of the layers that read both of these.
      inputs: K_0, of the layers that read point, time or condition themselves.
    """

    all: int
    condition: int
    time: int
    film: int
    inputs: int


def products(params: Any) -> Products:
    """Counts the entries of a U-shaped network's matrices.

    Args:
      params: of `networks.flow.init`.

    Returns:
      The counts.
    """
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def total(*parts: str) -> int:
        return sum(
            size
            for name, size in sizes.items()
            if name.endswith("kernel") and any(part in name for part in parts)
        )

    return Products(
        all=total(""),
        condition=total("condition_"),
        time=total("time_"),
        film=total(".film."),
        inputs=total("condition_0.", "time_0.", "point."),
    )


def update_operations(counts: Products, batch: int, evaluations: int) -> int:
    """Returns floating-point operations of an update, by the formula above.

    Args:
      counts: of the network's matrices.
      batch: B.
      evaluations: N, of the target; 0 without a bootstrap.

    Returns:
      Operations.
    """
    target = evaluations * (counts.all - counts.condition)
    if evaluations:
        target += counts.condition
    shared = counts.condition + counts.time + counts.film
    return 2 * batch * (target + 6 * counts.all - shared - 2 * counts.inputs)


def sample_operations(counts: Products, batch: int) -> int:
    """Returns floating-point operations of a generation, by the formula above.

    Args:
      counts: of the network's matrices.
      batch: B.

    Returns:
      Operations.
    """
    return 2 * batch * (2 * SETTINGS.num_steps * (counts.all - counts.condition) + counts.condition)


def _no_bootstrap() -> horizon_objectives.Objective:
    """TD2-CFM with noise in the place of what the target says."""

    def loss(network, target_network, next_states, draws, discount):
        del target_network
        direct, velocity = losses.linear_path(draws.direct_noise, next_states, draws.time)
        return losses.td_flow_loss(
            network(direct, draws.time),
            velocity,
            network(draws.noise, draws.time),
            draws.fresh_noise,
            discount=discount,
        )

    return horizon_objectives.td2_cfm()._replace(loss=loss)


_OBJECTIVES = {
    "TD2-CFM": horizon_objectives.td2_cfm(num_steps=SETTINGS.num_steps),
    "TD-CFM": horizon_objectives.td_cfm(num_steps=SETTINGS.num_steps),
    "no bootstrap": _no_bootstrap(),
}


def _transitions(shape: Shape) -> TransitionBatch:
    rng = np.random.default_rng(0)

    def draw(size: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((shape.updates, shape.batch, size), np.float32))

    return TransitionBatch(draw(_STATE), draw(_ACTION), draw(_STATE), draw(_ACTION))


def optimizer() -> optax.GradientTransformation:
    """Returns the paper's AdamW."""
    return optax.adamw(
        SETTINGS.learning_rate,
        *SETTINGS.betas,
        eps=SETTINGS.eps,
        weight_decay=SETTINGS.weight_decay,
    )


def _training(shape: Shape, name: str, params: Any) -> runner.Candidate:
    agent = td_flow.make(
        functools.partial(flow.apply, shape.network),
        optimizer(),
        objective=_OBJECTIVES[name],
        discount=SETTINGS.discount,
        init_params=functools.partial(flow.init, shape.network),
        target_rule=followers.average(SETTINGS.decay),
    )

    def window(state, batches, key):
        def one(state, rows_and_key):
            return agent.update(state, *rows_and_key)

        return jax.lax.scan(one, state, (batches, jax.random.split(key, shape.updates)))

    state = agent.init(jax.random.key(0), params=params)
    return runner.Candidate(
        f"bellmax, {name}", window, (state, _transitions(shape), jax.random.key(1)), carried=True
    )


def _generation(shape: Shape, params: Any) -> runner.Candidate:
    keys = jax.random.split(jax.random.key(2))
    noise = jax.random.normal(keys[0], (shape.batch, _STATE))
    condition = jax.random.normal(keys[1], (shape.batch, _STATE + _ACTION))
    generate = functools.partial(
        td_flow.sample,
        apply=functools.partial(flow.apply, shape.network),
        objective=_OBJECTIVES["TD2-CFM"],
        num_steps=SETTINGS.num_steps,
    )
    return runner.Candidate("bellmax, samples", generate, (params, noise, condition))


def _torch_training(torch: Any, shape: Shape, name: str, params: Any) -> runner.Candidate:
    torch.manual_seed(0)
    learner = TorchLearner(torch, shape.network, params, name)
    counted = sum(tensor.numel() for tensor in learner.network.parameters())
    assert counted == networks.num_parameters(params), (counted, networks.num_parameters(params))
    states, actions, next_states, next_actions = (
        torch.tensor(np.asarray(leaf)) for leaf in _transitions(shape)[:4]
    )
    conditions = torch.cat([states, actions], -1), torch.cat([next_states, next_actions], -1)

    def window() -> None:
        for rows in zip(next_states, *conditions, strict=True):
            noise = (torch.randn(shape.batch, _STATE) for _ in range(2 if learner.squared else 3))
            direct, start, *fresh = noise
            draws = torch.rand(shape.batch), direct, start, fresh[0] if fresh else None
            learner.update(rows, draws)

    return runner.Candidate(f"PyTorch, {name}", window, (), compiled=False)


def _torch_generation(torch: Any, shape: Shape, params: Any) -> runner.Candidate:
    network = TorchNetwork(torch, shape.network, params)
    torch.manual_seed(0)
    noise = torch.randn(shape.batch, _STATE)
    condition, end = torch.randn(shape.batch, _STATE + _ACTION), torch.ones(shape.batch)

    def generate() -> None:
        with torch.inference_mode():
            network.integrate(noise, network.read_condition(condition), end)

    return runner.Candidate("PyTorch, samples", generate, (), compiled=False)


def _compare(shape: Shape, machine: runner.Machine, repeats: int) -> list[dict[str, Any]]:
    params = flow.init(shape.network, jax.random.key(0))
    candidates = [_training(shape, name, params) for name in _OBJECTIVES]
    candidates.append(_generation(shape, params))
    torch = peers.import_peer("torch")
    if torch is not None:
        names = [name for name in _OBJECTIVES if name != "no bootstrap"]
        candidates += [_torch_training(torch, shape, name, params) for name in names]
        candidates.append(_torch_generation(torch, shape, params))
    timings = runner.measure(candidates, repeats=max(1, repeats // shape.fewer))
    by_name = {timing.name: timing for timing in timings}
    counts = products(params)
    rows = []
    for timing in timings:
        library, what = timing.name.split(", ")
        theirs = by_name.get(f"PyTorch, {what}") if library == "bellmax" else None
        if what == "samples":
            number, operations = shape.batch, sample_operations(counts, shape.batch)
        else:
            evaluations = _EVALUATIONS[what]
            number = shape.updates * shape.batch
            operations = shape.updates * update_operations(counts, shape.batch, evaluations)
        faster = "-" if theirs is None else runner.ratio(theirs, timing)
        share = "-"
        if library == "bellmax" and _EVALUATIONS.get(what):
            predicted = _EVALUATIONS[what] / _NETWORK_EVALUATIONS + 1
            measured = runner.ratio(timing, by_name["bellmax, no bootstrap"])
            share = runner.Ratio(*(value / predicted for value in measured))
        rows.append(
            {"": timing.name, "shape": shape.name}
            | runner.row(timing, timings[0])
            | {
                "samples/s": f"{number / timing.median:,.0f}",
                "times faster than PyTorch": faster,
                "of matmul roofline": f"{operations / timing.median / machine.matmul_flops:.0%}",
                "over its evaluations": share,
            }
        )
    return rows


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares updates and samples at each shape.

    Args:
      machine: measured rates.
      quick: a small network.
      repeats: counted runs; a third of them of the large shape.

    Returns:
      One row a candidate and shape; without PyTorch, ours alone.
    """
    rows = []
    for shape in _QUICK if quick else _SHAPES:
        rows += _compare(shape, machine, repeats)
    return rows


BENCHMARK = runner.Benchmark(
    name="td_flow",
    description="TD-CFM, TD2-CFM: updates with 10 midpoint steps of bootstrap, and samples",
    run=run,
)
