"""Environment steps a second of a whole training loop: acting, replay and learning.

One-step C51 on CartPole, four environments, a batch of 32 every four environment steps, everything
alike: ours; a scan in the style of PureJaxRL, with the environment, replay of single transitions,
loss and target network written out in one function; and, for one seed, a Python loop with PyTorch,
Gymnasium and NumPy (extra `peers`). Ours keeps sequences and behaviour probabilities besides.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import losses
from bellmax.agents import distributional_q, followers, return_laws
from bellmax.agents.networks import value
from bellmax.envs import wrappers
from bellmax.envs.adapters import gymnax
from bellmax.experiments import control_loop
from bellmax.experiments.benchmarks import peers, runner
from bellmax.experiments.control_replay import Options, Replay

_ENVIRONMENTS, _BATCH, _REPLAY, _ATOMS, _DISCOUNT = 4, 32, 10_000, 51, 0.99
_EPSILON, _RATE, _TARGET_EVERY = 0.1, 5e-4, 250


def _support() -> Any:
    return jnp.linspace(0.0, 100.0, _ATOMS)


def _network(environment: Any, width: int) -> value.ValueNetworkConfig:
    return value.ValueNetworkConfig(
        environment.observation_spec.shape, 2, _ATOMS, hidden_sizes=(width, width)
    )


def _ours(width: int, updates: int, seeds: int) -> runner.Candidate:
    environment = control_loop.prepare(gymnax.make("CartPole-v1"))
    network = _network(environment, width)
    binding: Any = {
        "apply": functools.partial(value.apply, network),
        "law": return_laws.categorical(_support()),
    }
    backing: Any = {"trace_fn": losses.one_step_traces, "mixing": 1.0, "discount": _DISCOUNT}
    agent = distributional_q.make(
        **binding,
        **backing,
        optimizer=optax.adam(_RATE),
        init_params=functools.partial(value.init, network),
        target_rule=followers.every(_TARGET_EVERY),
        epsilon=lambda _: _EPSILON,
    )
    setup = control_loop.Setup(
        environment=environment,
        agent=agent,
        behaviour=functools.partial(
            distributional_q.behaviour, **binding, epsilon=lambda _: _EPSILON
        ),
        greedy=functools.partial(distributional_q.greedy, **binding),
        td_errors=functools.partial(distributional_q.td_errors, **binding, **backing, double=False),
        replay=Replay(Options(_ENVIRONMENTS, _BATCH, 1, _REPLAY, _BATCH, 0.0, 0.0)),
        num_environments=_ENVIRONMENTS,
        steps_per_update=1,
        observation_dtype=jnp.float32,
    )
    window = functools.partial(control_loop.train_window, setup, num_updates=updates)
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.jit(jax.vmap(functools.partial(control_loop.init, setup)))(keys)
    return runner.Candidate(
        f"bellmax, {seeds} seeds", jax.vmap(window), (states, keys), carried=True
    )


def _scan(width: int, updates: int, seeds: int) -> runner.Candidate:
    environment = wrappers.auto_reset(gymnax.make("CartPole-v1"))
    network, support = _network(environment, width), _support()
    optimizer = optax.adam(_RATE)
    rows = _REPLAY // _ENVIRONMENTS

    def init(key):
        network_key, reset_key = jax.random.split(key)
        params = value.init(network, network_key)
        states, seen = jax.vmap(environment.reset, in_axes=(0, None))(
            jax.random.split(reset_key, _ENVIRONMENTS), environment.params
        )
        shown = jnp.zeros((rows, _ENVIRONMENTS, *seen.observation.shape[1:]))
        scalars = jnp.zeros((rows, _ENVIRONMENTS))
        buffer = (shown, scalars.astype(jnp.int32), scalars, scalars, shown)
        target = jax.tree.map(jnp.copy, params)
        return params, target, optimizer.init(params), states, seen, buffer, jnp.int32(0)

    def one(carry, key):
        params, target, opt_state, states, seen, buffer, step = carry
        keys = jax.random.split(key, 4)
        logits = value.apply(network, params, seen.observation)
        best = jnp.argmax(jax.nn.softmax(logits) @ support, axis=-1)
        anyone = jax.random.randint(keys[0], best.shape, 0, 2)
        explores = jax.random.uniform(keys[1], best.shape) < _EPSILON
        actions = jnp.where(explores, anyone, best)
        states, following = jax.vmap(environment.step, in_axes=(0, 0, 0, None))(
            jax.random.split(keys[2], _ENVIRONMENTS), states, actions, environment.params
        )
        ended = following.terminated.astype(jnp.float32)
        fresh = (seen.observation, actions, following.reward, ended, following.observation)
        place = step % rows
        buffer = tuple(old.at[place].set(new) for old, new in zip(buffer, fresh, strict=True))
        places = jax.random.randint(keys[3], (2, _BATCH), 0, jnp.minimum(step + 1, rows))
        first, second = places[0], places[1] % _ENVIRONMENTS
        before, action, reward, over, after = (old[first, second] for old in buffer)
        probs = jax.nn.softmax(value.apply(network, target, after))
        best = jnp.argmax(probs @ support, axis=-1)
        law = jnp.take_along_axis(probs, best[:, None, None], axis=1)[:, 0]
        atoms = reward[:, None] + _DISCOUNT * (1 - over)[:, None] * support
        wanted = losses.categorical_projection(atoms, law, support)

        def objective(params):
            outputs = value.apply(network, params, before)
            taken = jnp.take_along_axis(outputs, action[:, None, None], axis=1)[:, 0]
            return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(taken), axis=-1))

        updates_, opt_state = optimizer.update(jax.grad(objective)(params), opt_state, params)
        params = optax.apply_updates(params, updates_)
        renew = (step + 1) % _TARGET_EVERY == 0
        target = jax.tree.map(lambda new, old: jnp.where(renew, new, old), params, target)
        return (params, target, opt_state, states, following, buffer, step + 1), reward.mean()

    def window(carry, key):
        return jax.lax.scan(one, carry, jax.random.split(key, updates))

    keys = jax.random.split(jax.random.key(0), seeds)
    carry = jax.jit(jax.vmap(init))(keys)
    return runner.Candidate(
        f"PureJaxRL-style scan, {seeds} seeds", jax.vmap(window), (carry, keys), carried=True
    )


def _torch_loop(width: int, updates: int) -> runner.Candidate | None:
    torch, gymnasium = peers.import_peer("torch"), peers.import_peer("gymnasium")
    if torch is None or gymnasium is None:
        return None
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    games = gymnasium.make_vec("CartPole-v1", _ENVIRONMENTS, vectorization_mode="sync")

    def build():
        layers = [torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, width)]
        return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(width, 2 * _ATOMS))

    online, target = build(), build()
    optimizer = torch.optim.Adam(online.parameters(), lr=_RATE)
    support = torch.linspace(0.0, 100.0, _ATOMS)
    gap = float(support[1] - support[0])
    shown = np.zeros((_REPLAY, 4), np.float32)
    after, reward, over = shown.copy(), np.zeros(_REPLAY, np.float32), np.zeros(_REPLAY, np.float32)
    action, state = np.zeros(_REPLAY, np.int64), {"seen": games.reset(seed=0)[0], "count": 0}

    def window() -> None:
        for _ in range(updates):
            seen = state["seen"]
            with torch.no_grad():
                logits = online(torch.as_tensor(seen)).view(-1, 2, _ATOMS)
                best = (logits.softmax(-1) @ support).argmax(-1).numpy()
            explores = rng.random(_ENVIRONMENTS) < _EPSILON
            chosen = np.where(explores, rng.integers(0, 2, _ENVIRONMENTS), best)
            following, paid, ended, _, _ = games.step(chosen)
            places = (state["count"] + np.arange(_ENVIRONMENTS)) % _REPLAY
            shown[places], action[places], reward[places] = seen, chosen, paid
            over[places], after[places] = ended, following
            state["seen"], state["count"] = following, state["count"] + _ENVIRONMENTS
            drawn = rng.integers(0, min(state["count"], _REPLAY), _BATCH)
            rows = torch.arange(_BATCH)
            with torch.no_grad():
                probs = target(torch.as_tensor(after[drawn])).view(-1, 2, _ATOMS).softmax(-1)
                law = probs[rows, (probs @ support).argmax(-1)]
                goes_on = _DISCOUNT * (1 - torch.as_tensor(over[drawn]))[:, None]
                atoms = torch.as_tensor(reward[drawn])[:, None] + goes_on * support
                place = atoms.clamp(0.0, 100.0) / gap
                low = place.floor().long().clamp(max=_ATOMS - 2)
                share = place - low
                wanted = torch.zeros_like(law).scatter_add_(1, low, law * (1 - share))
                wanted.scatter_add_(1, low + 1, law * share)
            outputs = online(torch.as_tensor(shown[drawn])).view(-1, 2, _ATOMS)
            taken = outputs[rows, torch.as_tensor(action[drawn])]
            loss = -(wanted * taken.log_softmax(-1)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (state["count"] // _ENVIRONMENTS) % _TARGET_EVERY == 0:
                target.load_state_dict(online.state_dict())

    return runner.Candidate("PyTorch loop, 1 seed", window, (), compiled=False)


def run(machine: runner.Machine, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Compares windows of training.

    Args:
      machine: measured rates; not read.
      quick: a small network, a short window and one seed.
      repeats: counted runs.

    Returns:
      One row a candidate; none without Gymnax.
    """
    del machine
    if peers.import_peer("gymnax") is None:
        return []
    width, updates, many = (8, 4, 1) if quick else (128, 256, 16)
    candidates = [_ours(width, updates, 1), _scan(width, updates, 1)]
    theirs = _torch_loop(width, updates)
    if theirs is not None:
        candidates.append(theirs)
    if many > 1:
        candidates += [_ours(width, updates, many), _scan(width, updates, many)]
    timings = runner.measure(candidates, repeats=repeats)
    rows = []
    for timing in timings:
        seeds = many if f" {many} seeds" in timing.name else 1
        steps = seeds * updates * _ENVIRONMENTS / timing.median
        rows.append(runner.row(timing, timings[0]) | {"env steps/s": f"{steps:,.0f}"})
    return rows


BENCHMARK = runner.Benchmark(
    name="control_loop",
    description="C51 on CartPole, the whole loop: a plain scan, a PyTorch loop; 1, 16 seeds",
    run=run,
)
