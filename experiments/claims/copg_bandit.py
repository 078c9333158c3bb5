r"""CoPG finds the best regularised policy from pairs of others; IPO and policy gradients do not.

The paper's bandit: three arms of rewards 2.5, 2 and 1, beta = 0.5 and a uniform reference, of which
10,000 pairs are drawn once, one arm from (0.1, 0.2, 0.7) and the other from (0.05, 0.05, 0.9):
mostly the worst arm. All methods see the same batches of the same pairs, and never sample an arm of
their own. The regret is in the regularised objective, E[r] - beta KL(pi, reference).

- CoPG: `copg_loss` of a pair.
- IPO: `ipo_loss` at tau = beta, of labels drawn once by Bradley-Terry on the rewards.
- policy gradient: `policy_gradient_loss` of both arms with the regularised rewards of the moment,
  plain, or less the policy's own mean reward (its value), which would be right on its own samples.

The rule, from the paper's figure and written before the first run, in every seed:

1. order: at 100 epochs and at 400, CoPG < policy gradient with a value < IPO < start < policy
   gradient without;
2. zero: at 400 epochs CoPG's regret is below 0.001.

Beside it stand the limits of the expected updates, by the same losses over all pairs: IPO and the
policy gradients do not wait for more data, they end elsewhere. The policy gradient with a value
passes close by the best policy on its way there, which the rule's two epochs do not see.
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bellmax import losses
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

REWARDS, BETA = (2.5, 2.0, 1.0), 0.5
FIRST_LAW, SECOND_LAW = (0.1, 0.2, 0.7), (0.05, 0.05, 0.9)
NUM_PAIRS, BATCH_SIZE, LEARNING_RATE = 10_000, 512, 1e-3
EPOCHS = (100, 400)
LIMIT_STEP, LIMIT_STEPS = 0.5, 100_000
# The rule's numbers.
ORDER = ("CoPG", "policy gradient, value", "IPO", "start", "policy gradient")
LARGEST_REGRET = 1e-3


def regret(log_probs: jax.Array) -> jax.Array:
    """Returns what a policy loses of the regularised objective.

    Args:
      log_probs: of the arms, nats. [..., 3].

    Returns:
      beta log E_ref exp(r / beta) - E[r] + beta KL(policy, reference), >= 0. [...].
    """
    values = jnp.array(REWARDS) - BETA * (log_probs + np.log(3))
    best = BETA * (jax.nn.logsumexp(jnp.array(REWARDS) / BETA) - np.log(3))
    # Rounding could leave it below 0.
    return jnp.maximum(best - jnp.sum(jnp.exp(log_probs) * values, axis=-1), 0)


def _copg(log_probs, arms, first_wins):
    del first_wins
    reference = jnp.full(arms.shape, -np.log(3))
    return losses.copg_loss(log_probs[arms], reference, jnp.array(REWARDS)[arms], beta=BETA)


def _ipo(log_probs, arms, first_wins):
    ratios = log_probs[arms] + np.log(3)
    chosen = jnp.where(first_wins, ratios[:, 0], ratios[:, 1])
    return losses.ipo_loss(chosen, jnp.sum(ratios, axis=-1) - chosen, tau=BETA)


def _policy_gradient(log_probs, arms, first_wins, *, value: bool):
    del first_wins
    regularised = jnp.array(REWARDS) - BETA * (log_probs + np.log(3))
    baseline = jnp.sum(jnp.exp(log_probs) * jnp.array(REWARDS)) if value else 0.0
    return losses.policy_gradient_loss(log_probs[arms], regularised[arms] - baseline).mean(axis=-1)


# Each gives losses [B] of log-probabilities [3], arms [B, 2] and whether the first one won [B].
METHODS = {
    "CoPG": _copg,
    "policy gradient, value": functools.partial(_policy_gradient, value=True),
    "IPO": _ipo,
    "policy gradient": functools.partial(_policy_gradient, value=False),
}


def _start() -> dict[str, jax.Array]:
    # A new dict each time: one leaf a method, all uniform.
    return {name: jnp.zeros(3) for name in METHODS}


def _regrets(logits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: regret(jax.nn.log_softmax(value)) for name, value in logits.items()}


@functools.partial(jax.jit, static_argnums=(1, 2))
def train(seed: jax.Array, num_epochs: int, num_pairs: int = NUM_PAIRS) -> dict[str, jax.Array]:
    """Trains all methods on the same batches.

    Args:
      seed: of pairs, labels and batches. [].
      num_epochs: E passes over the pairs; what is left of a batch is dropped, anew in each.
      num_pairs: how many there are, at least a batch.

    Returns:
      Regrets by method, before the first epoch and after each. [E + 1] each.
    """
    laws = jnp.log(jnp.array([FIRST_LAW, SECOND_LAW]))
    arm_key, label_key, batch_key = jax.random.split(jax.random.key(seed), 3)
    arms = jax.random.categorical(arm_key, laws, shape=(num_pairs, 2))
    rewards = jnp.array(REWARDS)[arms]
    first_wins = jax.random.bernoulli(label_key, jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1]))
    # Element by element, so that each method has its own.
    optimizer = optax.adam(LEARNING_RATE)

    def objective(logits, places):
        return sum(
            jnp.mean(loss(jax.nn.log_softmax(logits[name]), arms[places], first_wins[places]))
            for name, loss in METHODS.items()
        )

    def step(carry, places):
        logits, state = carry
        updates, state = optimizer.update(jax.grad(objective)(logits, places), state)
        return (jax.tree.map(jnp.add, logits, updates), state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(batch_key, number), num_pairs)
        batches = order[: num_pairs // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, _regrets(carry[0])

    logits = _start()
    _, after = jax.lax.scan(epoch, (logits, optimizer.init(logits)), jnp.arange(num_epochs))
    return jax.tree.map(lambda first, rest: jnp.append(first, rest), _regrets(logits), after)


@jax.jit
def limits() -> dict[str, jax.Array]:
    """Returns the regrets where the expected updates end, by gradient descent over all pairs."""
    arms = np.array(list(itertools.product(range(3), repeat=2)))
    first, second = arms.T
    chances = jnp.array(FIRST_LAW)[first] * jnp.array(SECOND_LAW)[second]
    rewards = jnp.array(REWARDS)
    wins = jax.nn.sigmoid(rewards[first] - rewards[second])

    def objective(logits):
        total = 0.0
        for name, loss in METHODS.items():
            log_probs = jax.nn.log_softmax(logits[name])
            found = wins * loss(log_probs, arms, jnp.ones(9, bool))
            found += (1 - wins) * loss(log_probs, arms, jnp.zeros(9, bool))
            total += jnp.sum(chances * found)
        return total

    def step(_, logits):
        slopes = jax.grad(objective)(logits)
        return jax.tree.map(lambda x, slope: x - LIMIT_STEP * slope, logits, slopes)

    return _regrets(jax.lax.fori_loop(0, LIMIT_STEPS, step, _start()))


def parts(regrets: dict[str, np.ndarray], epochs: tuple[int, ...] = EPOCHS) -> dict[str, bool]:
    """Applies the rule, part by part.

    Args:
      regrets: by method. [seeds, E + 1] each.
      epochs: where the order is asked for; the last of them is where CoPG must be done.

    Returns:
      Whether each part holds.
    """
    known = {**regrets, "start": np.broadcast_to(regrets["CoPG"][:, :1], regrets["CoPG"].shape)}
    ranked = np.stack([known[name][:, list(epochs)] for name in ORDER])
    return {
        "order": bool(np.all(np.diff(ranked, axis=0) > 0)),
        "zero": bool(np.all(regrets["CoPG"][:, epochs[-1]] < LARGEST_REGRET)),
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains on every seed's pairs and decides."""
    with jax.enable_x64(True):
        fits = jax.vmap(lambda seed: train(seed, EPOCHS[-1]))(jnp.arange(seeds))
        regrets = {name: np.asarray(fits[name]) for name in METHODS}
        ends = {name: float(value) for name, value in limits().items()}
    verdicts = parts(regrets)
    picture = directory / "copg_bandit.png"
    _draw(picture, regrets, ends)
    shown = [
        f"{name} " + ", ".join(f"{found[:, epoch].mean():.4f}" for epoch in EPOCHS)
        for name, found in regrets.items()
    ]
    return Outcome(
        passed=all(verdicts.values()),
        figure=(
            f"regret after {' and '.join(map(str, EPOCHS))} epochs: {'; '.join(shown)}; start "
            f"{regrets['CoPG'][0, 0]:.4f}; limits of the expected updates "
            + ", ".join(f"{ends[name]:.4f}" for name in METHODS)
        ),
        details={
            "parts": verdicts,
            "limits": ends,
            "regrets": {
                name: {str(epoch): found[:, epoch].tolist() for epoch in EPOCHS}
                for name, found in regrets.items()
            },
        },
        picture=picture,
    )


def _draw(path: pathlib.Path, regrets: dict[str, np.ndarray], ends: dict[str, float]) -> None:
    start = regrets["CoPG"][0, 0]
    panels = []
    for scale, lowest in (("linear", 0.0), ("log", 1e-6)):
        series, epochs = [], np.arange(regrets["CoPG"].shape[1])
        for name, found in regrets.items():
            low, mean, high = (
                np.maximum(f(found, axis=0), lowest) for f in (np.min, np.mean, np.max)
            )
            series.append(plots.Series(name, epochs, mean, low, high))
        for name in ("policy gradient, value", "IPO", "policy gradient"):
            line = np.full(2, ends[name])
            series.append(plots.Series("", epochs[[0, -1]], line, style="--", reference=True))
        panels.append(
            plots.Panel(
                "mean, least and greatest of the seeds; dashed: limits",
                "epoch",
                "regret of the regularised objective",
                series,
                y_scale=scale,
                horizontal_lines=[("start", start)],
            )
        )
    plots.save_figure(path, panels)


CLAIM = Claim(
    name="copg_bandit",
    paper="Flet-Berliac et al. 2024",
    url="https://arxiv.org/abs/2406.19185",
    statement=(
        "from pairs of other policies CoPG finds the best regularised policy, IPO and policy "
        "gradients do not"
    ),
    paper_figure=(
        "regret on a bandit of three arms: zero for CoPG, then policy gradient with a value, IPO, "
        "the start, and policy gradient without a baseline"
    ),
    budget=f"{NUM_PAIRS:,} pairs, {EPOCHS[-1]} epochs of Adam, 4 methods on 5 seeds, 1 minute",
    acceptance=(
        f"in every seed: at {' and '.join(map(str, EPOCHS))} epochs regrets in the order "
        f"{' < '.join(ORDER)}; CoPG's below {LARGEST_REGRET:g} at {EPOCHS[-1]}"
    ),
    default_seeds=5,
    run=run,
)
