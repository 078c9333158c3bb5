r"""The offline regulariser of GPO is no KL: it can be 0 while the policy is far off its reference.

Near the reference GPO regularises by half the mean of rho^2 over pairs of the data. Over pairs
drawn from the policy itself its gradient is exactly twice that of KL(policy, reference). Over other
data it is not: it sees only what the data hold. Three exact cases, each with its closed form:

1. pairs from the policy: the gradient identity, by enumerating all pairs;
2. three responses, data on the first two alone: gradient descent makes the two log-ratios equal and
never touches
   the third; the regulariser goes to 0 and the KL to a value above 0;
3. Gaussians: reference N(0, 1), policy N(m, 1), data N(c, s^2): m^2 s^2 against m^2 / 2.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bellmax import losses
from bellmax.experiments import plots
from bellmax.experiments.claims.claim import Claim, Outcome

TOLERANCE = 1e-6
_POLICY = (0.5, 0.3, 0.15, 0.05)
_START = (0.1, 0.3, 0.6)
_NUM_STEPS, _STEP_SIZE = 400, 0.5
_GAUSSIAN_MEAN, _GAUSSIAN_SPREAD = 3.0, 0.01


def regulariser(logits: jax.Array, data: jax.Array, reference: jax.Array) -> jax.Array:
    """Half the mean of rho^2 over independent pairs of the data, through the library's own loss.

    The squared member of GPO is (beta rho - 1)^2; label smoothing of 1/2 averages it over both
    orders of a pair, which leaves beta^2 rho^2 + 1.

    Args:
      logits: of the policy. [A].
      data: law of the responses in a pair. [A].
      reference: the reference policy. [A].

    Returns:
      The regulariser, nats squared.
    """
    log_ratios = jax.nn.log_softmax(logits) - jnp.log(reference)
    rows, columns = jnp.broadcast_arrays(log_ratios[:, None], log_ratios[None, :])
    loss = losses.gpo_loss(rows, columns, convex_fn=losses.squared, beta=1.0, label_smoothing=0.5)
    return 0.5 * jnp.einsum("i,ij,j->", data, loss - 1.0, data)


def divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(policy, reference) in nats.

    Args:
      logits: of the policy. [A].
      reference: the reference policy. [A].

    Returns:
      The divergence.
    """
    log_probs = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - jnp.log(reference)))


def gradient_identity() -> tuple[float, float]:
    """Returns the error of the identity on the policy's own pairs, and the cosine on other data."""
    policy = jnp.array(_POLICY)
    logits, reference = jnp.log(policy), jnp.full(4, 0.25)
    kl_gradient = jax.grad(divergence)(logits, reference)
    own = jax.grad(regulariser)(logits, policy, reference)
    other = jax.grad(regulariser)(logits, policy[::-1], reference)
    cosine = other @ kl_gradient / (jnp.linalg.norm(other) * jnp.linalg.norm(kl_gradient))
    return float(jnp.abs(own - 2 * kl_gradient).max()), float(cosine)


def descend() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descends the regulariser on data that miss one response.

    Returns:
      Regulariser and KL before each step and at the end, [num_steps + 1] each, and the last policy.
    """
    data, reference = jnp.array([0.5, 0.5, 0.0]), jnp.full(3, 1 / 3)

    def step(logits, _):
        value, gradient = jax.value_and_grad(regulariser)(logits, data, reference)
        return logits - _STEP_SIZE * gradient, (value, divergence(logits, reference))

    logits, (values, kls) = jax.lax.scan(step, jnp.log(jnp.array(_START)), length=_NUM_STEPS)
    last = regulariser(logits, data, reference), divergence(logits, reference)
    history = [np.append(series, end) for series, end in zip((values, kls), last, strict=True)]
    return history[0], history[1], np.asarray(jax.nn.softmax(logits))


def limit() -> tuple[np.ndarray, float]:
    """Returns the closed form of the descent's limit.

    Descent keeps the sum of the first two logits and the third one, and makes the two equal: with
    geometric mean g of the first two probabilities, the limit is (g, g, p_3) normalised.
    """
    first, second, third = _START
    mean = np.sqrt(first * second)
    policy = np.array([mean, mean, third]) / (2 * mean + third)
    return policy, float((policy * np.log(3 * policy)).sum())


def gaussian(num_nodes: int = 60) -> tuple[float, float]:
    """Returns the regulariser and the KL of the Gaussian case, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()
    points = 1.7 + _GAUSSIAN_SPREAD * nodes
    # log N(y; m, 1) - log N(y; 0, 1) = m y - m^2 / 2.
    log_ratios = _GAUSSIAN_MEAN * points - _GAUSSIAN_MEAN**2 / 2
    rho = log_ratios[:, None] - log_ratios[None, :]
    return float(0.5 * weights @ rho**2 @ weights), _GAUSSIAN_MEAN**2 / 2


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Runs the three cases; nothing is random, so seeds are not used."""
    del seeds
    with jax.enable_x64(True):
        identity_error, cosine = gradient_identity()
        values, kls, policy = descend()
    expected_policy, expected_kl = limit()
    gaussian_value, gaussian_kl = gaussian()
    errors = {
        "gradient identity": identity_error,
        "limit policy": float(np.abs(policy - expected_policy).max()),
        "limit KL": abs(float(kls[-1]) - expected_kl),
        "limit regulariser": abs(float(values[-1])),
        "Gaussian": abs(gaussian_value - (_GAUSSIAN_MEAN * _GAUSSIAN_SPREAD) ** 2),
    }
    passed = max(errors.values()) < TOLERANCE and kls[-1] > 0.1 and cosine < 0.9
    picture = directory / "gpo_blind_spot.png"
    steps = np.arange(values.size)
    panel = plots.Panel(
        "Descent of the offline regulariser",
        "step",
        "nats (KL), nats squared (regulariser)",
        [
            plots.Series("KL(policy, reference)", steps, kls),
            plots.Series("offline regulariser", steps, np.maximum(values, 1e-16)),
        ],
        y_scale="log",
        horizontal_lines=[("KL of the closed form", expected_kl)],
    )
    plots.save_figure(picture, [panel])
    return Outcome(
        passed=passed,
        figure=(
            f"regulariser {values[-1]:.1e} at KL {kls[-1]:.6f}; on-policy identity to "
            f"{identity_error:.1e}, cosine "
            f"{cosine:.3f} on other data; Gaussian {gaussian_value:.4f} at KL {gaussian_kl:.1f}"
        ),
        details={"errors": errors, "cosine": cosine, "policy": policy.tolist()},
        picture=picture,
    )


CLAIM = Claim(
    name="gpo_blind_spot",
    paper="Tang et al. 2024",
    url="https://arxiv.org/abs/2402.05749",
    statement="the offline regulariser can vanish while the KL does not; on-policy it is the KL's",
    paper_figure=(
        "closed forms: regulariser 0 at KL 0.188096; on-policy gradient 2 grad KL; Gaussian "
        "0.0009 at "
        "KL 4.5"
    ),
    budget=f"enumeration and {_NUM_STEPS} exact gradient steps in float64, 3 s",
    acceptance=(
        f"every closed form within {TOLERANCE:g}, KL above 0.1, cosine on other data below 0.9"
    ),
    default_seeds=1,
    run=run,
)
