"""Activations other than ReLU: their boxes, and the affine functions between which they lie on a box.

Each class has three methods:

- `box` returns the box of y = f(x) from that of x.
- `is_loose` returns for which elements of x a tighter box makes the affine functions tighter.
- `pull_back` bounds a . y from below, a [K, *shape of y]. It returns coefficients [K, *shape of x], each a sum over
  elements of `a`, constants [K], and at least the magnitudes [1, *shape of y] of what each element of `a` is multiplied
  with, here and by x.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from harness.checker.bounds.boxes import SLACK, TINY, Array, Box, U, UnknownLayerError, between, magnitude
from harness.checker.bounds.relu_lines import dot
from harness.checker.bounds.windows import Sizes, pool_windows


@dataclass(frozen=True)
class Curve:
    """A continuous function of each element: (c + b p + a p^2) / divisor between two knots.

    knots: rising. pieces: (c, b, a) before the first knot, between the first two, ..., after the last one.
    """

    knots: tuple[float, ...]
    pieces: tuple[tuple[float, float, float], ...]
    divisor: float = 1.0

    def box(self, x: Box) -> Box:
        """Return the box of f(x)."""
        low, high = x.lower, x.upper
        finite = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(finite, low, 0), np.where(finite, high, 0)
        y = between(*self._extremes(np.zeros(()), low, high))
        return Box(y.center, np.where(finite, y.radius, np.inf))

    def is_loose(self, x: Box) -> Array:
        """Return where a knot lies inside, or where the function is not affine."""
        first, last = np.searchsorted(self.knots, x.lower, "right"), np.searchsorted(self.knots, x.upper)
        return (first < last) | (np.array(self.pieces)[first, 2] != 0)

    def pull_back(self, a: Array, x: Box) -> tuple[Array, Array, Array]:
        """Bound a . f(x) by the lower line where a is positive, by the upper one elsewhere."""
        below, above = self.lines(x)
        slope, offset = (np.where(a > 0, lower, upper) for lower, upper in zip(below, above, strict=True))
        size = np.maximum(np.abs(below[0]), np.abs(above[0])) * magnitude(x)
        return a * slope, dot(a, offset), size + np.maximum(np.abs(below[1]), np.abs(above[1]))

    def lines(self, x: Box) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Return slope and offset of a line below f on the box, and of one above it.

        Of a few slopes, those whose lines are nearest in the middle of the box. Whatever the slopes, the offsets are
        the extremes of f(p) - slope p.
        """
        low, high = x.lower, x.upper
        middle, zero = low / 2 + high / 2, np.zeros_like(low)
        lower, upper = (zero, np.full_like(low, -np.inf)), (zero, np.full_like(low, np.inf))
        for slope in self._slopes(low, middle, high):
            least, most = self._extremes(slope, low, high)
            nearer = least + slope * middle > lower[1] + lower[0] * middle
            lower = np.where(nearer, slope, lower[0]), np.where(nearer, least, lower[1])
            nearer = most + slope * middle < upper[1] + upper[0] * middle
            upper = np.where(nearer, slope, upper[0]), np.where(nearer, most, upper[1])
        return lower, upper

    def _slopes(self, low: Array, middle: Array, high: Array) -> list[Array]:
        """Return the slopes between each two of the ends and of the knots inside, and the one in the middle."""
        points = [low, *(np.clip(knot, low, high) for knot in self.knots), high]
        values = [self._at(point)[0] for point in points]
        slopes = [
            (values[j] - values[i]) / np.where(points[j] > points[i], points[j] - points[i], np.inf)
            for i, j in combinations(range(len(points)), 2)
        ]
        _, b, a = self._piece(middle)
        return [*slopes, (b + 2 * a * middle) / self.divisor]

    def _extremes(self, slope: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """Return at most the smallest and at least the largest f(p) - slope * p, p from low to high.

        They lie at the ends, at knots, or where the derivative of a piece is 0. That a point of this last kind is
        rounded costs the square of a rounding error, less than is counted for the value there.
        """
        points = [low, high, *(np.clip(knot, low, high) for knot in self.knots)]
        for (_, b, a), start, end in zip(self.pieces, (-np.inf, *self.knots), (*self.knots, np.inf), strict=True):
            if a:
                points.append(np.clip(np.clip((slope * self.divisor - b) / (2 * a), start, end), low, high))
        least, most = np.full_like(low, np.inf), np.full_like(low, -np.inf)
        for p in points:
            value, size = self._at(p)
            error = SLACK * U * (size + np.abs(slope * p)) + 4 * TINY
            least = np.minimum(least, value - slope * p - error)
            most = np.maximum(most, value - slope * p + error)
        return least, most

    def _at(self, p: Array) -> tuple[Array, Array]:
        """Return about f(p), and the magnitudes of what it is computed from."""
        c, b, a = self._piece(p)
        return (c + b * p + a * p * p) / self.divisor, (np.abs(c) + np.abs(b * p) + np.abs(a * p * p)) / self.divisor

    def _piece(self, p: Array) -> tuple[Array, ...]:
        coefficients = np.array(self.pieces)[np.searchsorted(self.knots, p)]
        return tuple(np.moveaxis(coefficients, -1, 0))


def clamp(low: float, high: float) -> Curve:
    """Return the clamp to [low, high]; to `high` where they are in the wrong order, as in torch."""
    if low >= high:
        return Curve((), ((high, 0.0, 0.0),))
    limits = [(limit, (limit, 0.0, 0.0)) for limit in (low, high) if np.isfinite(limit)]
    pieces = [piece for _, piece in limits]
    pieces.insert(int(np.isfinite(low)), (0.0, 1.0, 0.0))
    return Curve(tuple(limit for limit, _ in limits), tuple(pieces))


def leaky_relu(negative_slope: float) -> Curve:
    """Return p above 0, negative_slope * p below."""
    return Curve((0.0,), ((0.0, negative_slope, 0.0), (0.0, 1.0, 0.0)))


HARDSIGMOID = Curve((-3.0, 3.0), ((0.0, 0.0, 0.0), (3.0, 1.0, 0.0), (6.0, 0.0, 0.0)), 6.0)
HARDSWISH = Curve((-3.0, 3.0), ((0.0, 0.0, 0.0), (0.0, 3.0, 1.0), (0.0, 6.0, 0.0)), 6.0)


@dataclass(frozen=True)
class MaxPool:
    """Max pooling of x [B, C, *sizes]; one number for each dimension of `sizes`."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    ceil_mode: bool

    def box(self, x: Box) -> Box:
        """Return the box of the largest elements."""
        low, high = (self._windows(end).max(-1) for end in (x.lower, x.upper))
        y, finite = between(low, high), np.isfinite(low) & np.isfinite(high)
        return Box(np.where(finite, y.center, 0), np.where(finite, y.radius, np.inf))

    def is_loose(self, x: Box) -> Array:
        """Return which elements may be the largest of a window with several such."""
        lows, highs = (self._windows(end) for end in (x.lower, x.upper))
        may_be = highs > lows.max(-1, keepdims=True)
        may_be &= may_be.sum(-1, keepdims=True) > 1
        result = np.zeros((1, x.center.shape[1], int(np.prod(x.center.shape[2:]))), bool)
        numbers = np.broadcast_to(self._elements(x.center.shape[2:]), may_be.shape)[may_be]
        result[0, np.nonzero(may_be)[1], numbers] = True
        return result.reshape(x.center.shape)

    def pull_back(self, a: Array, x: Box) -> tuple[Array, Array, Array]:
        """Bound by the element with the largest lower end, also from above where it is the largest for certain.

        Elsewhere the largest upper end, a constant, is above.
        """
        lows, highs = (self._windows(end) for end in (x.lower, x.upper))
        largest = lows.argmax(-1)
        others = np.where(np.arange(highs.shape[-1]) == largest[..., None], -np.inf, highs).max(-1)
        is_decided, ceiling = lows.max(-1) >= others, highs.max(-1)
        taken, constant = np.where((a > 0) | is_decided, a, 0), dot(np.where(is_decided, 0, np.minimum(a, 0)), ceiling)
        pixels = int(np.prod(x.center.shape[2:]))
        elements = np.broadcast_to(self._elements(x.center.shape[2:]), lows.shape)
        columns = np.take_along_axis(elements, largest[..., None], -1)[0, ..., 0]
        columns = columns + pixels * np.arange(len(columns)).reshape(-1, *[1] * (columns.ndim - 1))
        pulled = np.zeros((x.center[0].size, len(a)))
        np.add.at(pulled, columns.ravel(), taken.reshape(len(a), -1).T)
        size = np.maximum(np.abs(self._windows(magnitude(x), 0.0)).max(-1), np.abs(ceiling))
        return pulled.T.reshape(len(a), *x.center.shape[1:]), constant, size

    def _windows(self, values: Array, outside: float = -np.inf) -> Array:
        """Return the elements of each window of values [B, C, *sizes], `outside` for padding: [B, C, *size, n]."""
        flat = values.reshape(*values.shape[:2], -1)
        padded = np.concatenate([flat, np.full((*flat.shape[:2], 1), outside)], -1)
        result: Array = padded[..., self._elements(values.shape[2:])]
        return result

    def _elements(self, sizes: Sizes) -> Array:
        if len(sizes) != len(self.kernel):
            raise UnknownLayerError("max pooling of images without channels")
        return _elements_of_windows(self, sizes)


Relaxation = Curve | MaxPool


@cache
def _elements_of_windows(pool: MaxPool, sizes: Sizes) -> Array:
    """Return the flat numbers of the elements of each window, -1 for padding: [*size, n]."""
    numbers, on_image = np.zeros((1,) * 2 * len(sizes), int), np.ones(1, bool)
    axes = zip(sizes, pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True)
    for axis, (size, kernel, stride, padding, dilation) in enumerate(axes):
        positions = pool_windows(size, kernel, stride, padding, dilation, pool.ceil_mode)
        shape = [1] * 2 * len(sizes)
        shape[axis], shape[axis + len(sizes)] = positions.shape
        positions = positions.reshape(shape)
        numbers, on_image = numbers * size + positions, on_image & (positions >= 0) & (positions < size)
    numbers = np.where(on_image, numbers, -1)
    return numbers.reshape(*numbers.shape[: len(sizes)], -1)
