"""Operators that change only the shape, and the padding of convolutions and pools."""

import numpy as np
from torch import nn

from cerdeq.onnx.errors import OnnxError
from cerdeq.onnx.layers import Reshape
from cerdeq.onnx.node import Node

MOVES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
Sizes = tuple[int, ...]


def reshape_layer(node: Node) -> nn.Module | None:
    """Return the layer of a node that reshapes. Raises OnnxError if it mixes the batch with other dimensions."""
    shape, batches = node.value.shape, (2, 3) if node.is_batched else (1,)
    results = [shape_after(node, (batch, *shape)) for batch in batches]
    if any(result[:1] != (batch,) for result, batch in zip(results, batches, strict=True)) or len(results[0]) < 2:
        raise OnnxError(
            f"found a batch of {batches[0]} reshaped to {list(results[0])}: the batch must stay dimension 0"
        )
    new = results[0][1:]
    if new == shape:
        return None
    return nn.Flatten() if len(new) == 1 else Reshape(new)


def shape_after(node: Node, shape: Sizes) -> Sizes:
    """Return the shape of the result, of a node in MOVES and its first input's complete shape."""
    if node.operator == "Flatten":
        axis = node.attribute("axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    if node.operator == "Reshape":
        return _reshape(node, shape)
    axes = node.attribute("axes", None) if node.opset < 13 else node.constant(1)
    axes = None if axes is None else [int(axis) for axis in axes]
    if node.operator == "Squeeze":
        if axes is None:
            raise OnnxError("found no axes, allowed: axes to remove")
        return np.empty(shape, bool).squeeze(tuple(axes)).shape
    return tuple(np.expand_dims(np.empty(shape, bool), tuple(axes or ())).shape)


def _reshape(node: Node, shape: Sizes) -> Sizes:
    target = node.required(1)
    keeps_zero = node.attribute("allowzero", 0)
    sizes = [shape[i] if size == 0 and not keeps_zero else int(size) for i, size in enumerate(target)]
    return np.empty(shape, bool).reshape(sizes).shape


def pads_of(node: Node, kernel: Sizes, stride: Sizes, dilation: Sizes) -> tuple[Sizes, Sizes]:
    """Return the padding before and after of a 2-d window, for height and width."""
    kind = node.attribute("auto_pad", "NOTSET")
    if kind == "NOTSET":
        pads = tuple(node.attribute("pads", [0, 0, 0, 0]))
        return pads[:2], pads[2:]
    if kind == "VALID":
        return (0, 0), (0, 0)
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise OnnxError(f"found auto_pad = {kind!r}, allowed: 'NOTSET', 'VALID', 'SAME_UPPER', 'SAME_LOWER'")
    sizes = zip(node.value.shape[1:], kernel, stride, dilation, strict=True)
    totals = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, k, s, d in sizes]
    small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (small, large) if kind == "SAME_UPPER" else (large, small)
