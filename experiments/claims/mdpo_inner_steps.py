r"""One inner step of MDPO is a policy gradient; several come near the mirror step and learn faster.

Random MDPs of 20 states and 4 actions, exact advantages and visits, a table of logits. Each of K =
20 iterations freezes the policy pi_k and takes m steps of gradient descent on the expectation of
`mdpo_loss` over visits and actions of pi_k, with 1 / t_k = 1 / (1 - k / K) as in the paper, or goes
to the loss's minimum at once, the mirror step pi_k exp(t_k A). Descent is on t_k times the loss,
the scale of a divergence, with visits relative to even ones and step 1: the divergence's curvature
at the uniform policy is 1/4 and nowhere above 1/2, so that at even visits step 1 cannot overshoot.

The rule, from the paper's ablation of m and what can be derived, written before the first run:

1. gradient: at pi_k the gradient of the expected loss is minus (1 - gamma) times that of the
   return, differentiated through a linear system, within 1e-10, on every MDP, whatever t_k;
2. minimum: in the first iteration the visit-weighted KL from the mirror step falls from m = 1 to 5
   to 10 to 20 on every MDP, and 5,000 steps leave less than 1e-8;
3. slow: m = 1 ends below m = 5 on every MDP, and lacks at least three times as much of the mirror
   step's mean score as m = 10 does;
4. close: the mean scores of m = 5, 10 and 20 are above 90%, 95% and 95% of the mirror step's.

The score is the return after K iterations, 0 for the uniform policy and 1 for the best.

What the rule does not say: m = 10 takes ten times as many gradients as m = 1, of the same data.
Beside it stands m = 1 with ten times as many iterations, of ten times as much data. And m = 1 is
slowed down by the falling t_k, which scales its only step.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bellmax import losses
from bellmax.envs import TabularMDP, tabular
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

NUM_STATES, NUM_ACTIONS, CONCENTRATION, DISCOUNT = 20, 4, 0.1, 0.9
NUM_ITERATIONS, INNER_STEPS, STEP, MANY = 20, (1, 5, 10, 20), 1.0, 5000
MORE_DATA = 10
# The rule's numbers.
GRADIENT_TOLERANCE, MINIMUM_TOLERANCE = 1e-10, 1e-8
SLOWER, LEAST_SHARES = 3.0, {5: 0.9, 10: 0.95, 20: 0.95}


class Found(NamedTuple):
    """What one MDP gave.

    Attributes:
      gradient_error: distance of the loss's gradient from the policy gradient.
      distances: KL from the first mirror step by m, `MANY` included, nats.
      scores: by name of the run, at every iteration. [K + 1] each.
    """

    gradient_error: float
    distances: dict[int, float]
    scores: dict[str, np.ndarray]


def random_mdp(seed: int) -> TabularMDP:
    """Returns an MDP with few likely successors, normal rewards and an even first state."""
    rng = np.random.default_rng(seed)
    law = np.full(NUM_STATES, CONCENTRATION)
    transition = rng.dirichlet(law, (NUM_STATES, NUM_ACTIONS))
    reward = rng.standard_normal((NUM_STATES, NUM_ACTIONS))
    initial = jnp.full(NUM_STATES, 1 / NUM_STATES)
    return tabular.make(jnp.array(transition), jnp.array(reward), DISCOUNT, initial=initial)


def evaluate(mdp: TabularMDP, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a policy's return [], its advantages [S, A] and its visits, which sum to 1 [S]."""
    chain, reward = tabular.policy_chain(mdp, jax.nn.softmax(logits))
    system = jnp.eye(mdp.num_states) - mdp.discount * chain
    values = jnp.linalg.solve(system, reward)
    visits = (1 - mdp.discount) * jnp.linalg.solve(system.T, mdp.initial)
    ahead = jnp.einsum("sax,x->sa", mdp.transition, values, precision="highest")
    return mdp.initial @ values, mdp.reward + mdp.discount * ahead - values[:, None], visits


def expected_loss(logits, old_logits, advantages, visits, inverse_step):
    """Returns the mean of `mdpo_loss` over visits [S] and actions of the old policy. []."""
    num_states, num_actions = logits.shape
    actions = jnp.broadcast_to(jnp.arange(num_actions), logits.shape)
    shape = (num_states, num_actions, num_actions)
    each = losses.mdpo_loss(
        jnp.broadcast_to(logits[:, None], shape),
        jnp.broadcast_to(old_logits[:, None], shape),
        actions,
        advantages,
        inverse_step=inverse_step,
    )
    return jnp.sum(visits[:, None] * jax.nn.softmax(old_logits) * each)


def inner(old_logits, advantages, visits, time_step, num_steps):
    """Takes m inner steps of gradient descent, from pi_k on; returns logits. [S, A]."""
    slope = jax.grad(expected_loss)
    scale = STEP * old_logits.shape[0] * time_step

    def step(_, logits):
        return logits - scale * slope(logits, old_logits, advantages, visits, 1 / time_step)

    return jax.lax.fori_loop(0, num_steps, step, old_logits)


@functools.partial(jax.jit, static_argnums=(2,))
def optimise(mdp: TabularMDP, num_steps: jax.Array, num_iterations: int, exact: jax.Array):
    """Runs MDPO from the uniform policy; returns the return at every iteration. [K + 1].

    Args:
      mdp: the tables.
      num_steps: m. [].
      num_iterations: K.
      exact: whether the mirror step stands in for the inner ones. [].
    """

    def iterate(logits, number):
        value, advantages, visits = evaluate(mdp, logits)
        time_step = 1 - number / num_iterations
        found = jax.lax.cond(
            exact,
            lambda: logits + time_step * advantages,
            lambda: inner(logits, advantages, visits, time_step, num_steps),
        )
        return found, value

    start = jnp.zeros(mdp.reward.shape)
    last, values = jax.lax.scan(iterate, start, jnp.arange(num_iterations))
    return jnp.append(values, evaluate(mdp, last)[0])


@jax.jit
def best_return(mdp: TabularMDP) -> jax.Array:
    """Returns the highest return, by a thousand sweeps of value iteration. []."""

    def sweep(_, values):
        return jnp.max(mdp.reward + mdp.discount * mdp.transition @ values, axis=-1)

    return mdp.initial @ jax.lax.fori_loop(0, 1000, sweep, jnp.zeros(mdp.num_states))


@jax.jit
def gradient_error(mdp: TabularMDP, logits: jax.Array, inverse_step: jax.Array) -> jax.Array:
    """Returns how far the loss's gradient at pi_k is from the policy gradient, at most. []."""
    _, advantages, visits = evaluate(mdp, logits)
    slope = jax.grad(expected_loss)(logits, logits, advantages, visits, inverse_step)
    wanted = jax.grad(lambda x: evaluate(mdp, x)[0])(logits)
    return jnp.abs(slope + (1 - mdp.discount) * wanted).max()


@jax.jit
def first_distance(mdp: TabularMDP, num_steps: jax.Array) -> jax.Array:
    """Returns the visit-weighted KL of m inner steps from the first mirror step, nats. []."""
    logits = jnp.zeros(mdp.reward.shape)
    _, advantages, visits = evaluate(mdp, logits)
    found = inner(logits, advantages, visits, 1.0, num_steps)
    return visits @ losses.categorical_kl(found, logits + advantages)


def solve(seed: int) -> Found:
    """Runs everything on the MDP of a seed; needs float64."""
    mdp = random_mdp(seed)
    policy = jnp.array(np.random.default_rng(seed + 1000).standard_normal(mdp.reward.shape))
    best = float(best_return(mdp))
    runs = {f"m = {m}": optimise(mdp, m, NUM_ITERATIONS, False) for m in INNER_STEPS}
    runs["mirror step"] = optimise(mdp, 0, NUM_ITERATIONS, True)
    runs["m = 1, more data"] = optimise(mdp, 1, MORE_DATA * NUM_ITERATIONS, False)
    worst = float(runs["mirror step"][0])
    return Found(
        max(float(gradient_error(mdp, policy, inverse)) for inverse in (0.0, 1.0, 20.0)),
        {m: float(first_distance(mdp, m)) for m in (*INNER_STEPS, MANY)},
        {name: (np.asarray(value) - worst) / (best - worst) for name, value in runs.items()},
    )


def parts(found: list[Found]) -> dict[str, bool]:
    """Returns whether each part of the rule holds on these MDPs."""
    distances = np.array([list(one.distances.values()) for one in found])
    ends = {name: np.array([one.scores[name][-1] for one in found]) for name in found[0].scores}
    mirror = ends["mirror step"].mean()
    lacking = {m: mirror - ends[f"m = {m}"].mean() for m in INNER_STEPS}
    return {
        "gradient": all(one.gradient_error <= GRADIENT_TOLERANCE for one in found),
        "minimum": bool(
            np.all(np.diff(distances, axis=1) < 0) and np.all(distances[:, -1] < MINIMUM_TOLERANCE)
        ),
        "slow": bool(np.all(ends["m = 1"] < ends["m = 5"]) and lacking[1] >= SLOWER * lacking[10]),
        "close": all(ends[f"m = {m}"].mean() > share * mirror for m, share in LEAST_SHARES.items()),
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Solves one MDP a seed and decides."""
    with jax.enable_x64(True):
        found = [solve(seed) for seed in range(seeds)]
    verdicts = parts(found)
    scores = {name: np.array([one.scores[name] for one in found]) for name in found[0].scores}
    distances = {m: float(np.mean([one.distances[m] for one in found])) for m in found[0].distances}
    picture = directory / "mdpo_inner_steps.png"
    _draw(picture, scores, found)
    told = [
        f"{name} {scores[name][:, -1].mean():.4f}"
        for name in (*(f"m = {m}" for m in INNER_STEPS), "mirror step")
    ]
    more = scores["m = 1, more data"].mean(axis=0)
    return Outcome(
        passed=all(verdicts.values()),
        figure=(
            f"mean score after {NUM_ITERATIONS} iterations: {', '.join(told)}; m = 1 over "
            f"{MORE_DATA * NUM_ITERATIONS} iterations {more[NUM_ITERATIONS]:.4f} after "
            f"{NUM_ITERATIONS} and {more[-1]:.4f} at the end; KL from the first mirror step "
            + ", ".join(f"{distances[m]:.2g}" for m in INNER_STEPS)
        ),
        details={
            "parts": verdicts,
            "gradient_error": max(one.gradient_error for one in found),
            "distances": distances,
            "scores": {name: value[:, -1].tolist() for name, value in scores.items()},
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, scores: dict[str, np.ndarray], found: list[Found]) -> None:
    iterations = np.arange(NUM_ITERATIONS + 1)
    spreads = {
        name: [f(1 - value, axis=0) for f in (np.mean, np.min, np.max)]
        for name, value in scores.items()
    }
    by_data = [
        plots.Series(name, iterations, *spread)
        for name, spread in spreads.items()
        if len(spread[0]) == len(iterations)
    ]
    by_gradients = [
        plots.Series(name, m * np.arange(len(spreads[name][0])), *spreads[name], style=style)
        for name, m, style in [
            *((f"m = {m}", m, "-") for m in INNER_STEPS),
            ("m = 1, more data", 1, "--"),
        ]
    ]
    distances = np.array([[one.distances[m] for m in INNER_STEPS] for one in found])
    panels = [
        plots.Panel(
            f"mean, least and greatest of {len(found)} MDPs",
            "iteration",
            "1 - score",
            by_data,
            y_scale="log",
        ),
        plots.Panel(
            "the same", "gradient steps", "1 - score", by_gradients, x_scale="symlog", y_scale="log"
        ),
        plots.Panel(
            "first iteration",
            "inner steps m",
            "KL from the mirror step, nats",
            [
                plots.Series(
                    "",
                    INNER_STEPS,
                    *(f(distances, axis=0) for f in (np.mean, np.min, np.max)),
                    marker=True,
                )
            ],
            x_scale="log",
            y_scale="log",
        ),
    ]
    plots.save_figure(path, panels, columns=3)


CLAIM = Claim(
    name="mdpo_inner_steps",
    paper="Tomar et al. 2020",
    url="https://arxiv.org/abs/2005.09814",
    statement=(
        "one inner step of MDPO is a policy gradient; several come near the mirror step and "
        "learn faster by iteration"
    ),
    paper_figure="an ablation in MuJoCo: several inner steps beat one; no number carries over",
    budget=(
        f"10 random MDPs of {NUM_STATES} states, exact advantages, {NUM_ITERATIONS} iterations, "
        f"20 s"
    ),
    acceptance=(
        f"on every MDP: gradient at pi_k the policy gradient within {GRADIENT_TOLERANCE:g}; KL "
        f"from the first mirror step falls with m, below {MINIMUM_TOLERANCE:g} after {MANY:,} "
        f"steps; m = 1 ends below m = 5. In the mean m = 1 lacks at least {SLOWER:g} times as much "
        f"as m = 10; m = 5, 10, 20 above "
        + ", ".join(f"{share:.0%}" for share in LEAST_SHARES.values())
        + " of the mirror step"
    ),
    default_seeds=10,
    run=run,
)
