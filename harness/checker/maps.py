"""The affine steps of a network: boxes of their results, and their transposes for linear bounds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from harness.checker.boxes import Array, Box, affine, convolve, convolve_back, normalise, widen_for_rounding
from harness.errors import InputError

Shape = tuple[int, ...]


class UnknownLayerError(InputError):
    """The network has a layer that the checker has no rule for."""


@dataclass(frozen=True)
class Map:
    """y = W x + b, where x is one value or several, [1 or B, *shape] each.

    box: from boxes of x to the box of y.
    back: from coefficients A [K, *shape of y] and the shapes of x to about A W, [K, *shape of x] for each.
    size: from m [1, *shape], |x| <= m, to at least |W| m + |b| and the magnitudes of all that b was computed from.
    offset: about b, to be broadcast.
    terms: the number of roundings in an element of A W and of b.
    """

    box: Callable[..., Box]
    back: Callable[[Array, list[Shape]], tuple[Array, ...]]
    size: Callable[..., Array]
    offset: Array
    terms: int


def array(tensor: torch.Tensor) -> Array:
    """Return the same numbers in float64."""
    return tensor.detach().double().numpy()


def matrix(weight: Array, x: Array) -> Array:
    """Return the products of a matrix with rows x [B, N]."""
    return x @ weight.T


def linear(layer: nn.Linear) -> Map:
    """Return the map of a fully connected layer."""
    weight, bias = array(layer.weight), _bias(layer)
    return Map(
        lambda x: affine(x, weight, bias, matrix, layer.in_features),
        lambda a, shapes: (a @ weight,),
        lambda m: matrix(np.abs(weight), m) + np.abs(bias),
        bias,
        layer.out_features,
    )


def convolution(layer: nn.Conv2d) -> Map:
    """Return the map of a square convolution with zero padding."""
    (stride, across), (kernel, wide), padding = layer.stride, layer.kernel_size, layer.padding
    square = (stride, kernel, padding) == (across, wide, (padding[0], padding[0]))
    if not square or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        raise UnknownLayerError(f"{layer}")
    weight, bias, geometry = array(layer.weight), _bias(layer, 1, 1), (stride, int(padding[0]), layer.groups)

    def apply(w: Array, values: Array) -> Array:
        return convolve(w, values, *geometry)

    return Map(
        lambda x: affine(x, weight, bias, apply, weight[0].size),
        lambda a, shapes: (convolve_back(weight, a, shapes[0], *geometry),),
        lambda m: apply(np.abs(weight), m) + np.abs(bias),
        bias,
        weight[:, 0].size + kernel**2,
    )


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Map:
    """Return the map of batch norm with running statistics."""
    if layer.running_mean is None or layer.running_var is None or not layer.affine:
        raise UnknownLayerError(f"{layer}")
    shape = (-1, 1, 1) if isinstance(layer, nn.BatchNorm2d) else (-1,)
    numbers = layer.running_mean, layer.running_var, layer.weight, layer.bias
    mean, variance, weight, bias = (array(tensor).reshape(shape) for tensor in numbers)
    factor = weight / np.sqrt(variance + layer.eps)
    return Map(
        lambda x: normalise(x, mean, variance, layer.eps, weight, bias),
        lambda a, shapes: (a * factor,),
        lambda m: (m + np.abs(mean)) * np.abs(factor) + np.abs(bias),
        bias - mean * factor,
        6,
    )


def pool(layer: nn.AvgPool2d) -> Map:
    """Return the map of average pooling over squares that do not overlap; it drops odd rows and columns."""
    size = layer.kernel_size
    if not isinstance(size, int) or layer.stride != size or layer.padding != 0:
        raise UnknownLayerError(f"{layer}")
    weight = np.full((1, 1, size, size), 1 / size**2)  # the layer divides: one more rounding

    def apply(kernel: Array, values: Array) -> Array:
        rows, columns = (side // size * size for side in values.shape[2:])
        flatten = values[:, :, :rows, :columns].reshape(-1, 1, rows, columns)
        return convolve(kernel, flatten, size, 0).reshape(*values.shape[:2], rows // size, columns // size)

    def back(a: Array, shapes: list[Shape]) -> tuple[Array]:
        spread = (a / size**2).repeat(size, axis=2).repeat(size, axis=3)
        left = [(0, concatenated - part) for concatenated, part in zip(shapes[0][1:], spread.shape[2:], strict=True)]
        return (np.pad(spread, ((0, 0), (0, 0), *left)),)

    return Map(lambda x: affine(x, weight, None, apply, size**2 + 2), back, lambda m: apply(weight, m), np.zeros(()), 2)


def flatten(layer: nn.Flatten) -> Map:
    """Return the map that flattens each example."""
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise UnknownLayerError(f"{layer}")

    def one_row(values: Array) -> Array:
        return values.reshape(len(values), -1)

    return Map(
        lambda x: Box(one_row(x.center), one_row(x.radius)),
        lambda a, shapes: (a.reshape(len(a), *shapes[0]),),
        one_row,
        np.zeros(()),
        0,
    )


def add_constant(constant: Array) -> Map:
    """Return the map x + constant."""
    return Map(
        lambda x: widen_for_rounding(x.center + constant, x.radius, 1, np.abs(x.center) + np.abs(constant)),
        lambda a, shapes: (a,),
        lambda m: m + np.abs(constant),
        constant,
        0,
    )


def divide_by_constant(constant: Array) -> Map:
    """Return the map x / constant."""
    return Map(
        lambda x: widen_for_rounding(x.center / constant, x.radius / np.abs(constant)),
        lambda a, shapes: (a / constant,),
        lambda m: m / np.abs(constant),
        np.zeros(()),
        1,
    )


def add_values() -> Map:
    """Return the map that adds two values."""
    return Map(
        lambda a, b: widen_for_rounding(
            a.center + b.center, a.radius + b.radius, 1, np.abs(a.center) + np.abs(b.center)
        ),
        lambda a, shapes: (a, a),
        lambda m, n: m + n,
        np.zeros(()),
        0,
    )


def concatenate(dim: int) -> Map:
    """Return the map that concatenates values along `dim`; dimension 0 is the batch."""

    def back(a: Array, shapes: list[Shape]) -> tuple[Array, ...]:
        ends = np.cumsum([shape[dim - 1] for shape in shapes])
        return tuple(np.split(a, ends[:-1], axis=dim))

    def concatenated(*parts: Array) -> Array:
        return np.concatenate(parts, dim)

    return Map(
        lambda *parts: Box(concatenated(*[x.center for x in parts]), concatenated(*[x.radius for x in parts])),
        back,
        concatenated,
        np.zeros(()),
        0,
    )


def _bias(layer: nn.Linear | nn.Conv2d, *ones: int) -> Array:
    return np.zeros((1, *ones)) if layer.bias is None else array(layer.bias).reshape(-1, *ones)
