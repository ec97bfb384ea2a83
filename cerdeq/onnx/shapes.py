"""Operators that change only the shape, and the padding of convolutions and pools."""

from math import prod

import numpy as np
import torch
from torch import nn

from cerdeq.errors import OnnxError
from cerdeq.onnx.layers import Apply
from cerdeq.onnx.node import Node, Value

PARTS = {"Slice", "Gather", "Split"}
MOVES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Abs", "Neg", "Sigmoid", "Tanh", "Sign", "Clip"}
_OF_ANY_RANK = _ELEMENTWISE | PARTS | {"MatMul", "Identity", "Dropout"}
Sizes = tuple[int, ...]


def shape_of(node: Node) -> np.ndarray:
    """Return the result of a node Shape or Size, for a batch of 1."""
    shape = node.value.full_shape
    start, end = node.attribute("start", 0), node.attribute("end", None)
    return np.array(shape[start:end] if node.operator == "Shape" else prod(shape), dtype=np.int64)


def result_has_batch(node: Node, values: list[Value]) -> bool:
    """Return whether the result has a batch dimension. Raises OnnxError for an operator that needs one."""
    if node.operator in MOVES:
        result = _shape_after(node)
        return len(result) > 1 and result[0] == 1
    kinds = {value.has_batch for value in values}
    if len(kinds) > 1:
        raise OnnxError("found a value with a batch and one without")
    if kinds == {False} and node.operator not in _OF_ANY_RANK:
        raise OnnxError(f"found a value of shape {list(values[0].shape)}, allowed: one with a batch")
    return kinds == {True}


def reshape_layer(node: Node) -> nn.Module | None:
    """Return the layer of a node that reshapes. Raises OnnxError for a result without dimensions."""
    shape, result = node.value.shape, _shape_after(node)
    if not result:
        raise OnnxError("found a number, allowed: a result of at least one dimension")
    new = result[1:] if len(result) > 1 and result[0] == 1 else result
    if new == shape:
        return None
    return nn.Flatten() if len(new) == 1 else Apply(torch.reshape, (-1, *new))


def _shape_after(node: Node) -> Sizes:
    """Return the shape of the result in the file, of a node in MOVES, for a batch of 1."""
    shape = node.value.full_shape
    if node.operator == "Flatten":
        axis = node.attribute("axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    if node.operator == "Reshape":
        keeps_zero = node.attribute("allowzero", 0)
        sizes = [shape[i] if size == 0 and not keeps_zero else int(size) for i, size in enumerate(node.required(1))]
        return np.empty(shape, bool).reshape(sizes).shape
    axes = node.attribute("axes", None) if node.opset < 13 else node.constant(1)
    axes = None if axes is None else [int(axis) for axis in axes]
    if node.operator == "Squeeze":
        if axes is None:
            raise OnnxError("found no axes, allowed: axes to remove")
        return np.empty(shape, bool).squeeze(tuple(axes)).shape
    return tuple(np.expand_dims(np.empty(shape, bool), tuple(axes or ())).shape)


def pads_of(node: Node, kernel: Sizes, stride: Sizes, dilation: Sizes) -> tuple[Sizes, Sizes]:
    """Return the padding of a window before and after, for each dimension."""
    kind = node.attribute("auto_pad", "NOTSET")
    if kind == "NOTSET":
        pads = tuple(node.attribute("pads", [0] * 2 * len(kernel)))
        return pads[: len(kernel)], pads[len(kernel) :]
    if kind == "VALID":
        return (0,) * len(kernel), (0,) * len(kernel)
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise OnnxError(f"found auto_pad = {kind!r}, allowed: 'NOTSET', 'VALID', 'SAME_UPPER', 'SAME_LOWER'")
    sizes = zip(node.value.shape[1:], kernel, stride, dilation, strict=True)
    totals = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, k, s, d in sizes]
    small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (small, large) if kind == "SAME_UPPER" else (large, small)
