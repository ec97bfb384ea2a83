"""Sums, differences and negation; products with and quotients by constants."""

import operator
from typing import Any

import torch
from torch import Tensor

from cerdeq.operators.backward import combination
from cerdeq.operators.interval import Context, Interval, as_interval, tensor_like, widen_sum, widen_terms
from cerdeq.operators.record import Operator


def add_interval(ctx: Context, x: Any, y: Any, alpha: float = 1) -> Interval:
    """x + alpha y, of Intervals or of an Interval and a constant."""
    alpha = float(alpha)  # a small integer tensor would wrap around in its absolute value
    like = x if isinstance(x, Interval) else y
    a, b = as_interval(x, like), as_interval(y, like)
    center = a.center + alpha * b.center
    radius = widen_terms(ctx, a.center, a.radius, 4) + abs(alpha) * widen_terms(ctx, b.center, b.radius, 4)
    radius = _add_underflow(ctx, widen_sum(ctx, radius, 2), b)
    clean = None if like.clean is None else a.clean_value() + alpha * b.clean_value()
    return Interval(center, radius, clean)


def subtract_interval(ctx: Context, x: Any, y: Any, alpha: float = 1) -> Interval:
    """x - alpha y, of Intervals or of an Interval and a constant."""
    return add_interval(ctx, x, y, -float(alpha))


def negative_interval(ctx: Context, x: Interval) -> Interval:
    """-x; no arithmetic."""
    return Interval(-x.center, x.radius, None if x.clean is None else -x.clean)


def multiply_interval(ctx: Context, x: Any, y: Any) -> Interval:
    """Product of an Interval and a constant, in either order."""
    interval, factor = (x, y) if isinstance(x, Interval) else (y, x)
    factor = tensor_like(factor, interval.center)
    clean = None if interval.clean is None else interval.clean * factor
    radius = widen_terms(ctx, interval.center, interval.radius, 4) * factor.abs()
    radius = _add_underflow(ctx, widen_sum(ctx, radius, 1), interval)
    return Interval(interval.center * factor, radius, clean)


def divide_interval(ctx: Context, x: Interval, y: Any) -> Interval:
    """An Interval over a constant."""
    divisor = tensor_like(y, x.center)
    clean = None if x.clean is None else x.clean / divisor
    radius = widen_sum(ctx, widen_terms(ctx, x.center, x.radius, 4) / divisor.abs(), 1)
    if ctx.sound:  # a divisor that is out of range loses all of its digits
        limits = torch.finfo(divisor.dtype)
        normal = (divisor.abs() >= limits.tiny) & (divisor.abs() <= limits.max)
        radius = torch.where(normal, radius, torch.inf)
    return Interval(x.center / divisor, radius, clean)


def _add_underflow(ctx: Context, radius: Tensor, x: Interval) -> Tensor:
    """Return `radius`, widened if `ctx.sound` for a factor of x that is rounded to a subnormal number or 0."""
    if not ctx.sound:
        return radius
    return radius + torch.finfo(radius.dtype).tiny * (x.center.abs() + x.radius)


def reciprocal(constant: Any, like: Tensor) -> Tensor:
    """Return 1 / constant in float64, whatever the constant's own type is, on the device of `like`."""
    return 1 / tensor_like(constant, like, torch.float64)


_POINTWISE: dict[str, Any] = {"affine": "single", "windows": "boxes"}
RECORDS = (
    Operator(
        "add", add_interval, (operator.add, operator.iadd, torch.add, Tensor.add), {},
        combination(lambda x, y, alpha=1: [(x, 1), (y, float(alpha))], add_interval), bounded="any", **_POINTWISE,
    ),
    Operator(
        "subtract", subtract_interval,
        (operator.sub, operator.isub, torch.sub, torch.subtract, Tensor.sub, Tensor.subtract), {},
        combination(lambda x, y, alpha=1: [(x, 1), (y, -float(alpha))], subtract_interval), bounded="any",
        **_POINTWISE,
    ),
    Operator(
        "multiply", multiply_interval,
        (operator.mul, operator.imul, torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), {},
        combination(lambda x, y: [(x, y) if isinstance(x, Interval) else (y, x)], multiply_interval), bounded="one",
        **_POINTWISE,
    ),
    Operator(
        "divide", divide_interval,
        (operator.truediv, operator.itruediv, torch.div, torch.divide, Tensor.div, Tensor.divide), {},
        combination(lambda x, y: [(x, reciprocal(y, x.center))], divide_interval), **_POINTWISE,
    ),
    Operator(
        "negative", negative_interval, (operator.neg, torch.neg, torch.negative, Tensor.neg, Tensor.negative), {},
        combination(lambda x: [(x, -1)], negative_interval), **_POINTWISE,
    ),
)  # fmt: skip
