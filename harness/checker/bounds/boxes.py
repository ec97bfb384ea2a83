"""Boxes of real numbers in NumPy, float64, with every rounding error counted outwards.

A Box contains every real value that exact arithmetic may give: each lies within `radius` of `center`. Errors are those
of IEEE 754: a result is off by at most U times itself, or by less than TINY if it underflows; sums and differences of
two numbers do not underflow. A sum of n products in any order is off by at most n U times the sum of their magnitudes
(Higham 2002, section 3.1). SLACK covers up to six roundings, and second-order terms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

U, TINY, SLACK = 2.0**-53, np.finfo(np.float64).tiny, 8
Array = np.ndarray


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


def convolve(weight: Array, x: Array, stride: int, padding: int, groups: int = 1) -> Array:
    """Convolve x [B, C, H, W] with weight [O, C / groups, k, k] and zero padding, by plain matrix products."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size, parts = weight.shape[-1], []
    for kernel, channels in zip(np.split(weight, groups), np.split(x, groups, axis=1), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(channels, (size, size), (2, 3))[:, :, ::stride, ::stride]
        rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*windows.shape[:1], *windows.shape[2:4], -1)
        parts.append((rows @ kernel.reshape(len(kernel), -1).T).transpose(0, 3, 1, 2))
    return np.concatenate(parts, axis=1)


def used_part(a: Array) -> tuple[slice, ...]:
    """Return the smallest rectangle of pixels of a [K, C, H, W] outside of which it is 0; all of another shape."""
    if a.ndim != 4:
        return (slice(None),)
    is_used = np.any(a != 0, (0, 1))
    ends = [np.flatnonzero(is_used.any(axis))[[0, -1]] if is_used.any() else (0, 0) for axis in (1, 0)]
    return slice(None), slice(None), *(slice(int(first), int(last) + 1) for first, last in ends)


def convolve_back(weight: Array, a: Array, shape: tuple[int, ...], stride: int, padding: int, groups: int = 1) -> Array:
    """Apply the transpose of `convolve` to coefficients a [K, O, h, w] of its result: those of x, [K, *shape]."""
    size, (channels, height, width) = weight.shape[-1], shape
    image = np.zeros((len(a), channels, height + 2 * padding, width + 2 * padding))
    part = used_part(a)
    a = a[part]
    (rows, columns), corner = a.shape[2:], [stride * pixels.start for pixels in part[2:]]
    parts = np.split(weight, groups), np.split(a, groups, axis=1), np.split(image, groups, axis=1)  # views of the image
    for kernel, coefficients, gradient in zip(*parts, strict=True):
        taps = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) @ coefficients.reshape(*coefficients.shape[:2], -1)
        taps = taps.reshape(len(a), size, size, -1, rows, columns)
        for i in range(size):
            for j in range(size):
                top, left = corner[0] + i, corner[1] + j
                pixels = slice(top, top + stride * rows, stride), slice(left, left + stride * columns, stride)
                gradient[:, :, *pixels] += taps[:, i, j]
    return image[:, :, padding : padding + height, padding : padding + width]
