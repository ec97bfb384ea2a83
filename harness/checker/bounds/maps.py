"""The affine steps of a network: boxes of their results, and their transposes for linear bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.checker.bounds.boxes import Array, Box, affine, convolve, convolve_back, normalise, widen_for_rounding
from harness.common.errors import InputError

Shape = tuple[int, ...]


class UnknownLayerError(InputError):
    """The checker has no rule for something in the network.

    what: it, as the message names it.
    """

    def __init__(self, what: str):
        super().__init__(f"harness.recheck has no rule for {what}")
        self.what = what


@dataclass(frozen=True)
class Map:
    """y = W x + b, where x is one value or several, [1 or B, *shape] each.

    box: from boxes of x to the box of y.
    back: from coefficients A [K, *shape of y] and the shapes of x to about A W, [K, *shape of x] for each.
    size: from m [1, *shape], |x| <= m, to at least |W| m + |b| and the magnitudes of all that b was computed from; what
        takes no rounding may be left out, and None if nothing does.
    offset: from the shape of y to about b, to be broadcast.

    An element of A W is a sum of at most as many products as y has elements. Beside that sum, it and b take up to six
    roundings: `rounding_loss` counts these.
    """

    box: Callable[..., Box]
    back: Callable[[Array, list[Shape]], tuple[Array, ...]]
    size: Callable[..., Array] | None
    offset: Callable[[Shape], Array] = lambda shape: np.zeros(())


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
        weight=weight,
        bias=bias,
    )


def convolution(weight: Array, bias: Array, stride: int, padding: int, groups: int) -> Map:
    """Return the map of a convolution with square windows of weight [O, C / groups, k, k] and zero padding.

    bias: [O, 1, 1].
    """
    geometry = stride, padding, groups

    def apply(w: Array, values: Array) -> Array:
        _require_images("a convolution", values)
        return convolve(w, values, *geometry)

    return Map(
        lambda x: affine(x, weight, bias, apply, weight[0].size),
        lambda a, shapes: (convolve_back(weight, a, shapes[0], *geometry),),
        lambda m: apply(np.abs(weight), m) + np.abs(bias),
        lambda shape: bias,
    )


def batch_norm(mean: Array, variance: Array, weight: Array, bias: Array, eps: float) -> Map:
    """Return the map of batch norm with running statistics: of dimension 1, whatever dimensions come after it.

    mean, variance, weight, bias: [C].
    """
    factor = weight / np.sqrt(variance + eps)

    def box(x: Box) -> Box:
        mu, var, scale, shift = (_per_channel(values, x.center.shape) for values in (mean, variance, weight, bias))
        return normalise(x, mu, var, eps, scale, shift)

    def size(m: Array) -> Array:
        mu, scale, shift = (_per_channel(np.abs(values), m.shape) for values in (mean, factor, bias))
        return (m + mu) * scale + shift

    return Map(
        box,
        lambda a, shapes: (a * _per_channel(factor, a.shape),),
        size,
        lambda shape: _per_channel(bias - mean * factor, shape),
    )


def pool(size: int) -> Map:
    """Return the map of average pooling over squares that do not overlap; it drops odd rows and columns."""
    weight = np.full((1, 1, size, size), 1 / size**2)

    def apply(kernel: Array, values: Array) -> Array:
        _require_images("average pooling", values)
        rows, columns = (side // size * size for side in values.shape[2:])
        flatten = values[:, :, :rows, :columns].reshape(-1, 1, rows, columns)
        return convolve(kernel, flatten, size, 0).reshape(*values.shape[:2], rows // size, columns // size)

    def back(a: Array, shapes: list[Shape]) -> tuple[Array]:
        spread = (a / size**2).repeat(size, axis=2).repeat(size, axis=3)
        left = [(0, concatenated - part) for concatenated, part in zip(shapes[0][1:], spread.shape[2:], strict=True)]
        return (np.pad(spread, ((0, 0), (0, 0), *left)),)

    return Map(lambda x: affine(x, weight, None, apply, size**2), back, lambda m: apply(weight, m))


def _moving(move: Callable[..., Array], back: Callable[[Array, list[Shape]], tuple[Array, ...]]) -> Map:
    """Return the map of a function that moves or copies numbers, or puts zeros beside them."""
    return Map(lambda *xs: Box(move(*[x.center for x in xs]), move(*[x.radius for x in xs])), back, None)


def _reshaping(move: Callable[[Array], Array]) -> Map:
    return _moving(move, lambda a, shapes: (a.reshape(len(a), *shapes[0]),))


def flatten(first: int, last: int) -> Map:
    """Return the map that flattens the dimensions from `first` to `last`; dimension 0, the batch, is not among them."""

    def flattened(values: Array) -> Array:
        start, end = first % values.ndim, last % values.ndim
        if start == 0:
            raise UnknownLayerError("flattening of the batch")
        return values.reshape(*values.shape[:start], -1, *values.shape[end + 1 :])

    return _reshaping(flattened)


def reshape(sizes: tuple[int, ...]) -> Map:
    """Return the map that reshapes each example to `sizes`, one of which may be -1."""

    def to_sizes(values: Array) -> Array:
        size, count = values[0].size, int(np.prod([size for size in sizes if size != -1]))
        if size % count if -1 in sizes else size != count:
            raise UnknownLayerError(f"examples of shape {list(values.shape[1:])} reshaped to {list(sizes)}")
        return values.reshape(len(values), *sizes)

    return _reshaping(to_sizes)


def permute(order: tuple[int, ...]) -> Map:
    """Return the map that reorders dimensions; dimension 0, the batch, is the first."""

    def order_of(values: Array) -> tuple[int, ...]:
        dims = tuple(dim % values.ndim for dim in order)
        if sorted(dims) != list(range(values.ndim)) or dims[0] != 0:
            raise UnknownLayerError(f"dimensions of {list(values.shape[1:])} in the order {list(order)}")
        return dims

    return _moving(lambda x: x.transpose(order_of(x)), lambda a, shapes: (a.transpose(np.argsort(order_of(a))),))


def transpose(first: int, second: int) -> Map:
    """Return the map that exchanges two dimensions; neither is dimension 0, the batch."""

    def exchanged(values: Array) -> Array:
        if 0 in (first % values.ndim, second % values.ndim):
            raise UnknownLayerError("an exchange with the batch")
        return values.swapaxes(first, second)

    return _moving(exchanged, lambda a, shapes: (exchanged(a),))


def pad(sizes: tuple[int, ...]) -> Map:
    """Return the map that puts zeros around a value. sizes: before and after, of the last dimension first."""
    ends = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]

    def padded(values: Array) -> Array:
        if min(sizes) < 0 or len(ends) >= values.ndim:
            raise UnknownLayerError(f"padding {list(sizes)} of a value of shape {list(values.shape[1:])}")
        return np.pad(values, [(0, 0)] * (values.ndim - len(ends)) + ends)

    def back(a: Array, shapes: list[Shape]) -> tuple[Array]:
        outer = [(0, 0)] * (a.ndim - len(ends)) + ends
        inner = [slice(before, size - after) for size, (before, after) in zip(a.shape, outer, strict=True)]
        return (a[tuple(inner)],)

    return _moving(padded, back)


def _with_constant(
    constant: Array, center: Callable[[Array], Array], scale: Callable[[Array], Array], back: Callable[[Array], Array],
    size: Callable[[Array], Array], offset: Array | None = None,
) -> Map:  # fmt: skip
    """Return a map of each element and a constant. center, scale: of a box's centre and radius. back, size: as Map's.

    offset: the constant, if it is added. Raises UnknownLayerError, when called, for a constant that changes the shape.
    """

    def box(x: Box) -> Box:
        same_for_all = constant.ndim < x.center.ndim or constant.shape[0] == 1
        if not same_for_all or np.broadcast_shapes(constant.shape, x.center.shape) != x.center.shape:
            shape = list(x.center.shape[1:])
            raise UnknownLayerError(f"a constant of shape {list(constant.shape)} beside a value of {shape}")
        return widen_for_rounding(center(x.center), scale(x.radius))

    added = np.zeros(()) if offset is None else offset
    return Map(box, lambda a, shapes: (back(a),), size, lambda shape: added)


def add_constant(constant: Array) -> Map:
    """Return the map x + constant."""
    size = np.abs(constant)
    return _with_constant(constant, lambda x: x + constant, lambda r: r, lambda a: a, lambda m: size, constant)


def subtract_from_constant(constant: Array) -> Map:
    """Return the map constant - x."""
    size = np.abs(constant)
    return _with_constant(constant, lambda x: constant - x, lambda r: r, lambda a: -a, lambda m: size, constant)


def multiply_by_constant(constant: Array) -> Map:
    """Return the map x * constant."""
    size = np.abs(constant)
    return _with_constant(
        constant, lambda x: x * constant, lambda r: r * size, lambda a: a * constant, lambda m: m * size
    )


def divide_by_constant(constant: Array) -> Map:
    """Return the map x / constant."""
    size = np.abs(constant)
    return _with_constant(
        constant, lambda x: x / constant, lambda r: r / size, lambda a: a / constant, lambda m: m / size
    )


def add_values(sign: int = 1) -> Map:
    """Return the map a + sign * b of two values. sign: 1 or -1."""

    def box(a: Box, b: Box) -> Box:
        if a.center.shape != b.center.shape:
            raise UnknownLayerError(f"a sum of shapes {list(a.center.shape[1:])} and {list(b.center.shape[1:])}")
        return widen_for_rounding(a.center + sign * b.center, a.radius + b.radius)

    return Map(box, lambda a, shapes: (a, sign * a), None)


def absolute() -> Map:
    """Return the map of relu(x) and x to |x| = 2 relu(x) - x, so that leaves split the ReLU."""

    def box(relu: Box, x: Box) -> Box:
        low, high = np.maximum(np.abs(x.center) - x.radius, 0), np.abs(x.center) + x.radius
        return widen_for_rounding((low + high) / 2, (high - low) / 2)

    return Map(box, lambda a, shapes: (2 * a, -a), lambda relu, x: 2 * relu + x)


def index(items: tuple[Any, ...]) -> Map:
    """Return the map x[items]: integers, slices, None and ..., or one list of integers beside slices; the batch first.

    An element may be taken several times; its coefficients are added up.
    """
    kinds = [type(item) for item in items]
    ends = [end for item in items if isinstance(item, slice) for end in (item.start, item.stop, item.step)]
    is_known = all(kind in (int, slice, list, type(None), type(Ellipsis)) for kind in kinds)
    is_known &= all(end is None or type(end) is int for end in ends)
    if items[0] != slice(None) or not is_known or (list in kinds and kinds.count(list) + kinds.count(int) > 1):
        raise UnknownLayerError(f"the index {items}")

    def back(a: Array, shapes: list[Shape]) -> tuple[Array]:
        total = np.zeros((len(a), *shapes[0]))
        np.add.at(total, items, a)
        return (total,)

    return Map(lambda x: Box(x.center[items], x.radius[items]), back, lambda m: m[items])


def concatenate(dim: int) -> Map:
    """Return the map that concatenates values along `dim`; dimension 0 is the batch."""

    def back(a: Array, shapes: list[Shape]) -> tuple[Array, ...]:
        ends = np.cumsum([shape[dim % a.ndim - 1] for shape in shapes])
        return tuple(np.split(a, ends[:-1], axis=dim))

    def concatenated(*parts: Array) -> Array:
        if dim % parts[0].ndim == 0:
            raise UnknownLayerError("a concatenation of batches")
        return np.concatenate(parts, dim)

    return _moving(concatenated, back)


def _require_images(what: str, values: Array) -> None:
    """Raise UnknownLayerError for a value of other dimensions than [B, C, H, W]."""
    if values.ndim != 4:
        raise UnknownLayerError(f"{what} of a value of shape {list(values.shape[1:])}")


def _per_channel(values: Array, shape: Shape) -> Array:
    """Return values [C] so that they are broadcast along dimension 1 of a value of this shape, [B, C, ...]."""
    return values.reshape(-1, *[1] * (len(shape) - 2))
