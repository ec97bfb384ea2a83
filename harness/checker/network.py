"""Margins of a network over boxes of images, layer by layer: torch.fx says which layers, NumPy computes."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cerdeq.equilibrium import FixedPoint
from harness.checker.boxes import Array, Box, affine, convolved, relu, rounded, scaled
from harness.checker.equilibrium import equilibrium


class UnknownLayerError(Exception):
    """The network has a layer that is not rechecked."""


class Network:
    """A network, in evaluation mode, whose first input is images [B, C, H, W] and whose last layer is linear."""

    def __init__(self, model: nn.Module):
        graph = _Tracer().trace(model)
        self.model, self.modules, self.nodes = model, dict(model.named_modules()), list(graph.nodes)
        self.last = self.nodes[-1].all_input_nodes[0]
        classifier = self.modules.get(str(self.last.target))
        if not isinstance(classifier, nn.Linear):
            raise UnknownLayerError(f"{self.last.target} is the last layer, and not linear")
        self.classifier = classifier

    def margins(self, images: Box, labels: Array) -> Array:
        """Lower bounds of the margins over every other class, [B, K - 1]: those of all images in the boxes."""
        features = self._features(images)
        weight, bias = _array(self.classifier.weight), _array(self.classifier.bias)
        lower = np.empty((len(labels), len(weight) - 1))
        for label in np.unique(labels):
            rows = labels == label
            others = np.arange(len(weight)) != label
            part, difference = Box(features.center[rows], features.radius[rows]), weight[label] - weight[others]
            margins = affine(part, difference, bias[label] - bias[others], _matrix, weight.shape[1] + 4)
            lower[rows] = margins.lower
        return lower

    def _features(self, images: Box) -> Box:
        """The box of what the classifier is given."""
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node is self.last:
                break
            given = fx.node.map_arg(node.args, values.__getitem__)
            values[node] = images if node.op == "placeholder" else self._value(node, given)
        return values[self.last.all_input_nodes[0]]

    def _value(self, node: fx.Node, given: tuple[Any, ...]) -> Any:
        if node.op == "get_attr":
            return _array(operator.attrgetter(str(node.target))(self.model))
        layer = self.modules[str(node.target)] if node.op == "call_module" else None
        rule = _FUNCTIONS.get(node.target) if layer is None else _MODULES.get(type(layer))
        if rule is None:
            raise UnknownLayerError(f"{node.name}, {layer or node.target},")
        return rule(*given, **node.kwargs) if layer is None else rule(layer, *given, **node.kwargs)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FixedPoint) or super().is_leaf_module(module, name)


def _array(tensor: torch.Tensor) -> Array:
    """The very same numbers in float64."""
    return tensor.detach().double().numpy()


def _matrix(weight: Array, x: Array) -> Array:
    return x @ weight.T


def _linear(layer: nn.Linear, x: Box) -> Box:
    bias = None if layer.bias is None else _array(layer.bias)
    return affine(x, _array(layer.weight), bias, _matrix, layer.in_features)


def _conv(layer: nn.Conv2d, x: Box) -> Box:
    (stride, across), (kernel, wide), padding = layer.stride, layer.kernel_size, layer.padding
    square = (stride, kernel, padding) == (across, wide, (padding[0], padding[0]))
    if not square or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        raise UnknownLayerError(f"{layer}")

    def apply(weight: Array, values: Array) -> Array:
        return convolved(weight, values, stride, int(padding[0]), layer.groups)

    weight = _array(layer.weight)
    bias = None if layer.bias is None else _array(layer.bias).reshape(-1, 1, 1)
    return affine(x, weight, bias, apply, weight[0].size)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Box) -> Box:
    if layer.running_mean is None or layer.running_var is None or not layer.affine:
        raise UnknownLayerError(f"{layer}")
    shape = (-1, *[1] * (x.center.ndim - 2))
    mean, variance = _array(layer.running_mean).reshape(shape), _array(layer.running_var).reshape(shape)
    return scaled(x, mean, variance, layer.eps, _array(layer.weight).reshape(shape), _array(layer.bias).reshape(shape))


def _pool(layer: nn.AvgPool2d, x: Box) -> Box:
    size = layer.kernel_size
    if not isinstance(size, int) or layer.stride != size or layer.padding != 0:
        raise UnknownLayerError(f"{layer}")
    rows, columns = (side // size * size for side in x.center.shape[2:])
    weight = np.full((1, 1, size, size), 1 / size**2)  # the layer divides: one rounding more

    def apply(kernel: Array, values: Array) -> Array:
        flat = values[:, :, :rows, :columns].reshape(-1, 1, rows, columns)
        return convolved(kernel, flat, size, 0).reshape(*values.shape[:2], rows // size, columns // size)

    return affine(x, weight, None, apply, size**2 + 2)


def _flat(layer: nn.Flatten, x: Box) -> Box:
    return Box(x.center.reshape(len(x.center), -1), x.radius.reshape(len(x.center), -1))


def _sum(a: Box | Array, b: Box | Array) -> Box:
    a, b = (x if isinstance(x, Box) else Box(x, np.zeros_like(x)) for x in (a, b))
    return rounded(a.center + b.center, a.radius + b.radius, 1, np.abs(a.center) + np.abs(b.center))


def _difference(a: Box, constant: Array) -> Box:
    return rounded(a.center - constant, a.radius, 1, np.abs(a.center) + np.abs(constant))


def _quotient(a: Box, constant: Array) -> Box:
    return rounded(a.center / constant, a.radius / np.abs(constant))


def _joined(parts: list[Box], dim: int = 0) -> Box:
    return Box(np.concatenate([p.center for p in parts], dim), np.concatenate([p.radius for p in parts], dim))


_MODULES: dict[type, Callable[..., Box]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _pool,
    nn.Flatten: _flat,
    nn.Identity: lambda layer, x: x,
    nn.ReLU: lambda layer, x: relu(x),
    FixedPoint: lambda layer, h: equilibrium(_array(layer.weight), h),
}
_FUNCTIONS: dict[Any, Callable[..., Box]] = {
    operator.add: _sum, operator.sub: _difference, operator.truediv: _quotient, torch.cat: _joined,
}  # fmt: skip
