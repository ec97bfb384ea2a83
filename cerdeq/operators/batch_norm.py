"""Batch norm: its interval rule, its values at points, its backward rule. In training, by one batch's statistics."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.backward import Backward, Pulled, magnitude, per_row, rounded_constant, rounding_costs
from cerdeq.operators.interval import Context, Interval, widen_sum, widen_terms
from cerdeq.operators.record import Operator, options

Statistics = tuple[Tensor, Tensor]  # mean and variance of each channel, [C]


def batch_norm_interval(
    ctx: Context, x: Interval, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Interval:
    """Batch norm; in training by the clean values' batch statistics, not detached (Shi et al. 2021).

    Raises ValueError in training without a clean value.
    """
    statistics = running_mean, running_var
    if training:
        statistics = _batch_statistics(ctx, x.clean_value(), statistics, momentum)
    mean, scale, shift = _normalisation(statistics, weight, bias, eps, x.center)
    offset = _for_each(len(x.center), shift - mean * scale)
    scale = _for_each(len(x.center), scale)
    center = torch.addcmul(offset, x.center, scale)
    clean = None if x.clean is None else torch.addcmul(offset, x.clean, scale)
    largest = x.center.abs() + mean.abs() if ctx.sound else x.center
    radius = widen_terms(ctx, largest, x.radius, 8) * scale.abs()
    if ctx.sound:  # of a scale that is rounded to a subnormal number or 0
        radius = radius + torch.finfo(radius.dtype).tiny * (largest + x.radius)
        radius = torch.where(_loses_digits(statistics[1], eps).view(mean.shape), torch.inf, radius)
    return Interval(center, widen_sum(ctx, radius, 8, shift), clean)


def batch_norm_points(
    ctx: Context, x: Tensor, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Tensor:
    """Batch norm of x [B, C, ...]; in training by the batch statistics that `ctx` has saved."""
    statistics = running_mean, running_var
    if training:
        statistics = _batch_statistics(ctx, x, statistics, momentum)
    mean, scale, shift = _normalisation(statistics, weight, bias, eps, x)
    return torch.addcmul(_for_each(len(x), shift - mean * scale), x, _for_each(len(x), scale))


def batch_norm_backward(
    ctx: Backward, coefficients: Tensor, x: Interval, running_mean, running_var, weight=None, bias=None,
    training=False, momentum=0.1, eps=1e-5,
) -> Pulled:  # fmt: skip
    """Batch norm by the statistics of the forward pass; running ones do not change."""
    statistics = ctx.saved[ctx.step] if training else (running_mean, running_var)
    mean, scale, shift = _normalisation(statistics, weight, bias, eps, x.center)
    offset = shift - mean * scale
    if ctx.sound:

        def costs() -> tuple[Tensor, Tensor]:
            largest = magnitude(x) + mean.abs()
            result = largest * scale.abs() + shift.abs()
            lost = _loses_digits(statistics[1], eps).view(scale.shape)
            each, rest = rounding_costs(torch.where(lost, torch.inf, result), 8)
            return each + 2 * torch.finfo(largest.dtype).tiny * largest, rest  # a scale may be rounded to 0

        everywhere = offset.expand(len(coefficients), *coefficients.shape[2:])
        constant = rounded_constant(ctx, coefficients, ctx.constant("costs", costs), everywhere)
        return Pulled((coefficients * per_row(scale),), constant)
    # Channels last, as convolutions take them: torch's compiler would store the product as contiguous.
    coefficients = coefficients.movedim(2, -1)
    scale, offset = (per_row(_for_each(len(coefficients), value)).movedim(2, -1) for value in (scale, offset))
    of_channels = coefficients if coefficients.dim() == 3 else coefficients.flatten(2, -2).sum(2)
    constant = (of_channels * offset.flatten(2)).sum(2)
    return Pulled(((coefficients * scale).movedim(-1, 2),), constant)


def _normalisation(statistics: Statistics, weight, bias, eps: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, scale and shift of (x - mean) * scale + shift, which broadcast over `like`."""
    mean, variance = statistics
    scale = (variance + eps).sqrt().reciprocal()
    scale = scale if weight is None else scale * weight
    shift = torch.zeros_like(scale) if bias is None else bias
    shape = (1, -1) + (1,) * (like.dim() - 2)
    return mean.view(shape), scale.view(shape), shift.view(shape)


def _for_each(examples: int, value: Tensor) -> Tensor:
    """Return a value [1, C, ...] once for each example.

    Its gradient is then summed example by example: compiled CPU code stays in a cache, where it would run through the
    batch once for every few channels.
    """
    return value.expand(examples, *value.shape[1:])


def _loses_digits(variance: Tensor, eps: float) -> Tensor:
    """Return where variance + eps may be off by more than its last digits: eps itself is rounded to its precision."""
    limits, total = torch.finfo(variance.dtype), variance + eps
    return ~((total >= limits.tiny) & (total <= limits.max) & (variance >= 0) & (eps >= 0))


def _batch_statistics(ctx: Context, clean: Tensor, running: Statistics, momentum: float) -> Statistics:
    """Return the batch statistics that `ctx` has saved of this step, the variance biased.

    A new context saves those of `clean` [B, C, ...] and, if `ctx.follow`, moves the running ones, if there are any.
    """
    if ctx.step not in ctx.saved:
        mean = _mean(clean)  # not var_mean, which is an order of magnitude slower on CPUs
        # Detached: the variance's derivative by the mean is 0, since deviations sum to 0.
        deviations = clean - mean.detach().view(1, -1, *[1] * (clean.dim() - 2))
        variance = _mean(deviations.square())
        if running[0] is not None and ctx.follow:
            _follow((mean, variance), running, momentum, clean.numel() // clean.shape[1])
        ctx.saved[ctx.step] = mean, variance
    return ctx.saved[ctx.step]


def _mean(x: Tensor) -> Tensor:
    """Return the mean [C] of each channel of x [B, C, ...]; first of each example, as in `_for_each`."""
    return (x if x.dim() == 2 else x.flatten(2).mean(2)).mean(0)


@torch.no_grad()
def _follow(statistics: Statistics, running: Statistics, momentum: float, count: int) -> None:
    """Move running statistics towards those of `count` values a channel, the variance unbiased, as torch does."""
    if count < 2:
        raise ValueError("batch norm in training needs more than one value per channel")
    mean, variance = statistics
    running[0].lerp_(mean.to(running[0].dtype), momentum)
    running[1].lerp_(variance.to(running[1].dtype) * (count / (count - 1)), momentum)


def _batch_norm_arguments(module: Any) -> dict[str, Any]:
    if module.momentum is None:
        raise UnsupportedOperator("no bound rule for batch norm with momentum=None")
    if module.running_mean is None and not module.training:
        raise UnsupportedOperator("batch norm without running statistics is a function of the whole batch")
    arguments = options("running_mean", "running_var", "weight", "bias", "momentum", "eps")(module)
    return {**arguments, "training": module.training or module.running_mean is None}


RECORDS = (
    Operator(
        "batch_norm", batch_norm_interval, (F.batch_norm,),
        {nn.BatchNorm1d: _batch_norm_arguments, nn.BatchNorm2d: _batch_norm_arguments},
        batch_norm_backward, points=batch_norm_points, affine="single", windows="constants",
    ),
)  # fmt: skip
