"""Distances between samples against brute force and closed forms."""

import itertools

import numpy as np
import pytest

from bellmax.experiments import sample_distances


def test_earth_movers_distance_is_the_best_of_all_assignments():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 3))
    best = min(
        np.linalg.norm(first - second[list(order)], axis=1).mean()
        for order in itertools.permutations(range(6))
    )
    found = sample_distances.earth_movers_distance(first, second)
    np.testing.assert_allclose(found, best, rtol=1e-12)


def test_earth_movers_distance_of_a_shift_is_its_length():
    points = np.random.default_rng(1).normal(size=(50, 2))
    found = sample_distances.earth_movers_distance(points, points + np.array([0.3, -0.4]))
    np.testing.assert_allclose(found, 0.5, rtol=1e-9)


def test_energy_distance_of_two_points_by_hand():
    """X is 0 or 1, Y is 3 or 5: 2 (3 + 5 + 2 + 4) / 4 - 1 - 2."""
    found = sample_distances.energy_distance(np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]]))
    np.testing.assert_allclose(found, 4.0)


def test_energy_distance_is_unbiased():
    """Two normals a distance m apart: 2 E|N(m, 2)| - 2 E|N(0, 2)|; equal laws give 0 on average."""
    rng = np.random.default_rng(2)
    for shift, exact in ((0.0, 0.0), (1.0, 0.5418)):
        drawn = rng.normal(size=(400, 2, 20, 1))
        found = [sample_distances.energy_distance(a, b + shift) for a, b in drawn]
        # E|N(m, 2)| = 2 / sqrt(pi) exp(-m^2 / 4) + m erf(m / 2); four standard errors.
        assert abs(np.mean(found) - exact) < 4 * np.std(found) / 20 + 1e-4


@pytest.mark.parametrize(
    ("distance", "shapes", "message"),
    [
        ("earth_movers_distance", ((3, 2), (4, 2)), "as many"),
        ("earth_movers_distance", ((3, 2), (3, 1)), r"\[N, D\]"),
        ("energy_distance", ((3,), (3,)), r"\[N, D\]"),
        ("energy_distance", ((1, 2), (3, 2)), "at least 2"),
    ],
)
def test_refuses_what_does_not_fit(distance, shapes, message):
    with pytest.raises(ValueError, match=message):
        getattr(sample_distances, distance)(*(np.zeros(shape) for shape in shapes))
