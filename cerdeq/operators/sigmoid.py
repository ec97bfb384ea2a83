"""Sigmoid and tanh: interval rules, and the two lines around each on a box (Zhang et al. 2018).

Lines are right by construction: whatever its slope, a line's offset is the largest difference of curve and slope, with
libraries' errors and rounding counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cerdeq.boxes import Box, outward_ends
from cerdeq.operators.backward import Backward, Pulled, free_choice, magnitude, per_row, slack
from cerdeq.operators.interval import Context, Interval, is_wide
from cerdeq.operators.record import Operator, options

_EPS, _TINY = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny
_ERROR = 64 * _EPS  # relative, of sigmoid and tanh in float64; libraries promise at most four units in the last place
_SMALLEST_SLOPE = 2.0**-24  # smaller ones become 0, so that no product with them underflows
_BISECTIONS = 20


@dataclass(frozen=True)
class Curve:
    """A rising function f, convex below 0 and concave above, with f(-p) = total - f(p) and f < 1.

    slope: its derivative, accurate in the tails too.
    """

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    total: float

    def at_least(self, p: Tensor, sound: bool) -> Tensor:
        """Return an upper bound of f(p), p in float64 if `sound`."""
        value = self.function(p)
        return (value + (_ERROR * value.abs() + 4 * _TINY)).clamp(max=1) if sound else value

    def interval(self, ctx: Context, x: Interval) -> Interval:
        """Return the box between the values at both ends."""
        clean = None if x.clean is None else self.function(x.clean)
        if not ctx.sound:
            low, high = self.function(x.box.lower), self.function(x.box.upper)
            return Interval((low + high) / 2, (high - low) / 2, clean)
        start, stop = _ends(x.box, sound=True)
        low, high = self.total - self.at_least(-start, sound=True) - _EPS * self.total, self.at_least(stop, sound=True)
        limits, center = torch.finfo(x.center.dtype), ((low + high) / 2).to(x.center)
        radius = torch.maximum(high - center.double(), center.double() - low) + 4 * _EPS * (low.abs() + high.abs())
        return Interval(center, (radius * (1 + 2 * limits.eps) + limits.tiny).to(center), clean)

    def backward(self, ctx: Backward, coefficients: Tensor, x: Interval) -> Pulled:
        """Return the lower line times positive coefficients, and the upper one times negative ones."""

        def lines() -> tuple[Tensor, ...]:
            low, high = (per_row(end) for end in _ends(x.box, ctx.sound))
            slope, offset = self._upper_line(ctx, f"{ctx.step}/lower", -high, -low, coefficients.dtype)
            below = slope, self.total - offset - 2 * _EPS * (self.total + offset.abs()) * ctx.sound
            above = self._upper_line(ctx, f"{ctx.step}/upper", low, high, coefficients.dtype)
            largest = torch.maximum(below[0], above[0])
            size = torch.where(largest > 0, largest * per_row(magnitude(x)), 0)
            return *below, *above, (size + torch.maximum(below[1].abs(), above[1].abs())).amax(1)

        low_slope, low_offset, high_slope, high_offset, size = ctx.constant("lines", lines)
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        pulled = positive * low_slope.to(coefficients) + negative * high_slope.to(coefficients)
        constant = (positive * low_offset + negative * high_offset).flatten(2).sum(2)
        return Pulled((pulled,), constant - slack(ctx, coefficients, size, 5))

    def _upper_line(
        self, ctx: Backward, name: str, low: Tensor, high: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return slope and offset of a line above f on [low, high], [B, 1 or K, *shape]; float64 if `ctx.sound`.

        It is the chord where that is above f, else a tangent at a point between the first possible one and `high`.
        The free choice `name` says where; by default in the middle of the interval, if that is possible.
        """
        finite = low.isfinite() & high.isfinite()
        start, stop = torch.where(finite, low, 0), torch.where(finite, high, 0)
        width = stop - start
        chord = (self.function(stop) - self.function(start)) / torch.where(width > 0, width, 1)
        first = self._first_tangent(start, stop)
        middle = ((start + stop) / 2 - first) / torch.where(stop > first, stop - first, 1)
        point = first + free_choice(ctx, name, middle.clamp(0, 1).detach()) * (stop - first)
        slope = torch.where(chord <= self.slope(stop), chord, self.slope(point))
        slope = torch.where(finite & (slope >= _SMALLEST_SLOPE), slope, 0)
        if ctx.sound:
            slope = slope.to(dtype).double()
        return slope, torch.where(
            slope > 0, self._offset(ctx, slope, start, stop, point), self.at_least(high, ctx.sound)
        )

    @torch.no_grad()
    def _first_tangent(self, low: Tensor, high: Tensor) -> Tensor:
        """Return about the smallest point of [max(low, 0), high] at which the tangent is above f at `low`."""
        start, stop, at_low = low.clamp(min=0), high, self.function(low)
        for _ in range(_BISECTIONS):
            middle = (start + stop) / 2
            above = self.function(middle) + self.slope(middle) * (low - middle) >= at_low
            start, stop = torch.where(above, start, middle), torch.where(above, middle, stop)
        return stop

    def _offset(self, ctx: Backward, slope: Tensor, low: Tensor, high: Tensor, point: Tensor) -> Tensor:
        """Return at least the largest f(p) - slope * p on [low, high]; at least 0 if `ctx.sound`, differentiable else.

        Below 0, where f is convex, it is largest at an end. Above, f is below its tangent at any point t >= 0, and that
        less the slope is linear: largest at an end, too.
        """
        error = 16 * _EPS if ctx.sound else 0.0

        def at(p: Tensor) -> Tensor:
            return self.at_least(p, ctx.sound) - slope * p + error * (1 + slope * p.abs())

        t = point.clamp(min=0)
        steepness = self.slope(t)
        doubt = 4 * _ERROR * steepness + _TINY if ctx.sound else 0.0

        def on_tangent(p: Tensor) -> Tensor:
            distance = p - t
            largest = (steepness + slope) * (p.abs() + t)
            return at(t) + (steepness - slope) * distance + doubt * distance.abs() + error * largest

        concave = torch.maximum(on_tangent(low.clamp(min=0)), on_tangent(high))
        ends = torch.maximum(at(low), at(high))
        return torch.where(high > 0, torch.maximum(ends, concave), ends)


def _ends(box: Box, sound: bool) -> tuple[Tensor, Tensor]:
    """Return both ends of a box; if `sound` in float64 and rounded outwards, infinite where they have overflowed."""
    if not sound:
        return box.lower, box.upper
    low, high = outward_ends(box.double())
    return low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)


def _sigmoid_slope(p: Tensor) -> Tensor:
    return torch.sigmoid(p) * torch.sigmoid(-p)


SIGMOID = Curve(torch.sigmoid, _sigmoid_slope, total=1.0)
TANH = Curve(torch.tanh, lambda p: 4 * _sigmoid_slope(2 * p), total=0.0)
RECORDS = (
    Operator(
        "sigmoid", SIGMOID.interval, (torch.sigmoid, Tensor.sigmoid), {nn.Sigmoid: options()}, SIGMOID.backward,
        needs_tighter_box=is_wide,
    ),
    Operator(
        "tanh", TANH.interval, (torch.tanh, Tensor.tanh), {nn.Tanh: options()}, TANH.backward, needs_tighter_box=is_wide
    ),
)  # fmt: skip
