"""Interval rules of what is not affine: ReLU with its derivative for training, leaky ReLU, max pooling."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.rules.interval import Context, Interval


def relu(ctx: Context, x: Interval, inplace: bool = False) -> Interval:
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
    """(c, r) where c >= r, else shrinkage / 2 relu(c + r) for both; it saves its results, as the next layer does."""

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
        always, shared = relu_box_slopes(ctx.saved_tensors, ctx.shrinkage)
        mixed = shared * (of_center + of_radius)
        return torch.addcmul(mixed, always, of_center), torch.addcmul(mixed, always, of_radius), None


def relu_box_slopes(after: tuple[Tensor, Tensor], shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the derivative of `relu_box` from its results, centre and radius, as two factors.

    Both results are 0 if a unit is never active, and equal if it is unstable. The first factor, 1 if the unit is always
    active, is of each result's own gradient. The second, half the shrinkage if it is unstable, is of the sum of both
    gradients. Signs instead of masks: compiled CPU code takes 50 times as long to store booleans as floats.
    """
    alive, always = torch.sign(after[0]), torch.sign(after[0] - after[1])
    return always, shrinkage / 2 * (alive - always)


def leaky_relu(ctx: Context, x: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    """Leaky ReLU of any slope: the extremes are at the ends of the box, or at 0 where it lies inside."""
    ctx.preactivations[ctx.step] = x.box
    low, high = x.box.lower, x.box.upper
    ends = torch.stack([F.leaky_relu(low, negative_slope), F.leaky_relu(high, negative_slope)])
    lowest, highest = ends.amin(0), ends.amax(0)
    crossing = (low < 0) & (high > 0)
    lowest = torch.where(crossing, lowest.clamp(max=0), lowest)
    highest = torch.where(crossing, highest.clamp(min=0), highest)
    clean = None if x.clean is None else F.leaky_relu(x.clean, negative_slope)
    return _between(ctx, lowest, highest, clean, reach=low.abs() + high.abs())


def absolute(ctx: Context, x: Interval) -> Interval:
    """Absolute value: a leaky ReLU of slope -1."""
    return leaky_relu(ctx, x, -1.0)


def clamp(ctx: Context, x: Interval, min: float | None = None, max: float | None = None) -> Interval:
    """Clamp to [min, max], the upper limit where they are in the wrong order: monotone, so both ends are clamped."""
    ctx.preactivations[ctx.step] = x.box
    low, high = (end.clamp(*limits_of(min, max)) for end in (x.box.lower, x.box.upper))
    return _between(ctx, low, high, None if x.clean is None else x.clean.clamp(*limits_of(min, max)))


def limits_of(low: Any, high: Any) -> tuple[float, float]:
    """Return the limits of a clamp as floats. Raises ValueError for tensors of several numbers."""
    if any(isinstance(limit, Tensor) and limit.numel() > 1 for limit in (low, high)):
        raise ValueError("no bound rule for a clamp to several limits, only to one number on each side")
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def hardtanh(ctx: Context, x: Interval, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Interval:
    """Clamp to [-1, 1], or to other limits."""
    return clamp(ctx, x, min_val, max_val)


def relu6(ctx: Context, x: Interval, inplace: bool = False) -> Interval:
    """Clamp to [0, 6]."""
    return clamp(ctx, x, 0.0, 6.0)


def _between(ctx: Context, low: Tensor, high: Tensor, clean: Tensor | None, reach: Tensor | float = 0.0) -> Interval:
    """Return the Interval from low to high, which are rounded to nearest; products of numbers up to `reach`."""
    center, radius = (low + high) / 2, (high - low) / 2
    if ctx.sound:
        limits = torch.finfo(center.dtype)
        radius = radius + 4 * limits.eps * (low.abs() + high.abs()) + 4 * limits.tiny * (1 + reach)
        center = torch.where(radius.isfinite(), center, 0)
        radius = torch.where(radius.isfinite(), radius, torch.inf)
    return Interval(center, radius, clean)


def max_pool2d(
    ctx: Context, x: Interval, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Interval:
    """Max pooling: monotone, so both ends are pooled."""
    ctx.preactivations[ctx.step] = x.box
    low, high = x.box.lower, x.box.upper

    def pool(value: Tensor) -> Tensor:
        return F.max_pool2d(value, kernel_size, stride, padding, dilation, ceil_mode)

    return _between(ctx, pool(low), pool(high), None if x.clean is None else pool(x.clean))
