"""Convolution and pooling of sequences [B, C, L]: those of images [B, C, 1, L]."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.operators import convolution, pooling
from cerdeq.operators.backward import Backward, Pulled
from cerdeq.operators.interval import Context, Interval, rearrange
from cerdeq.operators.record import Operator, options

_OF_IMAGES = {record.name: record for record in (*convolution.RECORDS, *pooling.RECORDS)}


def _conv_arguments(ctx, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> dict[str, Any]:
    padding = padding if isinstance(padding, str) else _as_image_size(padding, 0)
    return {
        "weight": weight.unsqueeze(2), "bias": bias, "stride": _as_image_size(stride), "padding": padding,
        "dilation": _as_image_size(dilation), "groups": groups,
    }  # fmt: skip


def _avg_pool_arguments(
    ctx, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
) -> dict[str, Any]:
    return {
        "kernel_size": _as_image_size(kernel_size), "stride": _as_image_size(stride or kernel_size),
        "padding": _as_image_size(padding, 0),
        "ceil_mode": ceil_mode, "count_include_pad": count_include_pad,
    }  # fmt: skip


def _adaptive_avg_pool_arguments(ctx, x, output_size) -> dict[str, Any]:
    return {"output_size": _as_image_size(output_size)}


def _max_pool_arguments(
    ctx, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices: Literal[False] = False
) -> dict[str, Any]:
    return {
        "kernel_size": _as_image_size(kernel_size), "stride": _as_image_size(stride or kernel_size),
        "padding": _as_image_size(padding, 0),
        "dilation": _as_image_size(dilation), "ceil_mode": ceil_mode,
    }  # fmt: skip


def _as_image_size(size: Any, of_rows: int = 1) -> tuple[int, Any]:
    """Return a size of a sequence as one of an image's rows and columns."""
    return of_rows, size if isinstance(size, int) or size is None else size[0]


def _record(
    name: str, functions: tuple[Callable[..., Tensor], ...], module: type[nn.Module],
    arguments: Callable[..., dict[str, Any]], arguments_of_module: Callable[[Any], dict[str, Any]] | None = None,
) -> Operator:  # fmt: skip
    """Return the record of an operator from that of images. arguments: from the call's to those of images."""
    of_images = _OF_IMAGES[name.replace("1d", "2d")]
    backward_of_images = of_images.backward
    assert backward_of_images is not None

    @wraps(arguments)  # its signature is the operator's
    def interval(ctx: Context, x: Interval, *args: Any, **kwargs: Any) -> Interval:
        y = of_images.interval(ctx, _image(x), **arguments(ctx, x, *args, **kwargs))
        return rearrange(y, lambda value: value.squeeze(2))

    def backward(ctx: Backward, coefficients: Tensor, x: Interval, *args: Any, **kwargs: Any) -> Pulled:
        rows = coefficients.unsqueeze(3)
        pulled = backward_of_images(ctx, rows, _image(x), **arguments(ctx, x, *args, **kwargs))
        return Pulled((pulled.coefficients[0].squeeze(3),), pulled.constant)

    read_module = arguments_of_module or options(*list(signature(arguments).parameters)[2:])
    return Operator(
        name, interval, functions, {module: read_module}, backward, needs_tighter_box=of_images.needs_tighter_box,
        affine=of_images.affine,
    )  # fmt: skip


def _image(x: Interval) -> Interval:
    return rearrange(x, lambda value: value.unsqueeze(2))


RECORDS = (
    _record("conv1d", (F.conv1d,), nn.Conv1d, _conv_arguments, convolution.arguments_of_module),
    _record("avg_pool1d", (F.avg_pool1d,), nn.AvgPool1d, _avg_pool_arguments),
    _record("adaptive_avg_pool1d", (F.adaptive_avg_pool1d,), nn.AdaptiveAvgPool1d, _adaptive_avg_pool_arguments),
    _record("max_pool1d", (F.max_pool1d, torch.max_pool1d), nn.MaxPool1d, _max_pool_arguments),
)
