"""Every rule of the checker's arithmetic against exact rational arithmetic at points of boxes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.checker.bounds.boxes import (
    Box,
    affine,
    ball,
    between,
    inside,
    intersect,
    relu,
)
from harness.checker.bounds.maps import batch_norm

NUMBERS = st.floats(-1e6, 1e6, width=32)
CORNER = st.sampled_from([Fraction(-1), Fraction(0), Fraction(1, 3), Fraction(1)])


def vectors(*shape, elements=NUMBERS):
    return arrays(np.float64, shape, elements=elements)


def boxes(size):
    return st.builds(Box, vectors(1, size), vectors(1, size, elements=st.floats(0, 1e3, width=32)))


def corners_of(size):
    return st.lists(CORNER, min_size=size, max_size=size)


def point(box, corners):
    """A real point of the box, exactly."""
    pairs = zip(box.center[0], box.radius[0], corners, strict=True)
    return [Fraction(float(c)) + Fraction(float(r)) * t for c, r, t in pairs]


def holds(box, values):
    """Return whether values lie exactly within `radius` of `center`, and within its ends."""
    numbers = zip(box.center[0], box.radius[0], box.lower[0], box.upper[0], values, strict=True)
    exact = [(*(Fraction(float(number)) for number in row), v) for *row, v in numbers]
    return all(abs(v - center) <= radius and low <= v <= high for center, radius, low, high, v in exact)


@given(boxes(3), vectors(2, 3), vectors(2), corners_of(3))
def test_affine_maps(x, weight, bias, corners):
    exact = [
        sum(Fraction(float(w)) * v for w, v in zip(row, point(x, corners), strict=True)) + Fraction(float(b))
        for row, b in zip(weight, bias, strict=True)
    ]
    assert holds(affine(x, weight, bias, lambda w, values: values @ w.T, 3), exact)


@given(boxes(3), corners_of(3))
def test_relu(x, corners):
    assert holds(relu(x), [max(v, Fraction(0)) for v in point(x, corners)])


@given(boxes(2), vectors(2), vectors(2), vectors(2), st.sampled_from([1.0, 4.0, 2.0**-10]), corners_of(2))
def test_batch_norm(x, mean, weight, bias, root, corners):
    """Of a variance whose root, with eps, is a rational number."""
    variance, eps = np.full(2, root**2 * 0.75), root**2 * 0.25
    exact = [
        (v - Fraction(float(m))) / Fraction(root) * Fraction(float(w)) + Fraction(float(b))
        for v, m, w, b in zip(point(x, corners), mean, weight, bias, strict=True)
    ]
    assert holds(batch_norm(mean, variance, weight, bias, eps).box(x), exact)


@given(st.integers(0, 255), st.sampled_from([Fraction(0), Fraction(1, 255), Fraction(2, 255), Fraction(1, 3)]), CORNER)
def test_balls_hold_every_image_within_eps(pixel, eps, corner):
    image = min(max(Fraction(pixel, 255) + eps * corner, Fraction(0)), Fraction(1))
    assert holds(ball(np.array([[float(pixel)]]), float(eps)), [image])


@given(boxes(2), boxes(2), corners_of(2))
def test_intersections_and_inclusions(a, b, corners):
    both, z = intersect(a, b), point(a, corners)
    in_b = all(
        abs(v - Fraction(float(c))) <= Fraction(float(r)) for v, c, r in zip(z, b.center[0], b.radius[0], strict=True)
    )
    assert not in_b or holds(both, z)
    assert not inside(a, b)[0] or in_b


@given(boxes(2), corners_of(2))
def test_between_holds_what_lies_between(x, corners):
    assert holds(between(x.lower, x.upper), point(x, corners))


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_what_is_not_finite_is_inside_nothing_and_bounds_nothing(spoiled):
    good, bad = Box(np.zeros((1, 2)), np.ones((1, 2))), Box(np.zeros((1, 2)), np.array([[1.0, spoiled]]))
    assert not inside(bad, good)[0] and not inside(good, bad)[0]
    assert bad.lower[0, 1] == -np.inf and bad.upper[0, 1] == np.inf
