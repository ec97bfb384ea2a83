"""Boxes and lines of activations that are polynomials between knots, against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from oracles import exact
from test_rounding_terms import assert_below, holds, pulled_through

from harness.checker.bounds.boxes import Box, U
from harness.checker.bounds.relaxations import HARDSIGMOID, HARDSWISH, MaxPool, clamp, leaky_relu

CURVES = {
    "relu6": clamp(0.0, 6.0),
    "clamp": clamp(-0.3, 0.7),
    "below": clamp(0.1, np.inf),
    "above": clamp(-np.inf, -1e-9),
    "wrong order": clamp(1.0, 0.5),
    "leaky": leaky_relu(0.01),
    "steep": leaky_relu(-3.0),
    "hardsigmoid": HARDSIGMOID,
    "hardswish": HARDSWISH,
}


def exact_value(curve, p):
    number = sum(knot < p for knot in map(Fraction, curve.knots))
    c, b, a = map(Fraction, curve.pieces[number])
    return (c + b * p + a * p * p) / Fraction(curve.divisor)


def boxes():
    """Wide, thin, of radius 0, far away, tiny, ends at knots; centres and radii [B]."""
    random = np.random.default_rng(0)
    centers = np.concatenate([random.normal(size=150) * 4, [-3, 3, 0, 6, 1e30, -1e9, 1e-310, -1.5, -3, 1]])
    radii = np.concatenate([np.exp(3 * random.normal(size=150) - 2), [0, 0, 0, 6, 1e30, 1, 1e-311, 0, 1e-16, 4]])
    return centers, np.where(np.arange(len(radii)) % 7 == 0, 0, radii)


def critical_points(curve, low, high, slopes):
    """Return where curve less slope * p may be extreme: ends, knots and stationary points, exactly."""
    points = {low, high, *(Fraction(knot) for knot in curve.knots)}
    for _, b, a in curve.pieces:
        if a:
            points |= {(slope * Fraction(curve.divisor) - Fraction(b)) / (2 * Fraction(a)) for slope in slopes}
    return [p for p in points if low <= p <= high]


@pytest.mark.parametrize("name", CURVES)
def test_boxes_and_lines_contain_the_curve(name):
    curve, (centers, radii) = CURVES[name], boxes()
    x = Box(centers[None], radii[None])
    y, lines = curve.box(x), [[exact(part[0]) for part in line] for line in curve.lines(x)]
    loose = 0.0
    for i, (center, radius) in enumerate(zip(exact(centers), exact(radii), strict=True)):
        slopes = [Fraction(0), *(slope[i] for slope, _ in lines)]
        points = critical_points(curve, center - radius, center + radius, slopes)
        values = [exact_value(curve, p) for p in points]
        assert holds(Box(y.center[:, i], y.radius[:, i]), min(values), max(values)), (center, radius)
        for sign, (slope, offset) in zip((1, -1), lines, strict=True):
            gaps = [sign * (value - slope[i] * p - offset[i]) for p, value in zip(points, values, strict=True)]
            assert min(gaps) >= 0, (float(center), float(radius), sign)
        size = 1 + max(map(abs, values))
        loose = max(loose, float((Fraction(y.radius[0, i]) - (max(values) - min(values)) / 2) / size))
    assert loose < 1e-12


@pytest.mark.parametrize("name", CURVES)
def test_functionals_are_below_the_curve(name):
    """Also where all that is left of the products is rounding."""
    curve, (centers, radii) = CURVES[name], boxes()
    usual = np.abs(centers) < 1e6
    x, a = Box(centers[None, usual], radii[None, usual]), np.random.default_rng(1).normal(size=(40, usual.sum()))
    pulled = pulled_through(curve, a, x)
    for sign in (-1, 0, 1):
        p = exact(x.center[0]) + sign * exact(x.radius[0])
        assert_below(pulled, a, np.array([exact_value(curve, v) for v in p], dtype=object), p)


@pytest.mark.parametrize("name", ["relu6", "hardswish"])
def test_lines_are_the_curve_where_it_is_straight(name):
    x = Box(np.array([[4.5, -4.0]]), np.array([[1.0, 0.5]]))
    if name == "relu6":
        x = Box(x.center, np.array([[1.0, 3.5]]))
    for slope, offset in CURVES[name].lines(x):
        np.testing.assert_allclose(slope, [[1.0, 0.0]], atol=1e-12)
        np.testing.assert_allclose(offset, 0, atol=1e-12)


def test_lines_around_relu_6_are_those_of_its_kink():
    """Of a box with one kink inside: the chord, and a line through the kink."""
    (slope, offset), (chord, height) = clamp(0.0, 6.0).lines(Box(np.array([[1.0, 5.0]]), np.array([[2.0, 4.0]])))
    np.testing.assert_allclose([*slope[0], *chord[0]], [1, 5 / 8, 3 / 4, 1], atol=1e-12)
    np.testing.assert_allclose([*offset[0], *height[0]], [0, 3 / 8, 3 / 4, 0], atol=1e-12)


def test_extremes_count_the_product_with_the_slope():
    """Where the curve is 0."""
    p, slope = -6 - np.abs(np.random.default_rng(0).normal(size=200)), np.random.default_rng(1).normal(size=200)
    least, most = HARDSIGMOID._extremes(slope, p, p)
    value = -exact(slope) * exact(p)
    assert all(exact(least) <= value) and all(value <= exact(most))


def test_constants_count_their_sum():
    """Of many numbers, each of which is lost beside the first one."""
    a, ones = np.array([[-1.0, *[-U] * 4095]]), Box(np.full((1, 4096), 7.0), np.zeros((1, 4096)))
    for rows in (a, -a):
        pulled = pulled_through(HARDSIGMOID, rows, ones)
        assert_below(pulled, rows, exact(np.ones(4096)), exact(ones.center.ravel()))


@pytest.mark.parametrize("relaxation", [HARDSWISH, leaky_relu(-3.0), MaxPool((2,), (2,), (0,), (1,), False)])
def test_magnitudes_are_of_all_that_is_multiplied(relaxation):
    random = np.random.default_rng(0)
    x = Box(5 * random.normal(size=(1, 1, 100)), np.abs(random.normal(size=(1, 1, 100))))
    rows = np.ones_like(relaxation.box(x).center)
    for a in (rows, -rows):
        coefficients, _, size = relaxation.pull_back(a, x)
        products = np.abs(coefficients) * (np.abs(x.center) + x.radius)
        assert (size >= products.reshape(*size.shape, -1).max(-1)).all()
    if isinstance(relaxation, MaxPool):
        assert (size >= np.abs(relaxation.box(x).upper) * (1 - 1e-15)).all()
