"""The operators that the checker knows: one record for each, under its name in the table of `cerdeq.operators.table`.

A rule takes the arguments of torch's function. VALUE stands for a value that depends on the images, BATCH for the
number of images; constants are arrays or Python's numbers. Rules raise UnknownLayerError for arguments without a rule.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from cerdeq.equilibrium import FixedPoint
from harness.checker.bounds import maps
from harness.checker.bounds.boxes import Array
from harness.checker.bounds.maps import Map, Shape, UnknownLayerError, array
from harness.checker.bounds.relaxations import HARDSIGMOID, HARDSWISH, MaxPool, Relaxation, clamp
from harness.checker.bounds.windows import Windows, adaptive_windows, average_windows


class Stand(Enum):
    """What stands in arguments for what depends on the images."""

    VALUE = "a value"
    SHAPE = "a value's shape"
    BATCH = "the number of images"


VALUE, SHAPE, BATCH = Stand
MOVES = None
RESHAPES = torch.reshape, Tensor.reshape, Tensor.view


@dataclass(frozen=True)
class ReluStep:
    """z = relu(W z + h). weight: W, or None for 0: an ordinary ReLU of h.

    by_splitting: whether the module solves it for any strongly monotone W; else rho(|W|) must be below 1.
    negative_slope: s of a leaky ReLU, which `maps.leaky` makes from z and h.
    """

    weight: Array | None
    by_splitting: bool = False
    negative_slope: float = 0.0


Operation = Map | ReluStep | Relaxation


@dataclass(frozen=True)
class Operator:
    """An operator's rule, the functions that it is for, and modules with the attributes that are its arguments.

    rule: from the arguments of torch's function; MOVES if this only moves numbers: torch itself says where to.
    """

    rule: Callable[..., Operation] | None
    functions: tuple[Callable[..., Any], ...] = ()
    modules: dict[type[nn.Module], tuple[str, ...]] = field(default_factory=dict)


def operation_of(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation:
    """Return what a function, or a module called with VALUE, does. Raises UnknownLayerError if there is no rule."""
    if isinstance(target, nn.Module):
        return operation_of_module(target)
    if target not in _FUNCTIONS:
        raise UnknownLayerError(getattr(target, "__name__", str(target)))
    rule = _FUNCTIONS[target].rule or partial(_move, target)
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise UnknownLayerError(f"{target.__name__}: {error}") from None
    return rule(*args, **kwargs)


def operation_of_module(module: nn.Module) -> Operation:
    """Return what a module does. Raises UnknownLayerError if there is no rule."""
    if (record := _MODULES.get(type(module))) is None:
        raise UnknownLayerError(str(module))
    arguments = {name: getattr(module, name) for name in record.modules[type(module)]}
    constants = {name: array(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    rule = record.rule or partial(_move, record.functions[0])
    return rule(VALUE, **constants)


def _linear(x: Any, weight: Array, bias: Array | None = None) -> Map:
    return maps.product(weight, np.zeros(len(weight)) if bias is None else bias)


def _matmul(x: Any, y: Any) -> Map:
    if x is not VALUE:
        raise UnknownLayerError("a product whose first factor is a constant")
    return maps.product(y.T, np.zeros(y.shape[-1]))


def _convolution(
    x: Any, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, padding_mode: str = "zeros",
) -> Map:  # fmt: skip
    if padding_mode != "zeros":
        raise UnknownLayerError(f"a convolution with {padding_mode=}")
    kernel = weight.shape[2:]
    strides, dilations = (_each(sizes, len(kernel)) for sizes in (stride, dilation))
    if padding == "same":  # the odd zero comes last
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((size, size) for size in _each(0 if padding == "valid" else padding, len(kernel)))
    ones = [1] * len(kernel)
    shift = np.zeros((1, *ones)) if bias is None else bias.reshape(-1, *ones)
    return maps.convolution(weight, shift, Windows(strides, pads, dilations, groups))


def _each(sizes: Any, count: int) -> tuple[int, ...]:
    """Return one size for each dimension, from a number or a sequence."""
    each = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return each * count if len(each) == 1 else each


def _batch_norm(
    x: Any, running_mean: Array | None, running_var: Array | None, weight: Array | None = None,
    bias: Array | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Map:  # fmt: skip
    if running_mean is None or running_var is None or training:
        raise UnknownLayerError("batch norm without running statistics")
    scale = np.ones_like(running_mean) if weight is None else weight
    return maps.batch_norm(running_mean, running_var, scale, np.zeros_like(scale) if bias is None else bias, eps)


def _relu(x: Any, inplace: bool = False) -> ReluStep:
    return ReluStep(None)


def _leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> ReluStep:
    return ReluStep(None, negative_slope=float(negative_slope))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Relaxation:
    low, high = (
        infinity if limit is None else float(_constant(limit)) for limit, infinity in ((min, -np.inf), (max, np.inf))
    )
    return clamp(low, high)


def _hardtanh(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Relaxation:
    return _clamp(x, min_val, max_val)


def _max_pool(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False, *, dimensions: int,
) -> Relaxation:  # fmt: skip
    if return_indices:
        raise UnknownLayerError("max pooling that returns indices")
    kernel, strides = _each(kernel_size, dimensions), _each(stride or kernel_size, dimensions)
    return MaxPool(kernel, strides, _each(padding, dimensions), _each(dilation, dimensions), ceil_mode)


def _add(input: Any, other: Any, *, alpha: Any = 1, sign: int = 1) -> Map:
    if alpha != 1:
        raise UnknownLayerError(f"{alpha=}")
    if input is VALUE and other is VALUE:
        return maps.add_values(sign)
    if input is VALUE:
        return maps.elementwise(np.ones(()), sign * _constant(other))
    return maps.elementwise(np.array(float(sign)), _constant(input))


def _multiply(input: Any, other: Any) -> Map:
    return maps.elementwise(_constant(other if input is VALUE else input), np.zeros(()))


def _divide(input: Any, other: Any) -> Map:
    if input is not VALUE:
        raise UnknownLayerError("a division by a value")
    return maps.elementwise(1 / _constant(other), np.zeros(()))


def _constant(operand: Any) -> Array:
    """Return an operand that is a constant. Raises UnknownLayerError if it is another kind of number."""
    if type(operand) in (int, float) and float(operand) == operand:
        operand = np.array(float(operand))
    if not isinstance(operand, np.ndarray):
        raise UnknownLayerError(f"{operand} as an operand")
    return operand


def _avg_pool(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None, *, dimensions: int,
) -> Map:  # fmt: skip
    each = [_each(sizes, dimensions) for sizes in (kernel_size, stride or kernel_size, padding)]

    def windows(shape: Shape) -> dict[int, tuple[Array, Array]]:
        axes = zip(maps.sizes_of("pooling", shape, dimensions), *each, strict=True)
        return {
            axis: average_windows(size, k, s, p, ceil_mode, count_include_pad)
            for axis, (size, k, s, p) in enumerate(axes, start=2)
        }

    return maps.average(windows, divisor_override)


def _adaptive_avg_pool(x: Any, output_size: Any, *, dimensions: int) -> Map:
    counts = _each(output_size, dimensions)

    def windows(shape: Shape) -> dict[int, tuple[Array, Array]]:
        axes = zip(maps.sizes_of("pooling", shape, dimensions), counts, strict=True)
        return {n: adaptive_windows(*axis) for n, axis in enumerate(axes, start=2)}

    return maps.average(windows)


def _mean(input: Any, dim: Any = None, keepdim: bool = False, *, divisor: float | None = None) -> Map:
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())

    def windows(shape: Shape) -> dict[int, tuple[Array, Array]]:
        axes = sorted(axis % (1 + len(shape)) for axis in dims)
        if not axes or not axes[0]:
            raise UnknownLayerError(f"sums over dimension 0, the batch: {dim=}")
        return {axis: adaptive_windows(shape[axis - 1], 1) for axis in axes}

    return maps.average(windows, divisor, keepdim)


def _identity(input: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Map:
    if training:
        raise UnknownLayerError("dropout in training")
    return maps.move(lambda x: x, "dropout")


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Map:
    if mode != "constant" or value not in (None, 0):
        raise UnknownLayerError(f"padding that is not by zeros: {pad=}, {mode=}, {value=}")
    return _move(F.pad, input, pad)


def _move(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Map:
    """Return the map of torch's function, which moves numbers, with these arguments.

    An index or a slice by the number of images may be another one for few images than for many.
    """
    name = target.__name__

    def refuse_computed(part: Any) -> None:
        is_computed = part is SHAPE or (part is BATCH and target not in RESHAPES)
        if is_computed or not isinstance(part, int | float | str | type(None) | type(Ellipsis) | Stand):
            raise UnknownLayerError(f"{name} with a constant or a size that is computed")

    def call(*values: Tensor) -> Tensor:
        left = iter(values)
        stands = {VALUE: lambda: next(left), BATCH: lambda: len(values[0])}
        arguments, options = map_aggregate(
            (args, kwargs), lambda part: stands[part]() if isinstance(part, Stand) else part
        )
        result: Tensor = target(*arguments, **options)
        return result

    map_aggregate((args, kwargs), refuse_computed)
    return maps.move(call, name)


_CONVOLUTION = "weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode"
_MAX_POOL = "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
_AVG_POOL = "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"
OPERATORS = {
    "conv2d": Operator(_convolution, (F.conv2d,), {nn.Conv2d: _CONVOLUTION}),
    "conv1d": Operator(_convolution, (F.conv1d,), {nn.Conv1d: _CONVOLUTION}),
    "linear": Operator(_linear, (F.linear,), {nn.Linear: ("weight", "bias")}),
    "matmul": Operator(_matmul, (operator.matmul, torch.matmul, Tensor.matmul)),
    "batch_norm": Operator(
        _batch_norm,
        (F.batch_norm,),
        dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), ("running_mean", "running_var", "weight", "bias", "eps")),
    ),
    "relu": Operator(_relu, (F.relu, torch.relu, Tensor.relu), {nn.ReLU: ()}),
    "absolute": Operator(
        partial(_leaky_relu, negative_slope=-1), (torch.abs, torch.absolute, Tensor.abs, Tensor.absolute)
    ),
    "leaky_relu": Operator(_leaky_relu, (F.leaky_relu,), {nn.LeakyReLU: ("negative_slope",)}),
    "clamp": Operator(_clamp, (torch.clamp, torch.clip, Tensor.clamp, Tensor.clip)),
    "hardtanh": Operator(
        _hardtanh, (F.hardtanh,), dict.fromkeys((nn.Hardtanh, nn.ReLU6), ("min_val", "max_val"))
    ),
    "relu6": Operator(lambda x, inplace=False: clamp(0.0, 6.0), (F.relu6,)),
    "hardsigmoid": Operator(lambda x, inplace=False: HARDSIGMOID, (F.hardsigmoid,), {nn.Hardsigmoid: ()}),
    "hardswish": Operator(lambda x, inplace=False: HARDSWISH, (F.hardswish,), {nn.Hardswish: ()}),
    "max_pool2d": Operator(
        partial(_max_pool, dimensions=2), (F.max_pool2d, torch.max_pool2d), {nn.MaxPool2d: _MAX_POOL}
    ),
    "max_pool1d": Operator(
        partial(_max_pool, dimensions=1), (F.max_pool1d, torch.max_pool1d), {nn.MaxPool1d: _MAX_POOL}
    ),
    "add": Operator(_add, (operator.add, operator.iadd, torch.add, Tensor.add)),
    "subtract": Operator(
        partial(_add, sign=-1), (operator.sub, operator.isub, torch.sub, torch.subtract, Tensor.sub, Tensor.subtract)
    ),
    "multiply": Operator(
        _multiply, (operator.mul, operator.imul, torch.mul, torch.multiply, Tensor.mul, Tensor.multiply)
    ),
    "divide": Operator(
        _divide, (operator.truediv, operator.itruediv, torch.div, torch.divide, Tensor.div, Tensor.divide)
    ),
    "negative": Operator(
        partial(_multiply, -1), (operator.neg, torch.neg, torch.negative, Tensor.neg, Tensor.negative)
    ),
    "avg_pool2d": Operator(
        partial(_avg_pool, dimensions=2), (F.avg_pool2d,), {nn.AvgPool2d: (*_AVG_POOL, "divisor_override")}
    ),
    "avg_pool1d": Operator(partial(_avg_pool, dimensions=1), (F.avg_pool1d,), {nn.AvgPool1d: _AVG_POOL}),
    "adaptive_avg_pool2d": Operator(
        partial(_adaptive_avg_pool, dimensions=2), (F.adaptive_avg_pool2d,), {nn.AdaptiveAvgPool2d: ("output_size",)}
    ),
    "adaptive_avg_pool1d": Operator(
        partial(_adaptive_avg_pool, dimensions=1), (F.adaptive_avg_pool1d,), {nn.AdaptiveAvgPool1d: ("output_size",)}
    ),
    "mean": Operator(_mean, (torch.mean, Tensor.mean)),
    "sum": Operator(partial(_mean, divisor=1.0), (torch.sum, Tensor.sum)),
    "concatenate": Operator(MOVES, (torch.cat, torch.concat, torch.concatenate)),
    "flatten": Operator(MOVES, (torch.flatten, Tensor.flatten), {nn.Flatten: ("start_dim", "end_dim")}),
    "reshape": Operator(MOVES, RESHAPES),
    "permute": Operator(MOVES, (torch.permute, Tensor.permute)),
    "transpose": Operator(MOVES, (torch.transpose, Tensor.transpose)),
    "pad": Operator(_pad, (F.pad,)),
    "index": Operator(MOVES, (operator.getitem,)),
    "narrow": Operator(MOVES, (torch.narrow, Tensor.narrow)),
    "select": Operator(MOVES, (torch.select, Tensor.select)),
    "identity": Operator(_identity, (), {nn.Identity: ()}),
    "dropout": Operator(
        _identity, (F.dropout, F.dropout2d), {nn.Dropout: ("training",), nn.Dropout2d: ("training",)}
    ),
    "equilibrium": Operator(
        lambda x, weight, is_split: ReluStep(weight, is_split), (), {FixedPoint: ("weight", "is_split")}
    ),
}  # fmt: skip
_FUNCTIONS = {function: record for record in OPERATORS.values() for function in record.functions}
_MODULES = {kind: record for record in OPERATORS.values() for kind in record.modules}
