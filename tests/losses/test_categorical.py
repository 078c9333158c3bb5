"""The projection against the averaged CDF that defines it, and the losses of signed targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bellmax import losses
from bellmax.losses import categorical

EVEN = np.linspace(-2.0, 3.0, 11)
UNEVEN = np.array([-2.0, -1.9, -0.5, 0.0, 1.0, 1.3, 3.0])
SUPPORTS = {"even": EVEN, "uneven": UNEVEN, "two": np.array([-1.0, 2.5]), "cubes": EVEN**3}
every_support = pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
LOGITS, SIGNED = jnp.array([0.1, -0.2, 0.3]), jnp.array([0.7, -0.1, 0.4])
UNIT = jnp.array([0.0, 1.0, 2.0])


def project(atoms, weights, support, *, traced=False):
    """The projection in float64, the support known to the compiler or not."""
    with jax.enable_x64(True):
        atom, weight, grid = (jnp.asarray(x, jnp.float64) for x in (atoms, weights, support))
        if traced:
            return np.asarray(jax.jit(losses.categorical_projection)(atom, weight, grid))
        known = jax.jit(lambda y, w: losses.categorical_projection(y, w, grid))
        return np.asarray(known(atom, weight))


def cdf_inside(atoms, weights, support):
    """Mean of the CDF over each gap of the support, [..., K - 1]: that of the nearest law.

    The Cramer distance is an integral over gaps, where the CDF of a law on the support is one
    number; the best number is the mean.
    """
    low, high = support[:-1], support[1:]
    share = np.clip(high - atoms[..., None], 0, high - low) / (high - low)
    return np.sum(weights[..., None] * share, axis=-2)


def nearest(atoms, weights, support):
    inside = cdf_inside(atoms, weights, support)
    total = weights.sum(axis=-1, keepdims=True)
    cdf = np.concatenate([0 * total, inside, total], axis=-1)
    return cdf[..., 1:] - cdf[..., :-1]


def cramer(first, second):
    """Squared Cramer distance of two (atoms, weights), by merging their atoms."""
    atoms = np.concatenate([first[0], second[0]])
    signed = np.concatenate([first[1], -second[1]])
    order = np.argsort(atoms)
    return np.sum(np.diff(atoms[order]) * np.cumsum(signed[order])[:-1] ** 2)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("atoms", "weights", "support", "expected"),
    [
        # Specification A1, A2 (signed) and A3 (not evenly spaced).
        ([0.5, 1.4, 2.3], [0.2, 0.3, 0.5], [0, 1, 2], [0.10, 0.28, 0.62]),
        ([0.3, 0.8, 1.3], [0.6, -0.2, 0.6], [0, 1, 2], [0.38, 0.44, 0.18]),
        ([-2, 0.5, 3, 9], [0.1, 0.2, 0.3, 0.4], [-1, 0, 2, 5], [0.10, 0.15, 0.25, 0.50]),
    ],
)
def test_projection_of_the_specification(atoms, weights, support, expected, traced):
    found = project(atoms, weights, support, traced=traced)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    single = losses.categorical_projection(
        *(jnp.array(array, jnp.float32) for array in (atoms, weights, support))
    )
    np.testing.assert_allclose(single, expected, atol=1e-6)


@every_support
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("count", [1, 30])
def test_projection_is_the_nearest_law(support, traced, count):
    rng = np.random.default_rng(count)
    # Unsorted, some outside, some on the grid; signed.
    atoms = 3 * rng.standard_normal((2, 3, count))
    atoms[..., ::3] = rng.choice(support, atoms[..., ::3].shape)
    weights = rng.standard_normal((2, 3, count))
    found = project(atoms, weights, support, traced=traced)
    np.testing.assert_allclose(found, nearest(atoms, weights, support), atol=1e-13)


def test_no_atoms_give_no_mass():
    np.testing.assert_array_equal(project(np.zeros((2, 0)), np.zeros((2, 0)), EVEN), 0)


@every_support
def test_mass_stays_and_so_does_an_unclipped_mean(support):
    rng = np.random.default_rng(0)
    atoms = rng.uniform(support[0], support[-1], (40, 9))
    weights = rng.standard_normal((40, 9))
    found = project(atoms, weights, support)
    np.testing.assert_allclose(found.sum(-1), weights.sum(-1), atol=1e-12)
    np.testing.assert_allclose(found @ support, (weights * atoms).sum(-1), atol=1e-12)
    outside = project(atoms + 0.7 * (support[-1] - support[0]), np.abs(weights), support)
    np.testing.assert_allclose(outside.sum(-1), np.abs(weights).sum(-1), atol=1e-12)
    moved = (np.abs(weights) * (atoms + 0.7 * (support[-1] - support[0]))).sum(-1)
    assert (outside @ support < moved).all()


@every_support
def test_laws_on_the_support_stay(support):
    weights = np.random.default_rng(0).standard_normal((5, support.size))
    atoms = np.broadcast_to(support, weights.shape)
    np.testing.assert_allclose(project(atoms, weights, support), weights, atol=1e-12)


def test_laws_on_a_long_float32_support_stay():
    support = jnp.linspace(-10, 10, 201)
    weights = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(201), 4), jnp.float32)
    found = jax.jit(lambda w: losses.categorical_projection(jnp.tile(support, (4, 1)), w, support))(
        weights
    )
    # 200 gaps of rounding 1.2e-7 each, of a mass of about 1 / 200.
    np.testing.assert_allclose(found, weights, atol=1e-6)


@every_support
def test_distances_do_not_grow(support):
    rng = np.random.default_rng(1)
    atoms, weights = 2 * rng.standard_normal((50, 2, 6)), rng.dirichlet(np.ones(6), (50, 2))
    found = project(atoms, weights, support)
    for position, law, near in zip(atoms, weights, found, strict=True):
        before = cramer((position[0], law[0]), (position[1], law[1]))
        assert cramer((support, near[0]), (support, near[1])) <= before + 1e-12


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("bump", [1e-1, 1e-5])
def test_a_support_that_is_almost_even_is_not_taken_for_even(bump, traced):
    support = EVEN.copy()
    support[4] += bump
    weights = np.ones((1, 11))
    atoms = support[None] + 0.02
    expected = nearest(atoms, weights, support)
    np.testing.assert_allclose(
        project(atoms, weights, support, traced=traced), expected, atol=1e-12
    )


@pytest.mark.parametrize(
    ("support", "even"),
    [
        (jnp.linspace(-10, 10, 51), True),
        (np.linspace(0, 10, 1001), True),
        (jnp.arange(5.0), True),
        (jnp.array([1.0, 2.0, 4.0]), False),
        (jnp.linspace(-10, 10, 51).at[7].add(1e-4), False),
        # bfloat16 rounds these atoms to gaps of different sizes: they are what they are.
        (jnp.linspace(-10, 10, 51, dtype=jnp.bfloat16), False),
        # Rounding is a sizeable part of the gap.
        (jnp.array([1e6, 1e6 + 0.25, 1e6 + 0.5625, 1e6 + 0.75]), False),
    ],
)
def test_evenness_is_seen_now_and_when_the_program_runs(support, even):
    grid = jnp.asarray(support).astype(jnp.float32)
    assert categorical._is_even(support, grid) is even
    traced = jax.jit(categorical._is_even)(jnp.asarray(support), grid)
    assert bool(traced) is even


def test_supports_may_be_mapped():
    atoms, weights = jnp.array([0.1, -3.0, 0.3]), jnp.array([0.5, -0.2, 0.7])
    supports = jnp.stack([jnp.linspace(-1, 1, 5), jnp.linspace(-1, 1, 5) ** 3])
    over_supports = jax.jit(jax.vmap(losses.categorical_projection, (None, None, 0)))
    found = over_supports(atoms, weights, supports)
    for row, support in zip(found, supports, strict=True):
        np.testing.assert_allclose(
            row, nearest(np.array(atoms), np.array(weights), np.array(support)), atol=1e-6
        )


def test_infinite_atoms_go_to_the_ends_and_nan_stays_in_its_row():
    atoms = jnp.array([[-jnp.inf, jnp.inf, 0.5], [jnp.nan, 0.0, 1.0], [1.0, 1.0, 1.0]])
    weights = jnp.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    for support in (UNIT, UNIT.at[2].set(4)):
        found = losses.categorical_projection(atoms, weights, support)
        np.testing.assert_allclose(found[0], [0.2 + 0.25, 0.25, 0.3], atol=1e-6)
        assert np.isnan(found[1]).any()
        np.testing.assert_allclose(found[2], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("evenly", [True, False])
def test_slopes_are_those_of_the_linear_pieces(evenly):
    # Also where an even support was found: finite differences bend it.
    support = EVEN if evenly else UNEVEN
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(3 * rng.standard_normal((2, 6))), jnp.asarray(rng.random((2, 6)))]
        check_grads(
            jax.jit(losses.categorical_projection),
            [*arrays, jnp.asarray(support)],
            order=1,
            modes=["fwd", "rev"],
            rtol=1e-6,
            atol=1e-6,
        )


def test_the_accelerator_path_gives_the_same_numbers():
    rng = np.random.default_rng(3)
    index = jnp.asarray(rng.integers(0, 10, (2, 4, 7)).astype(np.int32))
    lower, upper = jnp.asarray(rng.standard_normal((2, 2, 4, 7)))
    arguments = (jnp.zeros((2, 4, 11)), index, lower, upper)
    np.testing.assert_allclose(
        categorical._sum_pairs(*arguments), categorical._scatter(*arguments), atol=1e-6
    )


@pytest.mark.parametrize("traced", [False, True])
def test_no_array_of_pairs_is_made_on_a_cpu(traced):
    atoms = jnp.zeros((64, 501))
    support = jnp.linspace(-1, 1, 501)

    def known(atoms, weights, grid):
        return losses.categorical_projection(atoms, weights, grid if traced else support)

    compiled = jax.jit(known).lower(atoms, atoms, support).compile()
    analysis = compiled.memory_analysis()
    if jax.default_backend() != "cpu" or analysis is None:
        pytest.skip("the CPU's path")
    # An array of pairs would be 501 times as large as the atoms.
    assert analysis.temp_size_in_bytes < 16 * atoms.nbytes


@pytest.mark.parametrize("support", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_projection_equals_that_of_rlax(support):
    rlax = pytest.importorskip("rlax")
    rng = np.random.default_rng(4)
    atoms = jnp.asarray(2 * rng.standard_normal((5, 8)), jnp.float32)
    weights = jnp.asarray(rng.dirichlet(np.ones(8), 5), jnp.float32)
    grid = jnp.asarray(support, jnp.float32)
    theirs = jax.jit(jax.vmap(rlax.categorical_l2_project, (0, 0, None)))
    expected = theirs(atoms, weights, grid)
    found = jax.jit(losses.categorical_projection)(atoms, weights, grid)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("atoms", "support", "named"),
    [
        (jnp.zeros(3), jnp.array([0.0, 0.0, 1.0]), "increase"),
        (jnp.zeros(3), jnp.array([0.0, jnp.nan, 1.0]), "increase"),
        (jnp.zeros(3), jnp.array([0.0]), "at least 2"),
        (jnp.zeros(3), jnp.zeros((2, 3)), "vector"),
        (jnp.zeros(()), UNIT, "atoms"),
    ],
)
def test_refused_projection(atoms, support, named):
    # With jaxtyping's checks switched on, its own error comes first where ranks are wrong.
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        losses.categorical_projection(atoms, atoms, support)
    if raised.type is ValueError:
        assert named in str(raised.value)


def test_losses_of_a_signed_target():
    # Specification A5.
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(x), jnp.float64) for x in ([0.1, -0.2, 0.3],)]
        target, support = jnp.array([0.7, -0.1, 0.4]), jnp.array([0.0, 1.0, 2.0])

        def run(kind):
            def function(logits):
                return losses.categorical_loss(logits, target, support, kind=kind)

            return jax.jit(jax.value_and_grad(function))(*arrays)

        value, slope = run("cross_entropy")
        np.testing.assert_allclose(value, 0.9759393177, atol=5e-11)
        np.testing.assert_allclose(slope, [-0.362415462, 0.350088777, 0.012326686], atol=1e-9)
        value, slope = run("cramer")
        np.testing.assert_allclose(value, 0.1314969144, atol=5e-11)
        np.testing.assert_allclose(slope, [-0.165519203, 0.058652438, 0.106866765], atol=1e-9)
        value, slope = run("clipped")
    # The positive part is (7, 0, 4) / 11.
    probs = np.exp([0.1, -0.2, 0.3]) / np.exp([0.1, -0.2, 0.3]).sum()
    np.testing.assert_allclose(value, -(7 * np.log(probs[0]) + 4 * np.log(probs[2])) / 11)
    np.testing.assert_allclose(slope, probs - np.array([7, 0, 4]) / 11, atol=1e-12)


@pytest.mark.parametrize(
    ("logit", "expected"), [(0.0, 1.0498310608), (-5.0, 0.2108796580), (-50.0, -4.2918611306)]
)
def test_cross_entropy_of_a_signed_target_falls_without_bound(logit, expected):
    logits = LOGITS.at[1].set(logit)
    found = losses.categorical_loss(logits, SIGNED, UNIT)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    for kind in ("cramer", "clipped"):
        assert losses.categorical_loss(logits, SIGNED, UNIT, kind=kind) >= 0


def test_cramer_is_the_distance_on_any_support():
    rng = np.random.default_rng(5)
    logits, target = rng.standard_normal((2, 4, UNEVEN.size))
    target += (1 - target.sum(-1, keepdims=True)) / UNEVEN.size
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [cramer((UNEVEN, p), (UNEVEN, q)) for p, q in zip(probs, target, strict=True)]
    with jax.enable_x64(True):
        arrays = map(jnp.asarray, (logits, target, UNEVEN))
        found = losses.categorical_loss(*arrays, kind="cramer")
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["cross_entropy", "cramer"])
def test_gradients_are_those_of_the_expected_target(kind):
    # Signed single targets whose mean is a law: (.7, -.1, .4) and (.1, .7, .2).
    targets = jnp.stack([SIGNED, jnp.array([0.1, 0.7, 0.2])])

    def slope(target):
        return jax.grad(lambda x: losses.categorical_loss(x, target, UNIT, kind=kind))(LOGITS)

    single = jnp.mean(jnp.stack([slope(target) for target in targets]), axis=0)
    np.testing.assert_allclose(single, slope(targets.mean(0)), atol=1e-6)


def test_an_impossible_atom_without_target_mass_costs_nothing():
    logits = jnp.array([0.3, -jnp.inf, 0.1])
    value, slope = jax.value_and_grad(
        lambda x: losses.categorical_loss(x, jnp.array([0.5, 0.0, 0.5]), UNIT)
    )(logits)
    assert np.isfinite(value)
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-6)
    assert np.isfinite(slope).all()


def test_c51_loss_equals_that_of_rlax():
    rlax = pytest.importorskip("rlax")
    rng = np.random.default_rng(6)
    support = jnp.linspace(-2, 2, 9)
    logits, following = jnp.asarray(rng.standard_normal((2, 6, 3, 9)), jnp.float32)
    actions = jnp.asarray(rng.integers(0, 3, 6))
    rewards = jnp.asarray(rng.standard_normal(6), jnp.float32)
    discounts = jnp.array([0.9, 0.0, 0.9, 1.0, 0.5, 0.9])

    def theirs(logits):
        loss = jax.vmap(rlax.categorical_q_learning, (None, 0, 0, 0, 0, None, 0))
        return loss(support, logits, actions, rewards, discounts, support, following)

    def ours(logits):
        probs = jax.nn.softmax(following)
        best = jnp.argmax(losses.categorical_mean(probs, support), axis=-1)
        target = losses.categorical_multistep_target(
            probs[:, None],
            jax.nn.one_hot(best, 3)[:, None],
            jnp.zeros((6, 0), jnp.int32),
            rewards[:, None],
            discounts[:, None],
            jnp.zeros((6, 0)),
            support,
        )
        taken = logits[jnp.arange(6), actions]
        return losses.categorical_loss(taken, target, support)

    (value, slope), (their_value, their_slope) = (
        jax.jit(jax.value_and_grad(lambda x, f=f: f(x).mean()))(logits) for f in (ours, theirs)
    )
    np.testing.assert_allclose(value, their_value, rtol=1e-5)
    np.testing.assert_allclose(slope, their_slope, atol=1e-6)


def test_unknown_kind_and_other_number_of_atoms_are_refused():
    with pytest.raises(ValueError, match="cross_entropy, cramer, clipped"):
        losses.categorical_loss(LOGITS, SIGNED, UNIT, kind="ce")
    jaxtyping = pytest.importorskip("jaxtyping")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)) as raised:
        losses.categorical_loss(LOGITS, SIGNED, UNIT[:2])
    if raised.type is ValueError:
        assert "logits must have the 2 atoms" in str(raised.value)
