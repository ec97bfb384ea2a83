"""Boxes of real numbers in NumPy, float64, with every rounding error counted outwards.

A Box contains every real value that exact arithmetic may give: each lies within `radius` of `center`. Errors are those
of IEEE 754: a result is off by at most U times itself, or by less than TINY if it underflows; sums and differences of
two numbers do not underflow. A sum of n products in any order is off by at most n U times the sum of their magnitudes
(Higham 2002, section 3.1). SLACK covers up to six roundings, and second-order terms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.common.errors import InputError

U, TINY, SLACK = 2.0**-53, np.finfo(np.float64).tiny, 8
Array = np.ndarray


class UnknownLayerError(InputError):
    """The checker has no rule for something in the network.

    what: it, as the message names it.
    """

    def __init__(self, what: str):
        super().__init__(f"harness.recheck has no rule for {what}")
        self.what = what


@dataclass(frozen=True)
class Box:
    """A box. center, radius: [B, ...]; an infinite or NaN radius bounds nothing."""

    center: Array
    radius: Array

    @property
    def lower(self) -> Array:
        """A number at or below the smallest real value."""
        low = self.center - self.radius
        return np.where(np.isfinite(low), np.nextafter(low, -np.inf), -np.inf)

    @property
    def upper(self) -> Array:
        """A number at or above the largest real value."""
        high = self.center + self.radius
        return np.where(np.isfinite(high), np.nextafter(high, np.inf), np.inf)


def magnitude(x: Box) -> Array:
    """Return about the largest magnitude in the box, which rounding errors are relative to."""
    return np.abs(x.center) + x.radius


def widen_for_rounding(center: Array, radius: Array, size: Array | None = None) -> Box:
    """Return a box whose centre and radius are off by a few roundings.

    size: of the numbers of which roundings made the centre; by default its own, for one rounding.
    """
    error = SLACK * U * (np.abs(center) if size is None else size)
    return Box(center, (radius + error) * (1 + SLACK * U) + TINY)


def add(a: Box, b: Box) -> Box:
    """Return the box of a + b."""
    return widen_for_rounding(a.center + b.center, a.radius + b.radius)


def between(lower: Array, upper: Array) -> Box:
    """Return the box of all values from lower to upper."""
    center = lower / 2 + upper / 2
    return Box(center, np.nextafter(np.maximum(upper - center, center - lower), np.inf))


def ball(pixels: Array, eps: float) -> Box:
    """Return the box of all images in [0, 1] within eps of the images with grey levels `pixels`, 0 to 255.

    eps: at most 1, rounded to nearest. Its rounding, the division and two sums are off by 3 U together.
    """
    center, radius = pixels / 255.0, eps + 4 * U
    return between(np.maximum(center - radius, 0), np.minimum(center + radius, 1))


def affine(x: Box, weight: Array, bias: Array | None, apply: Callable[[Array, Array], Array], terms: int) -> Box:
    """Return the box of W x + b. `apply(W, x)` sums `terms` products for each element; the bias is broadcast.

    The share of an element's rounding is at least TINY, unless it is 0: a large weight may follow.
    """
    relative = SLACK * (terms + 2) * U
    center, share = apply(weight, x.center), np.maximum(relative * np.abs(x.center), TINY)
    rounded = x.radius + np.where(x.center == 0, 0, share)
    radius = apply(np.abs(weight), rounded) * (1 + relative) + (terms + 2) * TINY
    return widen_for_rounding(center if bias is None else center + bias, radius)


def relu(x: Box) -> Box:
    """Return the box of max(x, 0): x itself if nothing in it is below 0, else 0 to the upper end.

    Half of the upper end is exact unless it is subnormal; then it may be too small by half of what `upper` added.
    """
    half = np.maximum(x.upper, 0) / 2
    positive = x.center >= x.radius
    return Box(np.where(positive, x.center, half), np.where(positive, x.radius, half))


def intersect(a: Box, b: Box) -> Box:
    """Return the intersection of two boxes; `a` if rounding leaves it empty."""
    lower, upper = np.maximum(a.lower, b.lower), np.minimum(a.upper, b.upper)
    both, overlap = between(lower, upper), lower <= upper
    return Box(np.where(overlap, both.center, a.center), np.where(overlap, both.radius, a.radius))


def inside(inner: Box, outer: Box) -> Array:
    """Return whether `inner` lies inside `outer`, for each example: bool [B]. False for boxes that are not finite."""
    finite = np.isfinite(outer.center) & np.isfinite(outer.radius) & np.isfinite(inner.center + inner.radius)
    extent = np.abs(inner.center - outer.center) + inner.radius
    fits = extent * (1 + SLACK * U) <= outer.radius
    return (fits & finite).reshape(len(fits), -1).all(1)
