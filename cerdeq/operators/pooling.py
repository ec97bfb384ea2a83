"""Max, average and adaptive average pooling."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.boxes import outward_ends
from cerdeq.operators.backward import Backward, Pulled, affine, dot, magnitude, per_row, slack
from cerdeq.operators.convolution import pair
from cerdeq.operators.interval import (
    Context,
    Interval,
    between,
    center_and_clean,
    is_wide,
    rearrange,
    widen_sum,
    widen_terms,
)
from cerdeq.operators.record import Operator, options


def max_pool2d_interval(
    ctx: Context,
    x: Interval,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices: Literal[False] = False,
) -> Interval:
    """Max pooling: monotone, so both ends are pooled."""
    ctx.preactivations[ctx.step] = x.box
    low, high = x.box.lower, x.box.upper

    def pool(value: Tensor) -> Tensor:
        return F.max_pool2d(value, kernel_size, stride, padding, dilation, ceil_mode)

    return between(ctx, pool(low), pool(high), None if x.clean is None else pool(x.clean))


def max_pool2d_backward(
    ctx: Backward, coefficients: Tensor, x: Interval,
    kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
) -> Pulled:  # fmt: skip
    """Max pooling, bounded from below by the element with the largest lower end.

    From above by the same element if its lower end reaches every other's upper end, else by the largest upper end, a
    constant (Singh et al. 2019).
    """
    if x.center.dim() == 3:  # without channels
        image = rearrange(x, lambda value: value.unsqueeze(1))
        result = max_pool2d_backward(ctx, coefficients.unsqueeze(2), image, kernel_size, stride, padding, dilation)
        return Pulled((result.coefficients[0].squeeze(2),), result.constant)
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


def avg_pool2d_interval(ctx: Context, x: Interval, kernel_size, *args, **kwargs) -> Interval:
    """Average pooling: linear with weights of one sign, so centre and radius are pooled alike."""
    terms = math.prod(pair(kernel_size))
    center, clean = center_and_clean(x, lambda value: F.avg_pool2d(value, kernel_size, *args, **kwargs))
    radius = F.avg_pool2d(widen_terms(ctx, x.center, x.radius, terms + 1), kernel_size, *args, **kwargs).abs()
    return Interval(center, widen_sum(ctx, radius, terms), clean)


def adaptive_avg_pool2d_interval(ctx: Context, x: Interval, output_size) -> Interval:
    """Adaptive average pooling; a window never has more elements than the image."""
    terms = x.center.shape[-1] * x.center.shape[-2] + 1
    center, clean = center_and_clean(x, lambda value: F.adaptive_avg_pool2d(value, output_size))
    radius = F.adaptive_avg_pool2d(widen_terms(ctx, x.center, x.radius, terms), output_size)
    return Interval(center, widen_sum(ctx, radius, terms), clean)


_POOL = ("kernel_size", "stride", "padding", "ceil_mode")


RECORDS = (
    Operator(
        "max_pool2d", max_pool2d_interval, (F.max_pool2d, torch.max_pool2d),
        {nn.MaxPool2d: options(*_POOL, "dilation", "return_indices")}, max_pool2d_backward, needs_tighter_box=is_wide,
    ),
    Operator(
        "avg_pool2d", avg_pool2d_interval, (F.avg_pool2d,),
        {nn.AvgPool2d: options(*_POOL, "count_include_pad", "divisor_override")},
        affine(F.avg_pool2d, avg_pool2d_interval, lambda a, x, kernel_size, *_, **others: math.prod(pair(kernel_size))),
        affine="sums",
    ),
    Operator(
        "adaptive_avg_pool2d", adaptive_avg_pool2d_interval, (F.adaptive_avg_pool2d,),
        {nn.AdaptiveAvgPool2d: options("output_size")},
        affine(F.adaptive_avg_pool2d, adaptive_avg_pool2d_interval), affine="sums",
    ),
)  # fmt: skip
