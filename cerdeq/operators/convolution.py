"""Convolutions and transposed convolutions.

Those whose rounding is counted are, on CUDA, matrix products of many images at a time. With cuDNN off, whose
convolutions need not be sums of products, torch convolves image by image there; rows of linear bounds are images too.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.backward import Backward, Pulled, affine, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import Context, Interval, center_and_clean, widen_sum, widen_terms
from cerdeq.operators.record import Operator, options

_BYTES = 2**28  # of windows at a time


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv2d of x [B, C, H, W]."""
    if not _image_by_image(x):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return conv2d_by_products(x, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv_transpose2d of x [B, C, H, W]."""
    if not _image_by_image(x):
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    result = conv_transpose2d_by_products(x, weight, stride, padding, output_padding, groups, dilation)
    return result if bias is None else result + bias.view(-1, 1, 1)


def _image_by_image(x: Tensor) -> bool:
    """Return whether torch would convolve image by image: on CUDA within `counted_rounding`, but not compiled code."""
    return x.is_cuda and not torch.compiler.is_compiling() and not torch.backends.cudnn.enabled


def conv2d_by_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """Return `conv2d` as one matrix product of the weights and all windows, for as many images at a time as fit."""
    kernel, stride, dilation = weight.shape[2:], pair(stride), pair(dilation)
    before, after = paddings(padding, kernel, dilation)
    x = F.pad(x, (before[1], after[1], before[0], after[0]))
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    offsets = _offsets(kernel, size, stride, dilation)
    matrix = weight.flatten(1).unflatten(0, (groups, -1))
    results = []
    for part in _parts(x, x.shape[1] * kernel.numel() * size[0] * size[1]):
        channels_first = part.transpose(0, 1)
        windows = torch.stack([channels_first[..., rows, columns] for rows, columns in offsets], dim=1)
        product = matrix @ windows.reshape(groups, matrix.shape[2], -1)
        results.append(product.reshape(len(weight), -1, *size).transpose(0, 1))
    result = torch.cat(results)
    return result if bias is None else result + bias.view(-1, 1, 1)


def conv_transpose2d_by_products(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Tensor:
    """Return `conv_transpose2d` as one matrix product, whose windows are then added up where they belong."""
    kernel, stride, dilation = weight.shape[2:], pair(stride), pair(dilation)
    axes = zip(x.shape[2:], kernel, stride, dilation, pair(output_padding), strict=True)
    padded = [(n - 1) * s + d * (k - 1) + 1 + rest for n, k, s, d, rest in axes]
    (top, left), offsets = pair(padding), _offsets(kernel, x.shape[2:], stride, dilation)
    matrix = weight.flatten(1).unflatten(0, (groups, -1)).mT
    channels, results = groups * weight.shape[1], []
    for part in _parts(x, channels * kernel.numel() * x.shape[2:].numel()):
        product = matrix @ part.transpose(0, 1).reshape(groups, matrix.shape[2], -1)
        windows = product.reshape(channels, len(offsets), len(part), *x.shape[2:])
        image = windows.new_zeros(channels, len(part), *padded)
        for number, (rows, columns) in enumerate(offsets):
            image[..., rows, columns] += windows[:, number]
        results.append(image[..., top : padded[0] - top, left : padded[1] - left].transpose(0, 1))
    return torch.cat(results)


def _offsets(
    kernel: Sequence[int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[slice, slice]]:
    """Return for each weight of a kernel the rows and columns of the image that it multiplies, one for each window."""
    axes = [
        [slice(d * i, d * i + s * (n - 1) + 1, s) for i in range(k)]
        for k, n, s, d in zip(kernel, size, stride, dilation, strict=True)
    ]
    return [(rows, columns) for rows, columns in itertools.product(*axes)]


def _parts(x: Tensor, windows: int) -> tuple[Tensor, ...]:
    """Return x in parts of as many images as fit, if each has so many numbers in its windows."""
    return x.split(max(1, _BYTES // max(1, windows * x.element_size())))


def paddings(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return how many rows and columns are added before and after the image; 'same' puts the odd one after."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    each = [0, 0] if padding == "valid" else list(pair(padding))
    return each, each


def pair(value: Any) -> tuple[int, int]:
    """Return a size for both dimensions of an image, from one number or two."""
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    return sizes if len(sizes) == 2 else sizes * 2


def conv2d_interval(
    ctx: Context, x: Interval, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Interval:
    """2-d convolution, any stride, zero padding, dilation and groups."""
    shape = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    center, clean = center_and_clean(x, lambda value: conv2d(value, weight, bias, **shape))
    terms = weight[0].numel() + 1
    radius = conv2d(widen_terms(ctx, x.center, x.radius, terms), weight.abs(), **shape)
    offset = None if bias is None else bias[:, None, None]
    return Interval(center, widen_sum(ctx, radius, terms, offset), clean)


def conv_transpose2d_interval(
    ctx: Context, x: Interval, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Interval:
    """2-d transposed convolution; no padding modes."""
    shape = {"stride": stride, "padding": padding, "output_padding": output_padding}
    shape |= {"groups": groups, "dilation": dilation}
    center, clean = center_and_clean(x, lambda value: conv_transpose2d(value, weight, bias, **shape))
    terms = weight[:, 0].numel() // groups + 1
    radius = conv_transpose2d(widen_terms(ctx, x.center, x.radius, terms), weight.abs(), **shape)
    return Interval(center, widen_sum(ctx, radius, terms, None if bias is None else bias[:, None, None]), clean)


def conv2d_backward(
    ctx: Backward, coefficients: Tensor, x: Interval, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Pulled:
    """2-d convolution: the transposed convolution of the coefficients, so that they stay images."""
    kernel, stride, dilation = weight.shape[2:], pair(stride), pair(dilation)
    before, _ = paddings(padding, kernel, dilation)
    axes = zip(x.center.shape[2:], coefficients.shape[3:], stride, dilation, kernel, before, strict=True)
    rest = [size - ((n - 1) * s + d * (k - 1) + 1 - 2 * p) for size, n, s, d, k, p in axes]
    unreached = [max(0, missing) for missing in rest]
    rows = coefficients.flatten(0, 1)
    pulled = conv_transpose2d(rows, weight, None, stride, before, unreached, groups, dilation)
    if min(rest) < 0:
        pulled = F.pad(pulled, (0, min(0, rest[1]), 0, min(0, rest[0])))  # the odd row of 'same'
    pulled = pulled.unflatten(0, coefficients.shape[:2])
    if not ctx.sound:
        constant = coefficients.new_zeros(coefficients.shape[:2])
        return Pulled((pulled,), constant if bias is None else (coefficients.sum((3, 4)) * bias).sum(2))

    return Pulled((pulled,), conv2d_constant(ctx, coefficients, x, weight, bias, stride, padding, dilation, groups))


def conv2d_constant(
    ctx: Backward, coefficients: Tensor, x: Interval, weight, bias, stride, padding, dilation, groups
) -> Tensor:
    """Return the constant of a sound convolution's rule, [B, K]."""

    def costs() -> tuple[Tensor, Tensor]:
        before, after = paddings(padding, weight.shape[2:], pair(dilation))
        largest = F.pad(magnitude(x), (before[1], after[1], before[0], after[0]))
        result = conv2d(largest, weight.abs(), None, stride, 0, dilation, groups)
        result = result if bias is None else result + bias.abs().view(1, -1, 1, 1)
        return rounding_costs(result, weight[:, 0].numel() // groups, weight[0].numel())

    each, rest = ctx.constant("costs", costs)
    offset = None if bias is None else bias.view(1, -1, 1, 1).expand_as(each)
    return rounded_constant(ctx, coefficients, (each, rest), offset)


def arguments_of_module(module: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    """Return the arguments of a module's convolution. Raises UnsupportedOperator for other padding than by zeros."""
    if module.padding_mode != "zeros":
        kind = type(module).__name__
        raise UnsupportedOperator(f"no bound rule for {kind} with padding_mode={module.padding_mode!r}")
    return options("weight", "bias", "stride", "padding", "dilation", "groups")(module)


RECORDS = (
    Operator(
        "conv2d", conv2d_interval, (F.conv2d,), {nn.Conv2d: arguments_of_module}, conv2d_backward,
        affine="sums", windows="convolution",
    ),
    Operator(
        "conv_transpose2d", conv_transpose2d_interval, (F.conv_transpose2d,),
        {
            nn.ConvTranspose2d: options(
                "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
            )
        },
        affine(conv_transpose2d, conv_transpose2d_interval, lambda a, x, weight, *args, **kwargs: weight[0].numel()),
        affine="sums",
    ),
)  # fmt: skip
