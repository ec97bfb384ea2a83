"""The affine steps of a network: boxes of their results, and their transposes for linear bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import torch

from harness.checker.bounds.boxes import (
    TINY,
    Array,
    Box,
    U,
    UnknownLayerError,
    add,
    affine,
    magnitude,
    widen_for_rounding,
)
from harness.checker.bounds.relaxations import leaky_relu
from harness.checker.bounds.windows import Windows, convolve, convolve_back
from harness.common.errors import first_words

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """y = W x + b, where x is one value or several, [1 or B, *shape] each.

    box: from boxes of x to the box of y.
    back: from coefficients A [K, *shape of y] and the shapes of x to about A W, [K, *shape of x] for each.
    size: from m [1, *shape], |x| <= m, to at least |W| m + |b| and the magnitudes of all that b was computed from; what
        takes no rounding may be left out; None if nothing does.
    offset: from the shape of y to about b, to be broadcast.
    is_sum: whether an element of y is a sum of several of x: its box is larger than its values where these depend on
        each other.

    An element of A W is a sum of at most as many products as y has elements. Beside that sum, it and b take up to six
    roundings: `rounding_loss` counts these.
    """

    box: Callable[..., Box]
    back: Callable[[Array, list[Shape]], tuple[Array, ...]]
    size: Callable[..., Array | None]
    offset: Callable[[Shape], Array] = lambda shape: np.zeros(())
    is_sum: bool = False


@dataclass(frozen=True, kw_only=True)
class Product(Map):
    """y = W x + b of the last dimension. weight: W [N, M]. bias: b [N]."""

    weight: Array
    bias: Array


def array(tensor: torch.Tensor) -> Array:
    """Return the same numbers in float64. Raises UnknownLayerError for numbers that float64 cannot hold."""
    if not tensor.is_floating_point():
        raise UnknownLayerError(f"a constant of {tensor.dtype}")
    return tensor.detach().double().numpy()


def matrix(weight: Array, x: Array) -> Array:
    """Return the products of a matrix with rows x [B, N]."""
    return x @ weight.T


def product(weight: Array, bias: Array) -> Product:
    """Return the map of weight [N, M] times the last dimension, plus bias [N]."""
    if weight.ndim != 2:
        raise UnknownLayerError(f"a product with a constant of shape {list(weight.shape)}")
    return Product(
        box=lambda x: affine(x, weight, bias, matrix, weight.shape[1]),
        back=lambda a, shapes: (a @ weight,),
        size=lambda m: matrix(np.abs(weight), m) + np.abs(bias),
        offset=lambda shape: bias,
        is_sum=True,
        weight=weight,
        bias=bias,
    )


def convolution(weight: Array, bias: Array, windows: Windows) -> Map:
    """Return the map of a convolution by weight [O, C / groups, *kernel], plus bias [O, 1, ...]."""

    def apply(w: Array, values: Array) -> Array:
        sizes_of("a convolution", values.shape[1:], weight.ndim - 2)
        return convolve(w, values, windows)

    return Map(
        lambda x: affine(x, weight, bias, apply, weight[0].size),
        lambda a, shapes: (convolve_back(weight, a, shapes[0], windows),),
        lambda m: apply(np.abs(weight), m) + np.abs(bias),
        lambda shape: bias,
        is_sum=True,
    )


def elementwise(scale: Array, offset: Array, size: Array | None = None, per_channel: bool = False) -> Map:
    """Return the map scale * x + offset, element by element.

    scale, offset: broadcast to x; each comes from up to five roundings.
    size: the magnitudes of all that the offset was computed from; default: its own.
    per_channel: whether they are [C], of dimension 1, whatever dimensions come after it.
    """
    size = np.abs(offset) if size is None else size
    reach = np.abs(scale) + TINY / U  # a scale that underflows is off by up to TINY

    def fit(constant: Array, shape: Shape) -> Array:
        constant = constant.reshape(-1, *[1] * (len(shape) - 2)) if per_channel else constant
        if np.broadcast_shapes(constant.shape, (1, *shape[1:])) != (1, *shape[1:]):
            what = f"a constant of shape {list(constant.shape)} beside a value of {list(shape[1:])}"
            raise UnknownLayerError(what)
        return constant

    def box(x: Box) -> Box:
        factor, added, large, sizes = (fit(constant, x.center.shape) for constant in (scale, offset, reach, size))
        center = x.center * factor + added
        return widen_for_rounding(center, x.radius * np.abs(factor), magnitude(x) * large + sizes + np.abs(center))

    return Map(
        box,
        lambda a, shapes: (a * fit(scale, a.shape),),
        lambda m: m * fit(reach, m.shape) + fit(size, m.shape),
        lambda shape: fit(offset, shape),
    )


def batch_norm(mean: Array, variance: Array, weight: Array, bias: Array, eps: float) -> Map:
    """Return the map (x - mean) / sqrt(variance + eps) * weight + bias. All but eps are [C]."""
    factor = weight / np.sqrt(variance + eps)
    size = np.abs(mean) * (np.abs(factor) + TINY / U) + np.abs(bias)
    return elementwise(factor, bias - mean * factor, size, per_channel=True)


def average(
    windows_of: Callable[[Shape], dict[int, tuple[Array, Array]]], divisor: float | None = None, keep: bool = True
) -> Map:
    """Return the map of sums over windows along some dimensions, divided by a number.

    Args:
        windows_of: from the shape of an example, for each of these dimensions of [B, *shape]: which elements each
            window has, 0 or 1 [windows, elements], and how many it counts [windows].
        divisor: the same for all windows; by default how many elements they count.
        keep: False if the dimensions have one window each, and are left out of the result.
    """

    @cache
    def parts(shape: Shape) -> tuple[dict[int, Array], Array, int]:
        """Return the elements of windows, a share for each of them, and the largest number of elements."""
        windows, counts = windows_of(shape), np.ones(())
        for axis, (_, counted) in windows.items():
            counts = counts * counted.reshape(-1, *[1] * (len(shape) - axis))
        members = {axis: inside for axis, (inside, _) in windows.items()}
        terms = prod(int(inside.sum(1).max(initial=0)) for inside in members.values())
        return members, 1 / counts if divisor is None else np.array(1 / divisor), terms

    def apply(shares: Array, values: Array) -> Array:
        members, _, _ = parts(values.shape[1:])
        for axis, inside in members.items():
            values = np.moveaxis(np.tensordot(values, inside, (axis, 1)), -1, axis)
        values = values * shares
        return values if keep else values.squeeze(tuple(members))

    def back(a: Array, shapes: list[Shape]) -> tuple[Array]:
        members, shares, _ = parts(shapes[0])
        values = (a if keep else np.expand_dims(a, tuple(members))) * shares
        for axis, inside in members.items():
            values = np.moveaxis(np.tensordot(values, inside, (axis, 0)), -1, axis)
        return (values,)

    def box(x: Box) -> Box:
        _, shares, terms = parts(x.center.shape[1:])
        return affine(x, shares, None, apply, terms)

    return Map(box, back, lambda m: apply(np.abs(parts(m.shape[1:])[1]), m), is_sum=True)


def move(function: Callable[..., torch.Tensor], name: str) -> Map:
    """Return the map of a function that moves or copies the numbers of its arguments, or puts zeros beside them.

    It is called with the numbers' positions in place of the numbers, of two and of three images. Raises
    UnknownLayerError, when the map is used, if it does anything else with them, or moves them between images.
    """

    @cache
    def sources(*shapes: Shape) -> tuple[Array, bool]:
        """Return for each element of the result its position in an example, and whether there are copies."""
        try:
            source, again = (_positions(function, shapes, images) for images in (2, 3))
        except Exception as error:  # whatever torch says of shapes that do not fit
            what = f"{name} of values of the shapes {[*map(list, shapes)]}"
            raise UnknownLayerError(f"{what}: {first_words(error)}") from None
        if not np.array_equal(source, again):
            raise UnknownLayerError(f"{name} that depends on the number of images")
        moved = source[source > 0]
        return source.astype(int), len(np.unique(moved)) < len(moved)

    def apply(*values: Array) -> Array:
        source, _ = sources(*(value.shape[1:] for value in values))
        zeros = np.zeros((len(values[0]), 1))
        return np.concatenate([zeros, *(value.reshape(len(value), -1) for value in values)], 1)[:, source]

    def back(a: Array, shapes: list[Shape]) -> tuple[Array, ...]:
        source, has_copies = sources(*shapes)
        counts = [prod(shape) for shape in shapes]
        total, rows, columns = np.zeros((len(a), 1 + sum(counts))), a.reshape(len(a), -1), source.ravel()
        if has_copies:
            np.add.at(total.T, columns, rows.T)
        else:
            total[:, columns] = rows
        parts = np.split(total[:, 1:], np.cumsum(counts)[:-1], axis=1)
        return tuple(part.reshape(len(a), *shape) for part, shape in zip(parts, shapes, strict=True))

    def size(*m: Array) -> Array | None:
        _, has_copies = sources(*(values.shape[1:] for values in m))
        return apply(*m) if has_copies else None

    return Map(lambda *xs: Box(apply(*(x.center for x in xs)), apply(*(x.radius for x in xs))), back, size)


def _positions(function: Callable[..., torch.Tensor], shapes: tuple[Shape, ...], images: int) -> Array:
    """Return for each element of a function's result its position in an example, from 1 on; 0 for a zero."""
    counts = [prod(shape) for shape in shapes]
    last, positions = sum(counts), torch.arange(1, sum(counts) + 1, dtype=torch.float64)
    parts = torch.stack([positions, -positions, positions + last])[:images].split(counts, 1)
    result = function(*(part.reshape(images, *shape) for part, shape in zip(parts, shapes, strict=True))).numpy()
    source: Array = np.atleast_1d(result[0])
    expected = [source, -source, np.where(source == 0, 0, source + last)]
    if not (np.array_equal(result, expected[:images]) and ((source >= 0) & (source <= last)).all()):
        raise ValueError("it mixes images or changes numbers")
    return source


def add_values(sign: int = 1) -> Map:
    """Return the map a + sign * b of two values. sign: 1 or -1."""

    def box(a: Box, b: Box) -> Box:
        if a.center.shape != b.center.shape:
            raise UnknownLayerError(f"a sum of shapes {list(a.center.shape[1:])} and {list(b.center.shape[1:])}")
        return add(a, Box(sign * b.center, b.radius))

    return Map(box, lambda a, shapes: (a, sign * a), lambda a, b: None)


def leaky(negative_slope: float) -> Map:
    """Return the map of relu(x) and x to (1 - s) relu(x) + s x, a leaky ReLU, so that leaves split the ReLU."""
    of_relu, curve = 1 - negative_slope, leaky_relu(negative_slope)
    return Map(
        lambda relu, x: curve.box(x),
        lambda a, shapes: (of_relu * a, negative_slope * a),
        lambda relu, x: abs(of_relu) * relu + abs(negative_slope) * x,
    )


def sizes_of(what: str, shape: Shape, dimensions: int) -> Shape:
    """Return the sizes of images or sequences, of shape [C, *sizes].

    Raises UnknownLayerError, which names `what` takes them, for values of other dimensions.
    """
    if len(shape) != 1 + dimensions:
        raise UnknownLayerError(f"{what} of a value of shape {list(shape)}")
    return shape[1:]
