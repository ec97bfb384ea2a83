"""One function for each operator: from a node to the layer that computes it, None if the node returns its value.

What an operator means: https://onnx.ai/onnx/operators. A function raises OnnxError for attributes that it has no layer
for. Layers are torch's own where these exist, so that bounds and the checker know them.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.errors import OnnxError
from cerdeq.onnx.layers import Apply, Concatenate, WithConstant
from cerdeq.onnx.node import Node, Value
from cerdeq.onnx.shapes import MOVES, pads_of, reshape_layer

_LARGEST = torch.finfo(torch.float32).max  # a limit that large is none
_IMAGES = "images, [channels, height, width]"
Layer = Callable[[Node], nn.Module | None]


def constant_of(node: Node) -> np.ndarray:
    """Return the numbers of a node Constant."""
    name, value = next(iter(node.attributes.items()))
    if name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise OnnxError(f"found {name}, allowed: a tensor or numbers")
    kind = np.float32 if "float" in name else None
    return np.asarray(value, dtype=kind)


def _module(make: Callable[..., Any], options: dict[str, Any], **tensors: Tensor | None) -> Any:
    """Return a module with these parameters and buffers. It draws no random numbers."""
    module = make(**options, device="meta")
    for name, tensor in tensors.items():
        is_buffer = name in module._buffers
        setattr(module, name, tensor if is_buffer or tensor is None else nn.Parameter(tensor))
    return module


def _two_dimensional(node: Node) -> None:
    if len(node.value.shape) != 3:
        raise OnnxError(f"found inputs of shape {list(node.value.shape)}, allowed: {_IMAGES}")


def _conv(node: Node) -> nn.Module:
    weight, options = _convolution(node, {3: "sequences, [channels, length]", 4: _IMAGES})
    make = nn.Conv2d if weight.dim() == 4 else nn.Conv1d
    before, after = pads_of(node, options["kernel_size"], options["stride"], options["dilation"])
    sizes = {"in_channels": weight.shape[1] * options["groups"], "out_channels": len(weight)}
    padding = {"padding": before if before == after else 0}
    conv = _module(make, sizes | options | padding, weight=weight, bias=node.numbers(2))
    return conv if before == after else _padded(before, after, conv)


def _conv_transpose(node: Node) -> nn.Module:
    weight, options = _convolution(node, {4: _IMAGES})
    node.allow("auto_pad", "NOTSET", "NOTSET")
    if "output_shape" in node.attributes:
        raise OnnxError("found output_shape, allowed: pads and output_padding")
    pads = node.attribute("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise OnnxError(f"found padding {pads[:2]} before and {pads[2:]} after, allowed: equal ones")
    sizes = {"in_channels": len(weight), "out_channels": weight.shape[1] * options["groups"]}
    padding = {"padding": tuple(pads[:2]), "output_padding": tuple(node.attribute("output_padding", [0, 0]))}
    return _module(nn.ConvTranspose2d, sizes | options | padding, weight=weight, bias=node.numbers(2))


def _convolution(node: Node, inputs: dict[int, str]) -> tuple[Tensor, dict[str, Any]]:
    """Return the weight, and the options that all convolutions have. inputs: by dimensions of the weight, the input."""
    weight, shape = node.weight(1), list(node.value.shape)
    if weight.dim() not in inputs:
        raise OnnxError(f"found a kernel of shape {list(weight.shape)}, allowed: of {' or '.join(inputs.values())}")
    if len(shape) != weight.dim() - 1:
        raise OnnxError(f"found inputs of shape {shape}, allowed: {inputs[weight.dim()]}")
    ones = [1] * (weight.dim() - 2)
    stride, dilation = (tuple(node.attribute(name, ones)) for name in ("strides", "dilations"))
    sizes = {"kernel_size": tuple(weight.shape[2:]), "stride": stride, "dilation": dilation}
    return weight, sizes | {"groups": node.attribute("group", 1)}


def _padded(before: tuple[int, ...], after: tuple[int, ...], layer: nn.Module) -> nn.Module:
    """Return a layer behind zeros around an image or a sequence."""
    ends = zip(reversed(before), reversed(after), strict=True)
    return nn.Sequential(Apply(F.pad, tuple(size for pair in ends for size in pair)), layer)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return the layer of a weight [outputs, inputs]."""
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return _module(nn.Linear, sizes, weight=weight.contiguous(), bias=bias)


def _gemm(node: Node) -> nn.Module:
    node.allow("alpha", 1.0, 1.0)
    node.allow("beta", 1.0, 1.0)
    node.allow("transA", 0, 0)
    weight, bias = node.weight(1), node.numbers(2)
    if len(node.value.shape) != 1 or weight.dim() != 2:
        raise OnnxError(f"found inputs of shape {list(node.value.shape)}, allowed: vectors")
    weight = weight if node.attribute("transB", 0) else weight.T
    if bias is not None:
        if bias.dim() == 2 and len(bias) != 1:
            raise OnnxError(f"found a bias of shape {list(bias.shape)}, allowed: one for all examples")
        bias = bias.expand(1, len(weight))[0].clone()
    return _linear(weight, bias)


def _matmul(node: Node) -> nn.Module:
    first, second = node.inputs
    if isinstance(first, Value) and (weight := node.weight(1)).dim() == 2:
        return _linear(weight.T, None)
    is_vector = isinstance(second, Value) and not second.has_batch and len(second.shape) == 1
    if is_vector and (weight := node.weight(0)).dim() == 2:
        return _linear(weight, None)
    raise OnnxError("allowed: a value times a constant matrix")


def _batch_norm(node: Node) -> nn.Module:
    node.allow("training_mode", 0, 0)
    node.allow("spatial", 1, 1)
    make = nn.BatchNorm2d if len(node.value.shape) == 3 else nn.BatchNorm1d
    scale, bias, mean, variance = (node.weight(position) for position in range(1, 5))
    if bool((variance < 0).any()):
        raise OnnxError("found a negative variance")
    options = {"num_features": len(scale), "eps": node.attribute("epsilon", 1e-5)}
    statistics = {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}
    return _module(make, options, weight=scale, bias=bias, **statistics)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Layer:
    """Return the layers of a sum, difference, product or quotient of two values, or of a value and a constant."""

    def layer(node: Node) -> nn.Module | None:
        values = [argument for argument in node.inputs if isinstance(argument, Value)]
        if len(values) == 2:
            if function not in (operator.add, operator.sub):
                raise OnnxError("found two values that depend on the network's input, allowed: a value and a constant")
            first, second = (list(value.shape) for value in values)
            if len(first) != len(second):  # numbers of one example would be added to another one's
                raise OnnxError(f"found values of shapes {first} and {second}, allowed: equally many dimensions")
            return Apply(function)
        is_first = node.inputs[0] is not values[0]
        constant, full_shape = node.weight(0 if is_first else 1), values[0].full_shape
        has_batch = values[0].has_batch and constant.dim() == len(full_shape)
        if constant.dim() > len(full_shape) or (has_batch and len(constant) > 1):
            raise OnnxError(f"found a constant of shape {list(constant.shape)}, allowed: the same for all examples")
        if function is operator.truediv and (is_first or bool((constant == 0).any())):
            raise OnnxError("allowed: a value divided by a constant without zeros")
        if function is operator.add and _is_bias(node, constant):
            return None
        return WithConstant(function, constant, is_first)

    return layer


def _is_bias(node: Node, constant: Tensor) -> bool:
    """Return whether a constant could be made the bias of the layer that computes the value."""
    layer = node.makers[0] if node.makers else None
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or layer.bias is not None:
        return False
    channels, ones = len(layer.weight), (1,) * (layer.weight.dim() - 2)
    if constant.shape[-1 - len(ones) :] != (channels, *ones) or constant.numel() != channels:
        return False
    layer.bias = nn.Parameter(constant.flatten())
    return True


def _pool(node: Node) -> tuple[Any, Any, Any, Any]:
    """Return kernel, stride, and padding before and after."""
    _two_dimensional(node)
    node.allow("ceil_mode", 0, 0)
    kernel = tuple(node.attribute("kernel_shape", None))
    stride, dilation = tuple(node.attribute("strides", [1, 1])), tuple(node.attribute("dilations", [1, 1]))
    return kernel, stride, *pads_of(node, kernel, stride, dilation)


def _average_pool(node: Node) -> nn.Module:
    if any(size != 1 for size in node.attribute("dilations", [1, 1])):
        raise OnnxError("found dilations, allowed: none")
    kernel, stride, before, after = _pool(node)
    count = bool(node.attribute("count_include_pad", 0))
    if before == after:
        return nn.AvgPool2d(kernel, stride, before, count_include_pad=count)
    if not count:
        raise OnnxError(f"found padding {before} before and {after} after, allowed: equal ones")
    return _padded(before, after, nn.AvgPool2d(kernel, stride))


def _max_pool(node: Node) -> nn.Module:
    kernel, stride, before, after = _pool(node)
    if before != after:
        raise OnnxError(f"found padding {before} before and {after} after, allowed: equal ones")
    return nn.MaxPool2d(kernel, stride, before, tuple(node.attribute("dilations", [1, 1])))


def _global_average_pool(node: Node) -> nn.Module:
    _two_dimensional(node)
    return nn.AdaptiveAvgPool2d(1)


def _reduce_mean(node: Node) -> nn.Module:
    """Return the mean of height and width, as torch writes adaptive pooling to one pixel."""
    axes = node.attribute("axes", None) if node.opset < 18 else node.constant(1)
    node.allow("keepdims", 1, 1)
    if axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise OnnxError(f"found axes {axes}, allowed: those of height and width")
    return _global_average_pool(node)


def _transpose(node: Node) -> nn.Module | None:
    rank = len(node.value.shape) + 1
    order = tuple(node.attribute("perm", range(rank)[::-1]))
    if order[0] != 0:
        raise OnnxError(f"found perm = {list(order)}, allowed: 0, the batch, first")
    return None if order == tuple(range(rank)) else Apply(torch.permute, order)


def _pad(node: Node) -> nn.Module | None:
    node.allow("mode", "constant", "constant")
    rank = len(node.value.shape) + 1
    if node.opset < 11:
        pads, value = list(node.attribute("pads", None)), node.attribute("value", 0.0)
    else:
        pads, filling = list(node.required(1)), node.numbers(2)
        value = 0.0 if filling is None else filling.item()
    chosen = node.constant(3)
    axes = list(range(rank)) if chosen is None else [int(axis) % rank for axis in chosen]
    ends = [(0, 0)] * rank
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        ends[axis] = int(before), int(after)
    if ends[0] != (0, 0) or min(map(min, ends)) < 0:
        raise OnnxError(f"found pads {list(map(int, pads))}, allowed: at least 0, and 0 of the batch")
    flat = tuple(size for pair in ends[:0:-1] for size in pair)
    return Apply(F.pad, flat, "constant", value) if any(flat) else None


def _concat(node: Node) -> nn.Module:
    values = [argument for argument in node.inputs if isinstance(argument, Value)]
    dim = node.attribute("axis", None) % (len(values[0].shape) + 1)
    if len(values) != len(node.inputs) or dim == 0:
        raise OnnxError("allowed: values that depend on the network's input, along another dimension than the batch")
    return Concatenate(dim)


def _index(node: Node, axis: int, item: Any) -> nn.Module:
    """Return the layer that takes an integer, a slice or a list of one axis of the file."""
    dim = axis % len(node.value.full_shape) + (not node.value.has_batch)
    if dim == 0:
        raise OnnxError("found a part of axis 0, the batch; allowed: parts of other axes")
    return Apply(operator.getitem, (slice(None),) * dim + (item,))


def _slice(node: Node) -> nn.Module | None:
    inputs = [node.constant(position) for position in range(1, 5)]
    if node.opset < 10:
        inputs = [node.attribute(name, None) for name in ("starts", "ends", "axes")] + [None]
    starts, ends, axes, steps = (None if values is None else [int(value) for value in values] for values in inputs)
    assert starts is not None and ends is not None
    layers = []
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        size = node.value.full_shape[axis]
        taken = range(size)[max(start, -size) : end : step]  # Python takes nothing backwards from before element 0
        if (start, step) == (0, 1) and end >= 2**31 - 1:
            continue  # all, also of the batch
        item = slice(taken.start, taken.stop, step) if step > 0 else [*taken]
        layers.append(_index(node, axis, item))
    return nn.Sequential(*layers) if layers else None


def _split(node: Node) -> nn.Module:
    axis, (number, count) = node.attribute("axis", 0), node.attribute("part", None)
    sizes = node.attribute("split", None) if node.opset < 13 else node.constant(1)
    if sizes is None:
        largest = -(-node.value.full_shape[axis] // count)
        sizes = [largest] * count  # the last one may be smaller
    start = int(sum(sizes[:number]))
    return _index(node, axis, slice(start, start + int(sizes[number])))


def _clip(node: Node) -> nn.Module | None:
    """Return layers that compute low + relu(x - low) =: m, then high - relu(high - m)."""
    limits = [node.numbers(1), node.numbers(2)] if node.opset >= 11 else [
        torch.tensor(node.attribute(name, np.inf), dtype=torch.float32) for name in ("min", "max")
    ]  # fmt: skip
    low, high = (limit if limit is not None and abs(limit) < _LARGEST else None for limit in limits)
    layers: list[nn.Module] = []
    if low is not None:
        layers = [WithConstant(operator.sub, low, False), nn.ReLU(), WithConstant(operator.add, low.clone(), False)]
    if high is not None:
        layers += [WithConstant(operator.sub, high, True), nn.ReLU(), WithConstant(operator.sub, high.clone(), True)]
    return nn.Sequential(*layers) if layers else None


def _dropout(node: Node) -> None:
    training = node.constant(2)
    if training is not None and bool(training):
        raise OnnxError("found training_mode = true, allowed: false")


def _softmax(node: Node) -> None:
    advice = "remove it: certify the logits, whose order is the same"
    raise OnnxError(f"not supported. If it is the last operator, {advice}")


LAYERS: dict[str, Layer] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Add": _arithmetic(operator.add),
    "Sub": _arithmetic(operator.sub),
    "Mul": _arithmetic(operator.mul),
    "Div": _arithmetic(operator.truediv),
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.attribute("alpha", 0.01)),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Tanh": lambda node: nn.Tanh(),
    "Sign": lambda node: Apply(torch.sign),
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Transpose": _transpose,
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": lambda node: _index(node, node.attribute("axis", 0), node.required(1).tolist()),
    "Split": _split,
    "Abs": lambda node: Apply(torch.abs),
    "Neg": lambda node: Apply(torch.neg),
    "Clip": _clip,
    "Dropout": _dropout,
    "Identity": lambda node: None,
    "Softmax": _softmax,
    **dict.fromkeys(MOVES, reshape_layer),
}
