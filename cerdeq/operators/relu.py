"""ReLU, leaky ReLU and absolute values: boxes with their derivative for training, and the lines around them.

The two lines around a ReLU are those of Zhang et al. (2018). Coefficients A on f(p) become, with the mean of the
lines' slopes, half their difference (gap), half the chord's offset, and the side of f on which the chord lies,

    A . f(p) >= (A mean + |A| gap) . p + A . half + side |A| . half

by `pull_through_lines` and its derivatives, by `_ThroughUnits` at unstable units alone, by `_sound_through` less the
costs of rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cerdeq.boxes import Box, outward_ends
from cerdeq.operators.backward import Backward, Pulled, dot, free_choice, magnitude, per_row, rounding_costs, slack
from cerdeq.operators.interval import Context, Interval, between
from cerdeq.operators.record import Operator, options


def relu_interval(ctx: Context, x: Interval, inplace: bool = False) -> Interval:
    """ReLU, exactly: (c, r) where c >= r, else [0, relu(c + r)], times `ctx.relu_shrinkage` there."""
    ctx.preactivations[ctx.step] = x.box
    center, radius = relu_box(ctx, x.center, x.radius)
    return Interval(center, radius, None if x.clean is None else torch.relu(x.clean))


def relu_box(ctx: Context, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre and radius after a ReLU."""
    if not ctx.sound:
        return _ReLUBox.apply(center, radius, ctx.relu_shrinkage)
    half = torch.relu(center + radius) / 2
    limits = torch.finfo(half.dtype)
    half = torch.where(center + radius > 0, half * (1 + 4 * limits.eps) + limits.tiny, half)
    overflowed = ~(center.isfinite() & radius.isfinite())
    center, half = center.masked_fill(overflowed, 0), half.masked_fill(overflowed, torch.inf)
    radius = radius.masked_fill(overflowed, torch.inf)
    active = center >= radius
    return torch.where(active, center, half), torch.where(active, radius, half)


class _ReLUBox(torch.autograd.Function):
    """Centre c and radius r after a ReLU: (c, r) where c >= r, else shrinkage / 2 relu(c + r) for both.

    It saves its results for the backward pass, not c and r: the next layer saves them anyway.
    """

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
        half = torch.relu(center + radius) / 2
        center, radius = torch.maximum(center, half), torch.minimum(radius, half)
        if shrinkage != 1:
            crossing = 1 - torch.sign(center - radius)
            center, radius = (end * (1 - (1 - shrinkage) * crossing) for end in (center, radius))
        ctx.save_for_backward(center, radius)
        ctx.shrinkage = shrinkage
        return center, radius

    @staticmethod
    def backward(ctx: Any, of_center: Tensor, of_radius: Tensor) -> tuple[Tensor, Tensor, None]:
        # Channels last: torch's compiler stores what it sums next as contiguous, and would transpose it otherwise.
        center, radius, of_center, of_radius = (
            tensor.movedim(1, -1) for tensor in (*ctx.saved_tensors, of_center, of_radius)
        )
        always, shared = relu_box_slopes((center, radius), ctx.shrinkage)
        mixed = shared * (of_center + of_radius)
        of_center, of_radius = torch.addcmul(mixed, always, of_center), torch.addcmul(mixed, always, of_radius)
        return of_center.movedim(-1, 1), of_radius.movedim(-1, 1), None


def relu_box_slopes(after: tuple[Tensor, Tensor], shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the derivative of `relu_box` from its results, centre and radius, as two factors.

    Both results are 0 if a unit is never active, and equal if it is unstable. The first factor, 1 if the unit is always
    active, is of each result's own gradient. The second, half the shrinkage if it is unstable, is of the sum of both
    gradients. Signs instead of masks: compiled CPU code takes 50 times as long to store booleans as floats.
    """
    alive, always = torch.sign(after[0]), torch.sign(after[0] - after[1])
    return always, shrinkage / 2 * (alive - always)


def leaky_relu_interval(ctx: Context, x: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    """Leaky ReLU of any slope: the extremes are at the ends of the box, or at 0 where it lies inside."""
    ctx.preactivations[ctx.step] = x.box
    low, high = x.box.lower, x.box.upper
    ends = torch.stack([F.leaky_relu(low, negative_slope), F.leaky_relu(high, negative_slope)])
    lowest, highest = ends.amin(0), ends.amax(0)
    unstable = is_unstable(x.box)
    lowest = torch.where(unstable, lowest.clamp(max=0), lowest)
    highest = torch.where(unstable, highest.clamp(min=0), highest)
    clean = None if x.clean is None else F.leaky_relu(x.clean, negative_slope)
    return between(ctx, lowest, highest, clean, magnitude=low.abs() + high.abs())


def is_unstable(box: Box, **options: Any) -> Tensor:
    """Return where a box has 0 inside: the neurons whose ReLU is not linear."""
    return (box.lower < 0) & (box.upper > 0)


@dataclass(frozen=True)
class Relaxation:
    """The two lines around a leaky ReLU f of p on an interval: its chord, and a line through 0.

    Shapes are [B, *shape]; with K rows of coefficients, `free`, `mean` and `gap` are [B, 1 or K, *shape].

    slope, offset: of the chord, slope * p + offset.
    free: slope of the line through 0.
    convex: whether f is convex. Then the chord is the upper line, else the lower one.
    low, high: the interval of p, clipped at 0 where the pass fixes the sign of p.
    mean, gap: the mean of the two slopes, and half their difference, lower less upper.
    """

    slope: Tensor
    offset: Tensor
    free: Tensor
    convex: bool
    low: Tensor
    high: Tensor
    negative_slope: float
    mean: Tensor
    gap: Tensor

    @property
    def side(self) -> int:
        """-1 if the chord is the upper line, 1 if it is the lower one."""
        return -1 if self.convex else 1

    @property
    def half(self) -> Tensor:
        """Half the chord's offset."""
        return self.offset / 2

    def distance(self, p: Tensor, upper: Tensor) -> Tensor:
        """Return how far the line on one side, above f where `upper`, is from f at p [B, *shape], for one row."""
        chord, through_0 = self.slope * p + self.offset, self.free[:, 0] * p
        line = torch.where(upper == self.convex, chord, through_0)
        return (line - torch.where(p > 0, p, self.negative_slope * p)).abs()


def relaxation_of(ctx: Backward, box: Box, negative_slope: float = 0.0) -> Relaxation:
    """Return the relaxation of leaky ReLU, p or negative_slope * p, on each interval of `box` [B, *shape].

    If 0 is not inside the interval, or ctx.splits fixes the sign of p, all lines are the function itself. The free
    slope lies between `negative_slope` and 1: as ctx.slopes says, else at the end with the smaller enclosed area.
    Offsets are rounded away from the function if `ctx.sound`; slopes may be rounded, an error for `slack`.
    """
    low, high = outward_ends(box) if ctx.sound else (box.lower, box.upper)
    if (sign := ctx.splits.get(ctx.step)) is not None:
        low = torch.where(sign > 0, low.clamp(min=0), torch.where(sign < 0, low.clamp(max=0), low))
        high = torch.where(sign > 0, high.clamp(min=0), torch.where(sign < 0, high.clamp(max=0), high))
    crossing, exact = _crossing(low.detach(), high.detach(), negative_slope)
    slope, offset = _Chord.apply(low, high, negative_slope)
    convex = negative_slope <= 1
    if ctx.sound:
        limits, width = torch.finfo(offset.dtype), high.clamp(min=0) - low.clamp(max=0)
        gaps = (1 - slope).abs() * high.clamp(min=0) + (negative_slope - slope).abs() * -low.clamp(max=0)
        away = crossing * (8 * limits.eps * (gaps + width) + limits.tiny)
        offset = offset + away if convex else offset - away
        offset = torch.where(low <= high, offset, torch.nan)  # not a box
    share = free_choice(ctx, ctx.step, per_row(torch.relu(torch.sign((low + high).detach()))))
    free = per_row(exact) + per_row(crossing) * (negative_slope + share * (1 - negative_slope) - per_row(exact))
    mean, gap = (free + per_row(slope)) / 2, (per_row(slope) - free) * ((-1 if convex else 1) / 2)
    return Relaxation(slope, offset, free, convex, low, high, negative_slope, mean, gap)


def _crossing(low: Tensor, high: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """Return 1 where 0 is inside [low, high], else 0; and the slope of leaky ReLU where it is not.

    Factors, not masks: compiled CPU code takes 50 times as long to store booleans as floats.
    """
    is_negative = torch.sign(-low.clamp(max=0))
    return torch.sign(high.clamp(min=0)) * is_negative, 1 - (1 - negative_slope) * is_negative


class _Chord(torch.autograd.Function):
    """Slope and offset of the chord of leaky ReLU over [low, high], 0 inside; else its slope there, and 0."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(low, high)
        ctx.negative_slope = negative_slope
        crossing, exact = _crossing(low, high, negative_slope)
        below, above = low.clamp(max=0), high.clamp(min=0)
        chord = (above - negative_slope * below) / (above - below + (1 - crossing))
        slope = exact + crossing * (chord - exact)
        # Both ends of the chord, as the rounded slope leaves them.
        gaps = (1 - slope) * above, (negative_slope - slope) * below
        return slope, crossing * (torch.maximum(*gaps) if negative_slope <= 1 else torch.minimum(*gaps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_offset: Tensor) -> tuple[Tensor, Tensor, None]:
        low, high = ctx.saved_tensors
        crossing, _ = _crossing(low, high, ctx.negative_slope)
        per_width = 1 / (high.clamp(min=0) - low.clamp(max=0) + (1 - crossing))
        changes = (1 - ctx.negative_slope) * crossing
        above, below = high * per_width, low * per_width  # the parts of the interval on both sides of 0
        of_slope = of_slope * per_width
        of_low = changes * above * (of_slope - above * of_offset)
        return of_low, changes * below * (below * of_offset - of_slope), None


def split_terms(ctx: Backward) -> Tensor | None:
    """Return b s [B, K, *shape], s the signs of the pass's splits and b >= 0 a free choice; None if there are none.

    A . f(p) >= A . f(p) - (b s) . p if every split s p >= 0 holds (beta-CROWN; Wang et al. 2021).
    """
    sign, multiplier = ctx.splits.get(ctx.step), ctx.slopes.get(split_name(ctx.step))
    if sign is None or multiplier is None:
        return None
    return per_row(sign) * (multiplier.clamp(min=0) if ctx.sound else multiplier)


def split_name(step: str) -> str:
    """Return the name of the multipliers of a step's splits among a pass's free choices."""
    return f"{step}/split"


def line_share_name(step: str) -> str:
    """Return the name of an equilibrium's free choices: how much of each coefficient goes through the lines."""
    return f"{step}/line_share"


def pull_through_lines(relaxation: Relaxation, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients on p, and their constant [B, K], that bound coefficients . f(p) from below, but for rounding.

    Positive ones take the lower line, negative ones the upper: the lines' mean times the coefficients, and half their
    difference times the magnitudes.
    """
    return _Through.apply(coefficients, relaxation.mean, relaxation.gap, relaxation.half, relaxation.side)


class _Through(torch.autograd.Function):
    """A mean + |A| gap, and A . half + side |A| . half, with a backward pass that is element-wise.

    Autograd's own takes twice as many passes over tensors as large as A, and products of vectors that no compiler
    fuses.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, side: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, mean, gap, half)
        ctx.side = side
        a, mean, gap = _channels_last(a, mean, gap)
        pulled, constant = _pulled_through(a, mean, gap, half.movedim(1, -1), side)
        return pulled.movedim(-1, 2), constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pulled: Tensor, of_constant: Tensor) -> tuple[Tensor | None, ...]:
        half, (a, mean, gap, of_pulled) = ctx.saved_tensors[3], _channels_last(*ctx.saved_tensors[:3], of_pulled)
        outer = of_pulled, of_constant
        of_a, of_mean, of_gap, of_half = _gradients_through(
            a, mean, gap, half.movedim(1, -1), ctx.side, outer, ctx.needs_input_grad[3]
        )
        gradients = (gradient.movedim(-1, 2) for gradient in (of_a, of_mean, of_gap))
        return *gradients, None if of_half is None else of_half.movedim(-1, 1), None


def _channels_last(*coefficients: Tensor) -> Iterator[Tensor]:
    """Return views of coefficients [B, K, C, ...] as [B, K, ..., C], for the reason that `_ReLUBox` has."""
    return (part.movedim(2, -1) for part in coefficients)


class _ThroughUnits(torch.autograd.Function):
    """`_Through` at the unstable units, and A times `exact` [1, *shape], the slope of f, at all others.

    units: [U], flat indices of the unstable ones. mean, gap, half: only of these. splits: [B, K, U], subtracted there.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, mean: Tensor, gap: Tensor, splits: Tensor, half: Tensor, side: int, units: Tensor,
        exact: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        of_units = a.flatten(2).index_select(2, units)
        ctx.save_for_backward(of_units, mean, gap, half, units, exact)
        ctx.side = side
        pulled, constant = _pulled_through(of_units, mean, gap, half, side)
        return _replaced(a * exact, units, pulled - splits), constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pulled: Tensor, of_constant: Tensor) -> tuple[Tensor | None, ...]:
        a, mean, gap, half, units, exact = ctx.saved_tensors
        of_units = of_pulled.flatten(2).index_select(2, units)
        of_a, of_mean, of_gap, _ = _gradients_through(a, mean, gap, half, ctx.side, (of_units, of_constant), False)
        return _replaced(of_pulled * exact, units, of_a), of_mean, of_gap, -of_units, None, None, None, None


def _replaced(coefficients: Tensor, units: Tensor, values: Tensor) -> Tensor:
    """Write values [B, K, U] at these units into coefficients [B, K, *shape], and return them."""
    coefficients = coefficients.contiguous()
    coefficients.flatten(2).index_copy_(2, units, values)
    return coefficients


def _pulled_through(a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return `_Through` without gradients."""
    sizes = a.abs()
    constant = dot(Backward(sound=False), a + side * sizes, half)
    return torch.addcmul(a * mean, sizes, gap), constant


def _gradients_through(
    a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, side: int, outer: tuple[Tensor, Tensor], for_half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of a, mean, gap and, if wanted, half, from those of both results."""
    of_pulled, of_constant = outer
    signs, of_constant = a.sgn(), of_constant.view(*of_constant.shape, *[1] * (a.dim() - 2))
    shared = of_constant * per_row(half)
    of_a = of_pulled * mean + shared + signs * (of_pulled * gap + side * shared)
    products = of_pulled * a
    of_half = (of_constant * (a + side * a.abs())).sum(1) if for_half else None
    return of_a, products.sum_to_size(mean.shape), (products * signs).sum_to_size(gap.shape), of_half


def relu_backward(ctx: Backward, coefficients: Tensor, x: Interval, inplace: bool = False) -> Pulled:
    """ReLU."""
    return leaky_relu_backward(ctx, coefficients, x, 0.0)


def leaky_relu_backward(
    ctx: Backward, coefficients: Tensor, x: Interval, negative_slope: float = 0.01, inplace: bool = False
) -> Pulled:
    """Leaky ReLU of any slope."""
    negative_slope = float(negative_slope)  # arithmetic in a tensor's or numpy's own type could lose digits
    if (units := ctx.units.get(ctx.step)) is not None:
        return _through_units(ctx, units, coefficients, x, negative_slope)
    relaxation = ctx.constant("relaxation", lambda: relaxation_of(ctx, x.box, negative_slope))
    if ctx.relaxations is not None:
        ctx.relaxations[ctx.step] = coefficients, relaxation
    if ctx.sound:
        pulled, constant = _sound_through(ctx, relaxation, coefficients, x)
    else:
        pulled, constant = pull_through_lines(relaxation, coefficients)
    if (splits := split_terms(ctx)) is not None:
        pulled, constant = pulled - splits, constant - slack(ctx, splits, _magnitude_on_lines(relaxation, x), 4)
    return Pulled((pulled,), constant)


def _through_units(
    ctx: Backward, units: Tensor, coefficients: Tensor, x: Interval, negative_slope: float
) -> Pulled:  # fmt: skip
    """Return what `leaky_relu_backward` does, in a few passes over its unstable units; rounding is not counted."""
    box = x.of(slice(0, 1)).box
    relaxation = relaxation_of(
        ctx, Box(*(end.flatten(1)[:, units] for end in (box.center, box.radius))), negative_slope
    )
    if ctx.relaxations is not None:
        ctx.relaxations[ctx.step] = coefficients.flatten(2)[..., units], relaxation
    exact = torch.where(box.lower < 0, negative_slope, torch.ones_like(box.lower))
    splits = split_terms(ctx)
    splits = relaxation.mean.new_zeros(()) if splits is None else splits
    lines = relaxation.mean, relaxation.gap, splits, relaxation.half, relaxation.side
    pulled, constant = _ThroughUnits.apply(coefficients, *lines, units, exact.unsqueeze(1))
    return Pulled((pulled,), constant)


def _sound_through(ctx: Backward, relaxation: Relaxation, coefficients: Tensor, x: Interval) -> tuple[Tensor, Tensor]:
    """Return what `pull_through_lines` does in fewer passes, the constant less the costs of rounding."""

    def weights() -> tuple[Tensor, ...]:
        costs, rest = rounding_costs(_magnitude_on_lines(relaxation, x), 5)  # one more for the difference below
        return relaxation.mean, relaxation.gap, relaxation.half, relaxation.side * relaxation.half - costs, rest

    mean, gap, half, of_sizes, rest = ctx.constant("weights", weights)
    sizes = coefficients.abs()
    constant = dot(ctx, coefficients, half) + dot(ctx, sizes, of_sizes) - rest
    return sizes.mul_(gap).addcmul_(coefficients, mean), constant


def _magnitude_on_lines(relaxation: Relaxation, x: Interval) -> Tensor:
    """Return the largest magnitudes on the lines around an activation."""
    return magnitude(x) * max(1.0, abs(relaxation.negative_slope)) + relaxation.offset.abs()


_ACTIVATION: dict[str, Any] = {
    "needs_tighter_box": is_unstable,
    "preactivation": lambda result, x, *args, **kwargs: x,
    "windows": "constants",
}
RECORDS = (
    Operator(
        "relu", relu_interval, (F.relu, torch.relu, Tensor.relu), {nn.ReLU: options()}, relu_backward, **_ACTIVATION
    ),
    Operator(
        "leaky_relu", leaky_relu_interval, (F.leaky_relu,), {nn.LeakyReLU: options("negative_slope")},
        leaky_relu_backward, **_ACTIVATION,
    ),
    Operator(
        "absolute", lambda ctx, x: leaky_relu_interval(ctx, x, -1.0),
        (torch.abs, torch.absolute, Tensor.abs, Tensor.absolute), {},
        lambda ctx, a, x: leaky_relu_backward(ctx, a, x, -1.0), **_ACTIVATION,
    ),
)  # fmt: skip
