"""Clamp, hardtanh and ReLU6, to constant limits."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.boxes import outward_ends
from cerdeq.operators.backward import Backward, Pulled, dot, magnitude, per_row, rounding_costs
from cerdeq.operators.interval import Context, Interval, between, is_wide
from cerdeq.operators.record import Operator, options


def clamp_interval(ctx: Context, x: Interval, min: float | None = None, max: float | None = None) -> Interval:
    """Clamp to [min, max], the upper limit where they are in the wrong order: monotone, so both ends are clamped."""
    ctx.preactivations[ctx.step] = x.box
    low, high = (end.clamp(*limits_of(min, max)) for end in (x.box.lower, x.box.upper))
    return between(ctx, low, high, None if x.clean is None else x.clean.clamp(*limits_of(min, max)))


def limits_of(low: Any, high: Any) -> tuple[float, float]:
    """Return the limits of a clamp as floats. Raises ValueError for tensors of several numbers."""
    if any(isinstance(limit, Tensor) and limit.numel() > 1 for limit in (low, high)):
        raise ValueError("no bound rule for a clamp to several limits, only to one number on each side")
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def clamp_backward(
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
        largest = magnitude(x) + values.abs().amax(0) + torch.maximum(ends[0].abs(), ends[1].abs())
        costs, rest = rounding_costs(largest, 8)
        mean, gap = per_row(below + above) / 2, per_row(below - above) / 2
        return mean, gap, (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2 - costs * ctx.sound, rest * ctx.sound

    mean, gap, half, of_sizes, rest = ctx.constant("weights", weights)
    sizes = coefficients.abs()
    constant = dot(ctx, coefficients, half) + dot(ctx, sizes, of_sizes) - rest
    return Pulled((coefficients * mean + sizes * gap,), constant)


_ACTIVATION: dict[str, Any] = {"needs_tighter_box": is_wide, "windows": "constants"}
RECORDS = (
    Operator(
        "clamp", clamp_interval, (torch.clamp, torch.clip, Tensor.clamp, Tensor.clip), {}, clamp_backward,
        **_ACTIVATION,
    ),
    Operator(
        "hardtanh", lambda ctx, x, min_val=-1.0, max_val=1.0, inplace=False: clamp_interval(ctx, x, min_val, max_val),
        (F.hardtanh,), {nn.Hardtanh: options("min_val", "max_val")},
        lambda ctx, a, x, min_val=-1.0, max_val=1.0, inplace=False: clamp_backward(ctx, a, x, min_val, max_val),
        **_ACTIVATION,
    ),
    Operator(
        "relu6", lambda ctx, x, inplace=False: clamp_interval(ctx, x, 0.0, 6.0), (F.relu6,), {},
        lambda ctx, a, x, inplace=False: clamp_backward(ctx, a, x, 0.0, 6.0), **_ACTIVATION,
    ),
)  # fmt: skip
