"""A network as a list of steps, and its margins over boxes of images by intervals: torch.fx says which layers."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cerdeq.equilibrium import FixedPoint
from harness.checker import maps
from harness.checker.boxes import Array, Box, affine, relu
from harness.checker.equilibrium import equilibrium
from harness.checker.maps import Map, UnknownLayerError, array


@dataclass(frozen=True)
class Activation:
    """z = relu(W z + h); weight: W, None for 0, which makes it an ordinary ReLU of h."""

    weight: Array | None


@dataclass(frozen=True)
class Step:
    """name: the module's path, or what torch.fx calls a function; with .2, .3 where used again.
    sources: the numbers of the values it takes. Value 0 is the images, value i + 1 the result of step i."""

    name: str
    does: Map | Activation
    sources: tuple[int, ...]


class Network:
    """A network, in evaluation mode, whose first input is images [B, C, H, W] and whose last layer is linear.

    Raises UnknownLayerError for what has no rule here.
    """

    def __init__(self, model: nn.Module):
        nodes = list(_Tracer().trace(model).nodes)
        modules, constants = dict(model.named_modules()), dict[fx.Node, Array]()
        numbers, taken, self.steps = dict[fx.Node, int](), set[str](), list[Step]()
        for node in nodes[:-1]:
            if node.op == "get_attr":
                constants[node] = array(operator.attrgetter(str(node.target))(model))
                continue
            if node.op == "placeholder" and numbers:
                raise UnknownLayerError(f"{node.name}, a second input,")
            if node.op != "placeholder":
                does, given = _rule(node, modules, constants)
                name = str(node.target) if node.op == "call_module" else node.name
                self.steps.append(Step(_unused(name, taken), does, tuple(numbers[source] for source in given)))
            numbers[node] = len(self.steps)
        classifier = modules.get(str(nodes[-2].target))
        if not isinstance(classifier, nn.Linear) or nodes[-1].all_input_nodes != [nodes[-2]]:
            raise UnknownLayerError(f"{nodes[-2].target} is the last layer, and not linear")
        bias = classifier.bias if classifier.bias is not None else torch.zeros(classifier.out_features)
        self.weight, self.bias = array(classifier.weight), array(bias)

    def margins(self, images: Box, labels: Array) -> Array:
        """Lower bounds of the margins over every other class, [B, K - 1]: those of all images in the boxes."""
        return self.margins_of(self.boxes(images)[self.steps[-1].sources[0]], labels)

    def margins_of(self, features: Box, labels: Array) -> Array:
        """`margins` from boxes of what the classifier is given."""
        return self._margin_ends(features, labels)[0]

    def breaks(self, image: Box, label: int) -> bool:
        """Whether some margin is proved to be below 0 for all images in the box [1, C, H, W]."""
        features = self.boxes(image)[self.steps[-1].sources[0]]
        return bool((self._margin_ends(features, np.array([label]))[1] < 0).any())

    def _margin_ends(self, features: Box, labels: Array) -> tuple[Array, Array]:
        weight, bias = self.weight, self.bias
        lower, upper = np.empty((2, len(labels), len(weight) - 1))
        for label in np.unique(labels):
            rows = labels == label
            others = np.arange(len(weight)) != label
            part, difference = Box(features.center[rows], features.radius[rows]), weight[label] - weight[others]
            margins = affine(part, difference, bias[label] - bias[others], maps.matrix, weight.shape[1] + 4)
            lower[rows], upper[rows] = margins.lower, margins.upper
        return lower, upper

    def boxes(self, images: Box) -> list[Box]:
        """The box of every value but the logits, by intervals."""
        values = [images]
        for step in self.steps[:-1]:
            values.append(result(step, *[values[source] for source in step.sources]))
        return values


def result(step: Step, *given: Box) -> Box:
    """The box of a step's result, from those of the values it takes."""
    if isinstance(step.does, Map):
        return step.does.box(*given)
    return relu(*given) if step.does.weight is None else equilibrium(step.does.weight, *given)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FixedPoint) or super().is_leaf_module(module, name)


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or the first of name.2, name.3 ... that is not `taken` yet; added to those."""
    names, number = name, 1
    while names in taken:
        number += 1
        names = f"{name}.{number}"
    taken.add(names)
    return names


def _rule(
    node: fx.Node, modules: dict[str, nn.Module], constants: dict[fx.Node, Array]
) -> tuple[Map | Activation, list[fx.Node]]:
    """What a node does, and the nodes whose values it takes."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        if type(layer) not in _MODULES:
            raise UnknownLayerError(f"{node.name}, {layer},")
        return _MODULES[type(layer)](layer), list(node.all_input_nodes)
    args: list[Any] = [constants.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
    match node.target, args:
        case operator.add, [fx.Node(), fx.Node()]:
            return maps.added(), args
        case (operator.add, [fx.Node() as x, np.ndarray() as constant]):
            return maps.moved(constant), [x]
        case (operator.add, [np.ndarray() as constant, fx.Node() as x]):
            return maps.moved(constant), [x]
        case (operator.sub, [fx.Node() as x, np.ndarray() as constant]):
            return maps.moved(-constant), [x]
        case (operator.truediv, [fx.Node() as x, np.ndarray() as constant]):
            return maps.divided(constant), [x]
        case (torch.cat, [parts, int() as dim]) if dim > 0 and not constants.keys() & set(parts):
            return maps.joined(dim), list(parts)
    raise UnknownLayerError(f"{node.name}, {node.target},")


_MODULES: dict[type, Callable[..., Map | Activation]] = {
    nn.Linear: maps.linear,
    nn.Conv2d: maps.convolution,
    nn.BatchNorm1d: maps.batch_norm,
    nn.BatchNorm2d: maps.batch_norm,
    nn.AvgPool2d: maps.pool,
    nn.Flatten: maps.flat,
    nn.Identity: lambda layer: maps.moved(np.zeros(())),
    nn.ReLU: lambda layer: Activation(None),
    FixedPoint: lambda layer: Activation(array(layer.weight)),
}
