"""Hard sigmoid and hard swish: polynomials between -3 and 3, straight lines beyond.

Lines around them are right by construction: whatever its slope, a line's offset is the extreme of curve less slope.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.boxes import Box, outward_ends
from cerdeq.operators.backward import Backward, Pulled, dot, magnitude, per_row, slack
from cerdeq.operators.interval import Context, Interval, between, is_wide
from cerdeq.operators.record import Operator, options

_LIMITS = torch.finfo(torch.float64)
_KNOTS = -3.0, 3.0


@dataclass(frozen=True)
class HardCurve:
    """A continuous function of p.

    pieces: (c, b, a) of (c + b p + a p^2) / 6, for p below -3, between -3 and 3, and above.
    """

    function: Callable[[Tensor], Tensor]
    pieces: tuple[tuple[float, float, float], ...]

    def interval(self, ctx: Context, x: Interval, inplace: bool = False) -> Interval:
        """Return the box between the smallest and the largest value."""
        ctx.preactivations[ctx.step] = x.box
        low, high = _ends(x.box, ctx.sound)
        least, most = self._extremes(torch.zeros_like(low), low, high, ctx.sound)
        clean = None if x.clean is None else self.function(x.clean)
        return between(ctx, least.to(x.center), most.to(x.center), clean)

    def backward(self, ctx: Backward, coefficients: Tensor, x: Interval, inplace: bool = False) -> Pulled:
        """Return the lower line times positive coefficients, and the upper one times negative ones."""

        def lines() -> tuple[Tensor, ...]:
            below, above = self._lines(*_ends(x.box, ctx.sound), coefficients.dtype, ctx.sound)
            size = torch.maximum(below[0].abs(), above[0].abs()) * magnitude(x)
            return *below, *above, size + torch.maximum(below[1].abs(), above[1].abs())

        slope_below, offset_below, slope_above, offset_above, size = ctx.constant("lines", lines)
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        pulled = positive * per_row(slope_below).to(coefficients) + negative * per_row(slope_above).to(coefficients)
        constant = dot(ctx, positive, offset_below) + dot(ctx, negative, offset_above)
        return Pulled((pulled,), constant - slack(ctx, coefficients, size, 5))

    def _lines(
        self, low: Tensor, high: Tensor, dtype: torch.dtype, sound: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return slope and offset of a line below the curve, and of one above it.

        Of the slopes between two of the ends and of the knots inside, and of the one in the middle, those whose lines
        are nearest in the middle. Slopes are numbers of `dtype`.
        """
        middle, points = (low + high) / 2, [low, *(_clipped(knot, low, high) for knot in _KNOTS), high]
        values, (_, b, a) = [self._at(point)[0] for point in points], self._piece(middle)
        slopes = [(b + 2 * a * middle) / 6]
        for i, j in combinations(range(len(points)), 2):
            width = points[j] - points[i]
            slopes.append((values[j] - values[i]) / torch.where(width > 0, width, torch.inf))
        slopes = [slope.to(dtype).to(low) for slope in slopes]
        ends = [self._extremes(slope, low, high, sound) for slope in slopes]
        every, least, most = torch.stack(slopes), *(torch.stack(side) for side in zip(*ends, strict=True))
        below = (least + every * middle).argmax(0, keepdim=True)
        above = (most + every * middle).argmin(0, keepdim=True)
        lines = [
            [part.gather(0, index)[0] for part in (every, side)] for index, side in ((below, least), (above, most))
        ]
        return (lines[0][0], lines[0][1]), (lines[1][0], lines[1][1])

    def _extremes(self, slope: Tensor, low: Tensor, high: Tensor, sound: bool) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value of the curve less slope * p, rounded outwards if `sound`.

        They lie at the ends, at knots, and where the derivative is 0. That such a point is rounded costs the square of
        a rounding error, which is less than what is counted for the value there.
        """
        points = [low, high, *(_clipped(knot, low, high) for knot in _KNOTS)]
        _, b, a = self.pieces[1]
        if a:
            flat = ((6 * slope - b) / (2 * a)).clamp(*_KNOTS)
            points.append(_clipped(flat, low, high))
        smallest, largest = [], []
        for p in points:
            value, size = self._at(p)
            difference = value - slope * p
            rounding = (8 * _LIMITS.eps * (size + (slope * p).abs()) + 4 * _LIMITS.tiny) * sound
            smallest.append(difference - rounding)
            largest.append(difference + rounding)
        return torch.stack(smallest).amin(0), torch.stack(largest).amax(0)

    def _at(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the curve at p, and the magnitudes of what it is computed from."""
        c, b, a = self._piece(p)
        return (c + p * (b + a * p)) / 6, (c.abs() + p.abs() * (b.abs() + (a * p).abs())) / 6

    def _piece(self, p: Tensor) -> list[Tensor]:
        """Return the coefficients of the polynomial at p."""
        low, high = _KNOTS
        return [
            torch.where(p < low, below, torch.where(p > high, above, torch.full_like(p, inside)))
            for below, inside, above in zip(*self.pieces, strict=True)
        ]


def _clipped(p: Tensor | float, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(low.clamp(min=p), high)


def _ends(box: Box, sound: bool) -> tuple[Tensor, Tensor]:
    """Return both ends of a box; if `sound` in float64 and rounded outwards, else NaN where they have overflowed."""
    if not sound:
        return box.lower, box.upper
    low, high = outward_ends(box.double())
    finite = low.isfinite() & high.isfinite()
    return torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)


HARDSIGMOID = HardCurve(F.hardsigmoid, ((0.0, 0.0, 0.0), (3.0, 1.0, 0.0), (6.0, 0.0, 0.0)))
HARDSWISH = HardCurve(F.hardswish, ((0.0, 0.0, 0.0), (0.0, 3.0, 1.0), (0.0, 6.0, 0.0)))
RECORDS = (
    Operator(
        "hardsigmoid", HARDSIGMOID.interval, (F.hardsigmoid,), {nn.Hardsigmoid: options()}, HARDSIGMOID.backward,
        needs_tighter_box=is_wide,
    ),
    Operator(
        "hardswish", HARDSWISH.interval, (F.hardswish,), {nn.Hardswish: options()}, HARDSWISH.backward,
        needs_tighter_box=is_wide,
    ),
)  # fmt: skip
