r"""AGRO reaches the best regularised policy from any data; a regularised policy gradient stalls.

Three completions of rewards 2.5, 2 and 1, beta = 0.5, a uniform reference; data come from the
reference, or from (0.1, 0.2, 0.7), never from the policy. Two updates of the logits, of step 0.05:

- AGRO: `agro_loss` of a group, over beta, which gives it the scale of a policy gradient;
- regularised policy gradient: `policy_gradient_loss` with leave-one-out advantages of the bare
  rewards, and beta KL(policy, reference), differentiated exactly. On the policy's own completions
  it would be the gradient of the objective; on others' it credits arms by how often THEY came up.

Each is run twice: with the expectation over pairs of completions, which is enumerated and leaves
nothing to chance, and with 64 fresh groups of 4 completions a step. At the best policy all
completions have one regularised reward, so that AGRO's samples cease to matter there.

The rule, from the paper's figure and our derivation of what it must show, written before the first
run of this program:

1. known: the exact curves pass through the numbers of `KNOWN`, computed apart from the library,
   within their last digit, and the policy gradient ends at the policies that were computed too (the
   two numbers on the second law, of the same source, were added after that run);
2. stalls: after 2,000 exact steps AGRO is within 1e-5 nats of the best policy, on both laws, and
   the policy gradient is not within 0.01;
3. sampled: in every seed, after 2,000 steps, AGRO is within 1e-3 nats, on both laws, and the policy
   gradient is further than half its exact distance.
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bellmax import losses
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

REWARDS, BETA, STEP = (2.5, 2.0, 1.0), 0.5, 0.05
LAWS = {"the reference": (1 / 3, 1 / 3, 1 / 3), "(0.1, 0.2, 0.7)": (0.1, 0.2, 0.7)}
NUM_STEPS, NUM_EXACT_STEPS = 2000, 5000
NUM_GROUPS, GROUP_SIZE = 64, 4
SHOWN, FLOOR = (0, 20, 100, 500, 2000), 1e-9
# The rule's numbers: KL(policy, best policy) by step, with the distance that is allowed.
KNOWN = {
    "the reference": {
        "policy gradient": {
            0: (0.583733, 1e-6),
            20: (0.371386, 1e-6),
            100: (0.051753, 1e-6),
            500: (0.041848, 1e-6),
            2000: (0.041272, 1e-6),
        },
        "AGRO": {
            0: (0.583733, 1e-6),
            20: (0.372136, 1e-6),
            100: (0.065443, 1e-6),
            500: (5.2e-5, 1e-6),
            2000: (0.0, 1e-8),
        },
    },
    "(0.1, 0.2, 0.7)": {
        "policy gradient": {2000: (0.171325, 1e-6)},
        "AGRO": {2000: (1.04e-6, 1e-8)},
    },
}
KNOWN_ENDS = {
    "the reference": (0.683660619, 0.316339381, 0.0),
    "(0.1, 0.2, 0.7)": (0.484990982, 0.515009018, 0.0),
}
END_TOLERANCE = 1e-8
LARGEST_EXACT, LEAST_STALL, LARGEST_SAMPLED, SHARE = 1e-5, 0.01, 1e-3, 0.5


def _agro(logits, arms):
    log_probs = jax.nn.log_softmax(logits)[arms]
    reference = jnp.full(arms.shape, -np.log(3))
    return losses.agro_loss(log_probs, reference, jnp.array(REWARDS)[arms], beta=BETA) / BETA


def _policy_gradient(logits, arms):
    advantages = losses.leave_one_out_advantages(jnp.array(REWARDS)[arms])
    credit = losses.policy_gradient_loss(jax.nn.log_softmax(logits)[arms], advantages)
    return credit.mean(axis=-1) + BETA * losses.categorical_kl(logits, jnp.zeros(3))


# Each gives losses [B] of logits [3] and the arms of groups [B, G].
METHODS = {"policy gradient": _policy_gradient, "AGRO": _agro}


def divergence(logits: jax.Array) -> jax.Array:
    """Returns KL(policy, best policy), nats, the best being proportional to exp(r / beta). []."""
    return losses.categorical_kl(logits, jnp.array(REWARDS) / BETA)


def _descend(gradient, inputs):
    """Logits before each step and after the last, [T + 1, 3]."""

    def step(logits, value):
        return logits - STEP * gradient(logits, value), logits

    last, before = jax.lax.scan(step, jnp.zeros(3), inputs)
    return jnp.concatenate([before, last[None]])


@functools.partial(jax.jit, static_argnums=(0, 2))
def exact(name: str, law: jax.Array, num_steps: int) -> jax.Array:
    """Follows the expected updates on data of a law [3]; returns logits, [T + 1, 3]."""
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    chances = law[pairs[:, 0]] * law[pairs[:, 1]]
    gradient = jax.grad(lambda logits: jnp.sum(chances * METHODS[name](logits, pairs)))
    return _descend(lambda logits, _: gradient(logits), jnp.arange(num_steps))


@functools.partial(jax.jit, static_argnums=(0, 3))
def sampled(name: str, law: jax.Array, seed: jax.Array, num_steps: int) -> jax.Array:
    """Follows updates of fresh groups, the same for all methods; returns logits, [T + 1, 3]."""

    def gradient(logits, key):
        arms = jax.random.categorical(key, jnp.log(law), shape=(NUM_GROUPS, GROUP_SIZE))
        return jax.grad(lambda x: jnp.mean(METHODS[name](x, arms)))(logits)

    return _descend(gradient, jax.random.split(jax.random.key(seed), num_steps))


def parts(
    curves: dict[str, dict[str, np.ndarray]],
    ends: dict[str, np.ndarray],
    samples: dict[str, dict[str, np.ndarray]],
) -> dict[str, bool]:
    """Applies the rule, part by part.

    Args:
      curves: exact divergences by law and method. [T + 1] each, T at least 2,000.
      ends: policies where the exact policy gradient ends, by law. [3] each.
      samples: sampled divergences by law and method. [seeds, T + 1] each.

    Returns:
      Whether each part holds.
    """
    return {
        "known": all(
            abs(curves[law][name][step] - value) <= tolerance
            for law, methods in KNOWN.items()
            for name, points in methods.items()
            for step, (value, tolerance) in points.items()
        )
        and all(np.abs(ends[law] - KNOWN_ENDS[law]).max() <= END_TOLERANCE for law in LAWS),
        "stalls": all(
            found["AGRO"][NUM_STEPS] <= LARGEST_EXACT
            and found["policy gradient"][NUM_STEPS] > LEAST_STALL
            for found in curves.values()
        ),
        "sampled": all(
            np.all(found["AGRO"][:, -1] <= LARGEST_SAMPLED)
            and np.all(
                found["policy gradient"][:, -1] > SHARE * curves[law]["policy gradient"][NUM_STEPS]
            )
            for law, found in samples.items()
        ),
    }


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Follows all curves and decides."""
    curves, ends, samples = {}, {}, {}
    with jax.enable_x64(True):
        distances = jax.jit(jax.vmap(divergence))
        for label, law in LAWS.items():
            paths = {name: exact(name, jnp.array(law), NUM_EXACT_STEPS) for name in METHODS}
            ends[label] = np.asarray(jax.nn.softmax(paths["policy gradient"][-1]))
            curves[label] = {
                name: np.asarray(distances(path))[: NUM_STEPS + 1] for name, path in paths.items()
            }
            samples[label] = {
                name: np.stack(
                    [
                        np.asarray(distances(sampled(name, jnp.array(law), seed, NUM_STEPS)))
                        for seed in jnp.arange(seeds)
                    ]
                )
                for name in METHODS
            }
    verdicts = parts(curves, ends, samples)
    picture = directory / "agro_tabular.png"
    _draw(picture, curves, samples)
    told = [
        f"data of {label}: "
        + ", ".join(
            f"{name} {curves[label][name][-1]:.3g} (sampled {samples[label][name][:, -1].min():.3g}"
            f" to {samples[label][name][:, -1].max():.3g})"
            for name in METHODS
        )
        for label in LAWS
    ]
    return Outcome(
        passed=all(verdicts.values()),
        figure=f"KL to the best policy after {NUM_STEPS:,} steps on {'; on '.join(told)}",
        details={
            "parts": verdicts,
            "exact": {
                label: {
                    name: {str(step): float(curve[step]) for step in SHOWN}
                    for name, curve in found.items()
                }
                for label, found in curves.items()
            },
            "policy_gradient_ends": {label: end.tolist() for label, end in ends.items()},
            "sampled": {
                label: {name: curve[:, -1].tolist() for name, curve in found.items()}
                for label, found in samples.items()
            },
        },
        picture=picture,
    )


def _draw(
    path: pathlib.Path,
    curves: dict[str, dict[str, np.ndarray]],
    samples: dict[str, dict[str, np.ndarray]],
) -> None:
    panels = []
    steps = np.arange(NUM_STEPS + 1)
    for label, found in curves.items():
        series = []
        for name, curve in samples[label].items():
            ends = (np.maximum(f(curve, axis=0), FLOOR) for f in (np.mean, np.min, np.max))
            series.append(plots.Series(name, steps, *ends))
        for name, curve in found.items():
            points = np.maximum(curve[list(SHOWN)], FLOOR)
            series.append(plots.Series(f"{name}, expected", SHOWN, points, style="", marker=True))
        panels.append(
            plots.Panel(
                f"data of {label}; {FLOOR:g} is the floor",
                f"step of {STEP:g}",
                "KL(policy, best policy), nats",
                series,
                y_scale="log",
            )
        )
    plots.save_figure(path, panels)


CLAIM = Claim(
    name="agro_tabular",
    paper="Tang et al. 2025",
    url="https://arxiv.org/abs/2503.19612",
    statement=(
        "on data of another policy AGRO reaches the best regularised policy, where a regularised "
        "policy gradient stalls"
    ),
    paper_figure="KL to the best policy against steps: the policy gradient stalls, AGRO goes to 0",
    budget=(
        f"3 completions, 2 laws of data, {NUM_STEPS:,} steps, expected and sampled in {NUM_GROUPS} "
        f"groups of {GROUP_SIZE}, 5 seeds, 30 s"
    ),
    acceptance=(
        f"exact curves through 12 known points and 2 known ends; after {NUM_STEPS:,} exact steps "
        f"AGRO within {LARGEST_EXACT:g} nats, the policy gradient not within {LEAST_STALL:g}; in "
        f"every seed AGRO within {LARGEST_SAMPLED:g}, the policy gradient beyond {SHARE:g} of its "
        f"exact distance"
    ),
    default_seeds=5,
    run=run,
)
