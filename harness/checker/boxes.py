"""Boxes of real numbers in NumPy, float64, every rounding error counted outwards.

A Box holds what it stands for in exact arithmetic: each real value lies within `radius` of `center`. Errors are those
of IEEE 754: a result is off by U of itself at most, or by less than TINY where it underflows, and a sum of n products,
in whatever order, by n U of the sum of their magnitudes (Higham 2002, section 3.1). SLACK covers second order terms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

U, TINY, SLACK = 2.0**-53, np.finfo(np.float64).tiny, 8
Array = np.ndarray


@dataclass(frozen=True)
class Box:
    """center, radius: [B, ...]; an infinite radius or one that is no number bounds nothing."""

    center: Array
    radius: Array

    @property
    def lower(self) -> Array:
        """At most the least real value."""
        low = self.center - self.radius
        return np.where(np.isfinite(low), low - 2 * U * np.abs(low) - TINY, -np.inf)

    @property
    def upper(self) -> Array:
        """At least the largest real value."""
        high = self.center + self.radius
        return np.where(np.isfinite(high), high + 2 * U * np.abs(high) + TINY, np.inf)


def magnitude(x: Box) -> Array:
    """About the largest size of anything in the box: what rounding errors are relative to."""
    return np.abs(x.center) + x.radius


def rounded(center: Array, radius: Array, operations: int = 1, size: Array | None = None) -> Box:
    """A box whose centre took so many operations on numbers of at most `size` (the centre's own where not given)."""
    error = SLACK * operations * U * (np.abs(center) if size is None else size + np.abs(center))
    return Box(center, (radius + error) * (1 + SLACK * U) + TINY)


def between(lower: Array, upper: Array) -> Box:
    """The box of all from lower to upper."""
    center = lower / 2 + upper / 2
    return rounded(center, (upper - lower) / 2, 2, np.abs(lower) + np.abs(upper))


def ball(pixels: Array, eps: float) -> Box:
    """All images with values in [0, 1] within eps of those whose grey levels, 0 to 255, are `pixels`."""
    center = pixels / 255.0  # each division is off by U at most
    reach = np.nextafter(eps, np.inf) + 4 * U
    return between(np.maximum(center - reach, 0), np.minimum(center + reach, 1))


def affine(x: Box, weight: Array, bias: Array | None, apply: Callable[[Array, Array], Array], terms: int) -> Box:
    """W x + b, where `apply(W, x)` sums `terms` products an element; bias broadcasts over the result."""
    relative = SLACK * (terms + 2) * U
    center = apply(weight, x.center)
    radius = apply(np.abs(weight), x.radius + relative * np.abs(x.center)) * (1 + relative) + (terms + 2) * TINY
    return rounded(center if bias is None else center + bias, radius)


def relu(x: Box) -> Box:
    """The box of max(x, 0): x where nothing is below 0, else of 0 to the upper end."""
    half = np.maximum(x.upper, 0) / 2
    positive = x.center >= x.radius
    return Box(np.where(positive, x.center, half), np.where(positive, x.radius, half * (1 + SLACK * U)))


def scaled(x: Box, mean: Array, variance: Array, eps: float, weight: Array, bias: Array) -> Box:
    """(x - mean) / sqrt(variance + eps) weight + bias."""
    factor, moved = weight / np.sqrt(variance + eps), x.center - mean
    center = moved * factor + bias
    size = (np.abs(x.center) + np.abs(mean)) * np.abs(factor) + np.abs(bias)
    return rounded(center, x.radius * np.abs(factor) * (1 + SLACK * U) + TINY, 6, size)


def intersected(a: Box, b: Box) -> Box:
    """What both hold; where rounding leaves nothing, `a`."""
    lower, upper = np.maximum(a.lower, b.lower), np.minimum(a.upper, b.upper)
    both, some = between(lower, upper), lower <= upper
    return Box(np.where(some, both.center, a.center), np.where(some, both.radius, a.radius))


def inside(inner: Box, outer: Box) -> Array:
    """Whether all that `inner` holds is held by `outer`, per example: bool [B]. False for what is not finite."""
    finite = np.isfinite(outer.center) & np.isfinite(outer.radius) & np.isfinite(inner.center + inner.radius)
    shift = np.abs(inner.center - outer.center) * (1 + SLACK * U) + TINY
    fits = (shift + inner.radius) * (1 + SLACK * U) <= outer.radius
    return (fits & finite).reshape(len(fits), -1).all(1)


def convolved(weight: Array, x: Array, stride: int, padding: int, groups: int = 1) -> Array:
    """The convolution of x [B, C, H, W] with weight [O, C / groups, k, k], zero padding, as plain matrix products."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size, parts = weight.shape[-1], []
    for kernel, channels in zip(np.split(weight, groups), np.split(x, groups, axis=1), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(channels, (size, size), (2, 3))[:, :, ::stride, ::stride]
        rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*windows.shape[:1], *windows.shape[2:4], -1)
        parts.append((rows @ kernel.reshape(len(kernel), -1).T).transpose(0, 3, 1, 2))
    return np.concatenate(parts, axis=1)


def convolved_back(
    weight: Array, a: Array, shape: tuple[int, ...], stride: int, padding: int, groups: int = 1
) -> Array:
    """The transpose of `convolved`: coefficients a [K, O, h, w] of its result as those of x, [K, *shape]."""
    (rows, columns), size, (channels, height, width) = a.shape[2:], weight.shape[-1], shape
    image = np.zeros((len(a), channels, height + 2 * padding, width + 2 * padding))
    parts = np.split(weight, groups), np.split(a, groups, axis=1), np.split(image, groups, axis=1)  # views of the image
    for kernel, given, made in zip(*parts, strict=True):
        taps = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) @ given.reshape(*given.shape[:2], -1)
        taps = taps.reshape(len(a), size, size, -1, rows, columns)
        for i in range(size):
            for j in range(size):
                place = slice(i, i + stride * (rows - 1) + 1, stride), slice(j, j + stride * (columns - 1) + 1, stride)
                made[:, :, *place] += taps[:, i, j]
    return image[:, :, padding : padding + height, padding : padding + width]
