"""Backward rules of what is not affine: the two lines around a ReLU (Zhang et al. 2018), and max pooling."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cerdeq.boxes import Box, outward_ends
from cerdeq.rules.activations import limits_of
from cerdeq.rules.interval import Interval, pair
from cerdeq.rules.linear import Backward, Pulled, dot, magnitude, per_row, rounding_costs, slack


@dataclass(frozen=True)
class Lines:
    """Around an activation f on a box: the chord, slope * p + offset, on one side, a line through 0 on the other.

    All [B, *shape], the free slope [B, 1 or K, *shape]. f lies below the chord where `convex`, above it otherwise.
    low, high: the interval, cut where the pass says of which sign p is.
    mean, gap: of the slopes, their mean and half of lower less upper, both [B, 1 or K, *shape].
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
    def sign(self) -> int:
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


def lines(ctx: Backward, box: Box, negative_slope: float = 0.0) -> Lines:
    """Return the lines around leaky ReLU, p or negative_slope * p, on each interval of `box` [B, *shape].

    If 0 is not inside the interval, or ctx.splits fixes the sign of p, all lines are the function itself. The free
    slope lies between `negative_slope` and 1: as ctx.slopes says, else at the end with the smaller enclosed area.
    Offsets are rounded away from the function if `ctx.sound`; slopes may be rounded, an error for `slack`.
    """
    low, high = _cut(ctx, *(outward_ends(box) if ctx.sound else (box.lower, box.upper)))
    # Factors of 0 and 1, not masks: compiled CPU code takes 50 times as long to store booleans as floats.
    below, above = low.clamp(max=0), high.clamp(min=0)
    crossing = torch.sign(above) * torch.sign(-below)
    exact = 1 - (1 - negative_slope) * torch.sign(-below)
    chord = (above - negative_slope * below) / (above - below + (1 - crossing))
    slope = exact + crossing * (chord - exact)
    convex = negative_slope <= 1
    # Both ends of the chord, as the rounded slope leaves them.
    gaps = (1 - slope) * above, (negative_slope - slope) * below
    offset = crossing * (torch.maximum(*gaps) if convex else torch.minimum(*gaps))
    if ctx.sound:
        limits = torch.finfo(offset.dtype)
        away = crossing * (8 * limits.eps * (gaps[0].abs() + gaps[1].abs() + above - below) + limits.tiny)
        offset = offset + away if convex else offset - away
        offset = torch.where(low <= high, offset, torch.nan)  # not a box
    share = free_choice(ctx, ctx.step, per_row((high > -low).to(low)))
    free = per_row(exact) + per_row(crossing) * (negative_slope + share * (1 - negative_slope) - per_row(exact))
    mean, gap = (free + per_row(slope)) / 2, (per_row(slope) - free) * ((-1 if convex else 1) / 2)
    return Lines(slope, offset, free, convex, low, high, negative_slope, mean, gap)


def _cut(ctx: Backward, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of an interval of p, cut at 0 where the pass fixes the sign of p."""
    if (sign := ctx.splits.get(ctx.step)) is None:
        return low, high
    low = torch.where(sign > 0, low.clamp(min=0), torch.where(sign < 0, low.clamp(max=0), low))
    return low, torch.where(sign > 0, high.clamp(min=0), torch.where(sign < 0, high.clamp(max=0), high))


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


def free_choice(ctx: Backward, name: str, default: Tensor) -> Tensor:
    """Return the free choice `name` of this pass, [B, 1 or K, *shape], within 0 and 1; any is sound."""
    choice = ctx.slopes.get(name, default)
    if ctx.choices is not None:
        ctx.choices[name] = choice
    return choice.clamp(0, 1) if ctx.sound else choice  # the clamp has no gradient at its ends


def through(ctx: Backward, around: Lines, coefficients: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return coefficients on p, and their constant [B, K], that bound coefficients . f(p) from below.

    Positive ones take the lower line, negative ones the upper: the lines' mean times the coefficients, and half their
    difference times the magnitudes. sizes: |coefficients|, where they are at hand.
    """
    if not ctx.sound:
        return _Through.apply(coefficients, around.mean, around.gap, around.half, around.sign)
    sizes = coefficients.abs() if sizes is None else sizes
    constant = dot(ctx, coefficients, around.half) + around.sign * dot(ctx, sizes, around.half)
    return (coefficients * around.mean).addcmul_(sizes, around.gap), constant


class _Through(torch.autograd.Function):
    """A mean + |A| gap, and A . half + sign |A| . half, with a backward pass that is element-wise.

    Autograd's own takes twice as many passes over tensors as large as A, and products of vectors that no compiler
    fuses.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, mean, gap, half)
        ctx.sign = sign
        return _pulled_through(a, mean, gap, half, sign)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pulled: Tensor, of_constant: Tensor) -> tuple[Tensor | None, ...]:
        a, mean, gap, half = ctx.saved_tensors
        outer = of_pulled, of_constant
        return *_gradients_through(a, mean, gap, half, ctx.sign, outer, ctx.needs_input_grad[3]), None


class _ThroughUnits(torch.autograd.Function):
    """`_Through` at some units less `splits` [B, K, U], and at the others A times `exact` [1, *shape]."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, mean: Tensor, gap: Tensor, splits: Tensor, half: Tensor, sign: int, units: Tensor,
        exact: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        of_units = a.flatten(2).index_select(2, units)
        ctx.save_for_backward(of_units, mean, gap, half, units, exact)
        ctx.sign = sign
        pulled, constant = _pulled_through(of_units, mean, gap, half, sign)
        return _replaced(a * exact, units, pulled - splits), constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pulled: Tensor, of_constant: Tensor) -> tuple[Tensor | None, ...]:
        a, mean, gap, half, units, exact = ctx.saved_tensors
        of_units = of_pulled.flatten(2).index_select(2, units)
        of_a, of_mean, of_gap, _ = _gradients_through(a, mean, gap, half, ctx.sign, (of_units, of_constant), False)
        return _replaced(of_pulled * exact, units, of_a), of_mean, of_gap, -of_units, None, None, None, None


def _replaced(coefficients: Tensor, units: Tensor, values: Tensor) -> Tensor:
    """Write values [B, K, U] at these units into coefficients [B, K, *shape], and return them."""
    coefficients = coefficients.contiguous()
    coefficients.flatten(2).index_copy_(2, units, values)
    return coefficients


def _pulled_through(a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Return `_Through` without gradients."""
    sizes, pass_back = a.abs(), Backward(sound=False)
    constant = dot(pass_back, a, half) + sign * dot(pass_back, sizes, half)
    return torch.addcmul(a * mean, sizes, gap), constant


def _gradients_through(
    a: Tensor, mean: Tensor, gap: Tensor, half: Tensor, sign: int, outer: tuple[Tensor, Tensor], for_half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of a, mean, gap and, if wanted, half, from those of both results."""
    of_pulled, of_constant = outer
    signs, of_constant = a.sgn(), of_constant.view(*of_constant.shape, *[1] * (a.dim() - 2))
    shared = of_constant * per_row(half)
    of_a = of_pulled * mean + shared + signs * (of_pulled * gap + sign * shared)
    products = of_pulled * a
    of_half = (of_constant * (a + sign * a.abs())).sum(1) if for_half else None
    return of_a, products.sum_to_size(mean.shape), (products * signs).sum_to_size(gap.shape), of_half


def leaky_relu(
    ctx: Backward, coefficients: Tensor, x: Interval, negative_slope: float = 0.01, inplace: bool = False
) -> Pulled:
    """Leaky ReLU of any slope."""
    negative_slope = float(negative_slope)  # arithmetic in a tensor's or numpy's own type could lose digits
    if (units := ctx.units.get(ctx.step)) is not None:
        return _through_units(ctx, units, coefficients, x, negative_slope)
    around = ctx.constant("lines", lambda: lines(ctx, x.box, negative_slope))
    if ctx.seen is not None:
        ctx.seen[ctx.step] = coefficients, around
    if ctx.sound:
        pulled, constant = _sound_through(ctx, around, coefficients, x)
    else:
        pulled, constant = through(ctx, around, coefficients)
    if (splits := split_terms(ctx)) is not None:
        pulled, constant = pulled - splits, constant - slack(ctx, splits, _reach(around, x), 4)
    return Pulled((pulled,), constant)


def _through_units(
    ctx: Backward, units: Tensor, coefficients: Tensor, x: Interval, negative_slope: float
) -> Pulled:  # fmt: skip
    """Return what `leaky_relu` does, in a few passes over its unstable units; rounding is not counted."""
    box = x.of(slice(0, 1)).box
    around = lines(ctx, Box(*(end.flatten(1)[:, units] for end in (box.center, box.radius))), negative_slope)
    if ctx.seen is not None:
        ctx.seen[ctx.step] = coefficients.flatten(2)[..., units], around
    exact = torch.where(box.lower < 0, negative_slope, torch.ones_like(box.lower))
    splits = split_terms(ctx)
    splits = around.mean.new_zeros(()) if splits is None else splits
    pulled = _ThroughUnits.apply(
        coefficients, around.mean, around.gap, splits, around.half, around.sign, units, exact.unsqueeze(1)
    )
    return Pulled((pulled[0],), pulled[1])


def _sound_through(ctx: Backward, around: Lines, coefficients: Tensor, x: Interval) -> tuple[Tensor, Tensor]:
    """Return what `through` does, the constant less the costs of rounding, in fewer passes over coefficients."""

    def weights() -> tuple[Tensor, ...]:
        costs, rest = rounding_costs(_reach(around, x), 5)  # one more for the difference below
        return around.mean, around.gap, around.half, around.sign * around.half - costs, rest

    mean, gap, half, of_sizes, rest = ctx.constant("weights", weights)
    sizes = coefficients.abs()
    constant = dot(ctx, coefficients, half) + dot(ctx, sizes, of_sizes) - rest
    return sizes.mul_(gap).addcmul_(coefficients, mean), constant


def _reach(around: Lines, x: Interval) -> Tensor:
    """Return the largest magnitudes on the lines around an activation."""
    return magnitude(x) * max(1.0, abs(around.negative_slope)) + around.offset.abs()


def relu(ctx: Backward, coefficients: Tensor, x: Interval, inplace: bool = False) -> Pulled:
    """ReLU."""
    return leaky_relu(ctx, coefficients, x, 0.0)


def absolute(ctx: Backward, coefficients: Tensor, x: Interval) -> Pulled:
    """Absolute value: a leaky ReLU of slope -1."""
    return leaky_relu(ctx, coefficients, x, -1.0)


def clamp(
    ctx: Backward, coefficients: Tensor, x: Interval, min: float | None = None, max: float | None = None
) -> Pulled:  # fmt: skip
    """Clamp, between two lines: each through a kink, with the slope of the chord to the box's far end, or slope 0.

    The one of the smaller area is taken. The offsets are the extremes of f(p) - slope p, at the kinks and at the ends.
    """
    limits = limits_of(min, max)

    def weights() -> tuple[Tensor, ...]:
        low, high = outward_ends(x.box) if ctx.sound else (x.box.lower, x.box.upper)
        kinks = [torch.minimum(low.clamp(min=limits[0]), high), torch.maximum(high.clamp(max=limits[1]), low)]
        points = torch.stack([low, *kinks, high])
        values = points.clamp(*limits)
        slopes = [
            torch.where((far - kink).abs() >= (kink - near).abs(), (value - at_kink) / (far - kink + (far == kink)), 0)
            for near, kink, far, at_kink, value in (
                (low, kinks[0], high, values[1], values[3]), (high, kinks[1], low, values[2], values[0])
            )
        ]  # fmt: skip
        below, above = (torch.where(high > low, slope, 0) for slope in slopes)
        ends = [(values - below * points).amin(0), (values - above * points).amax(0)]
        ends = [torch.where(low <= high, end, torch.nan) for end in ends]  # not a box
        reach = magnitude(x) + values.abs().amax(0) + torch.maximum(ends[0].abs(), ends[1].abs())
        costs, rest = rounding_costs(reach, 8)
        mean, gap = per_row(below + above) / 2, per_row(below - above) / 2
        return mean, gap, (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2 - costs * ctx.sound, rest * ctx.sound

    mean, gap, half, of_sizes, rest = ctx.constant("weights", weights)
    sizes = coefficients.abs()
    constant = dot(ctx, coefficients, half) + dot(ctx, sizes, of_sizes) - rest
    return Pulled((coefficients * mean + sizes * gap,), constant)


def hardtanh(
    ctx: Backward, coefficients: Tensor, x: Interval, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Pulled:
    """Clamp to [-1, 1], or to other limits."""
    return clamp(ctx, coefficients, x, min_val, max_val)


def relu6(ctx: Backward, coefficients: Tensor, x: Interval, inplace: bool = False) -> Pulled:
    """Clamp to [0, 6]."""
    return clamp(ctx, coefficients, x, 0.0, 6.0)


def max_pool2d(
    ctx: Backward, coefficients: Tensor, x: Interval,
    kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
) -> Pulled:  # fmt: skip
    """Max pooling, bounded from below by the element with the largest lower end.

    From above by the same element if its lower end reaches every other's upper end, else by the largest upper end, a
    constant (Singh et al. 2019).
    """
    low, high = outward_ends(x.box) if ctx.sound else (x.box.lower, x.box.upper)
    windows = Windows(coefficients.shape[3:], kernel_size, stride or kernel_size, padding, dilation)
    floor, element = windows.of(low.clamp(min=torch.finfo(low.dtype).min), -torch.inf).max(4)
    lows, highs = windows.of(low, -torch.inf), windows.of(high, -torch.inf)
    decided = floor >= highs.scatter(4, element.unsqueeze(4), -torch.inf).amax(4)
    ceiling = torch.where(decided, 0, highs.amax(4))
    proper = (lows <= highs).all(4) & (floor > -torch.inf)  # all are boxes, and the window is not padding alone
    ceiling = torch.where(proper, ceiling, torch.nan)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    pulled = windows.scattered(positive + negative * per_row(decided.to(coefficients)), element, low.shape[2:])
    size = torch.maximum(windows.of(magnitude(x), 0).amax(4), ceiling.abs())
    return Pulled((pulled,), dot(ctx, negative, ceiling) - slack(ctx, coefficients, size, highs.shape[4]))


class Windows:
    """The elements under each of the h x w windows of a pooling, some of them in the padding."""

    def __init__(self, outputs: torch.Size, kernel: Any, stride: Any, padding: Any, dilation: Any):
        axes = zip(outputs, pair(kernel), pair(stride), pair(dilation), strict=True)
        positions = [torch.arange(n)[:, None] * s + torch.arange(k) * d for n, k, s, d in axes]
        self.rows, self.columns = positions[0][:, None, :, None], positions[1][None, :, None, :]  # of the padded image
        self.padding = pair(padding)

    def of(self, image: Tensor, outside: float) -> Tensor:
        """Return the elements of an image [B, C, H, W], `outside` beyond it: [B, C, h, w, elements]."""
        (top, left), (height, width) = self.padding, image.shape[2:]
        below, right = int(self.rows.max()) + 1 - top - height, int(self.columns.max()) + 1 - left - width
        padded = F.pad(image, (left, max(0, right), top, max(0, below)), value=outside)
        return padded[:, :, self.rows, self.columns].flatten(4)

    def scattered(self, coefficients: Tensor, element: Tensor, size: torch.Size) -> Tensor:
        """Return coefficients [B, K, C, h, w] of one element [B, C, h, w] of each window as those of the image."""
        pixels = torch.arange(size.numel(), device=element.device).view(1, 1, *size)
        numbers = self.of(pixels, 0).expand(*element.shape, -1)
        index = per_row(numbers.gather(4, element.unsqueeze(4)).flatten(2)).expand_as(coefficients.flatten(3))
        image = coefficients.new_zeros(*coefficients.shape[:3], size.numel())
        return image.scatter_add(3, index, coefficients.flatten(3)).unflatten(3, size)
