"""A network as a list of steps, which torch.fx finds, and its margins over boxes of images by intervals."""

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
    """z = relu(W z + h). weight: W, or None for 0: an ordinary ReLU of h."""

    weight: Array | None


@dataclass(frozen=True)
class Step:
    """One step. Value 0 are the images, value i + 1 is the result of step i.

    name: the module's path or torch.fx's name of a function; with .2, .3 if it is used again.
    sources: the numbers of the values that it takes.
    """

    name: str
    operation: Map | Activation
    sources: tuple[int, ...]


class Network:
    """A network in evaluation mode that takes images [B, C, H, W] and ends in a linear layer.

    Raises UnknownLayerError for a layer or operator without a rule.
    """

    def __init__(self, model: nn.Module):
        nodes = list(_Tracer().trace(model).nodes)
        modules, constants = dict(model.named_modules()), dict[fx.Node, Array]()
        numbers, used_names, self.steps = dict[fx.Node, int](), set[str](), list[Step]()
        for node in nodes[:-1]:
            if node.op == "get_attr":
                constants[node] = array(operator.attrgetter(str(node.target))(model))
                continue
            if node.op == "placeholder" and numbers:
                raise UnknownLayerError(f"{node.name}, a second input,")
            if node.op != "placeholder":
                operation, sources = _operation_of(node, modules, constants)
                name = str(node.target) if node.op == "call_module" else node.name
                self.steps.append(
                    Step(_unused_name(name, used_names), operation, tuple(numbers[source] for source in sources))
                )
            numbers[node] = len(self.steps)
        classifier = modules.get(str(nodes[-2].target))
        if not isinstance(classifier, nn.Linear) or nodes[-1].all_input_nodes != [nodes[-2]]:
            raise UnknownLayerError(f"{nodes[-2].target} is the last layer, and not linear")
        bias = classifier.bias if classifier.bias is not None else torch.zeros(classifier.out_features)
        self.weight, self.bias = array(classifier.weight), array(bias)

    def boxes(self, images: Box) -> list[Box]:
        """Return the box of every value but the logits, by intervals."""
        values = [images]
        for step in self.steps[:-1]:
            values.append(result(step, *[values[source] for source in step.sources]))
        return values

    def margins(self, values: list[Box], labels: Array) -> Box:
        """Return the box of the margins over every other class, [B, K - 1]. values: as from `boxes`."""
        others = np.stack([np.delete(np.arange(len(self.bias)), label) for label in labels])
        weight = self.weight[labels][:, None] - self.weight[others]
        bias = self.bias[labels][:, None] - self.bias[others]
        features, terms = values[self.steps[-1].sources[0]], self.weight.shape[1] + 4
        return affine(features, weight, bias, lambda w, x: np.einsum("bkn,bn->bk", w, x), terms)


def result(step: Step, *sources: Box) -> Box:
    """Return the box of a step's result from the boxes of its sources."""
    if isinstance(step.operation, Map):
        return step.operation.box(*sources)
    return relu(*sources) if step.operation.weight is None else equilibrium(step.operation.weight, *sources)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FixedPoint) or super().is_leaf_module(module, name)


def _unused_name(name: str, used_names: set[str]) -> str:
    """Return `name`, or the first of name.2, name.3, ... that is not used yet, and mark it as used."""
    names, number = name, 1
    while names in used_names:
        number += 1
        names = f"{name}.{number}"
    used_names.add(names)
    return names


def _operation_of(
    node: fx.Node, modules: dict[str, nn.Module], constants: dict[fx.Node, Array]
) -> tuple[Map | Activation, list[fx.Node]]:
    """Return a node's operation, and the nodes whose values it takes."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        if type(layer) not in _MODULES:
            raise UnknownLayerError(f"{node.name}, {layer},")
        return _MODULES[type(layer)](layer), list(node.all_input_nodes)
    args: list[Any] = [constants.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
    match node.target, args:
        case operator.add, [fx.Node(), fx.Node()]:
            return maps.add_values(), args
        case (operator.add, [fx.Node() as x, np.ndarray() as constant]):
            return maps.add_constant(constant), [x]
        case (operator.add, [np.ndarray() as constant, fx.Node() as x]):
            return maps.add_constant(constant), [x]
        case (operator.sub, [fx.Node() as x, np.ndarray() as constant]):
            return maps.add_constant(-constant), [x]
        case (operator.truediv, [fx.Node() as x, np.ndarray() as constant]):
            return maps.divide_by_constant(constant), [x]
        case (torch.cat, [parts, int() as dim]) if dim > 0 and not constants.keys() & set(parts):
            return maps.concatenate(dim), list(parts)
    raise UnknownLayerError(f"{node.name}, {node.target},")


_MODULES: dict[type, Callable[..., Map | Activation]] = {
    nn.Linear: maps.linear,
    nn.Conv2d: maps.convolution,
    nn.BatchNorm1d: maps.batch_norm,
    nn.BatchNorm2d: maps.batch_norm,
    nn.AvgPool2d: maps.pool,
    nn.Flatten: maps.flatten,
    nn.Identity: lambda layer: maps.add_constant(np.zeros(())),
    nn.ReLU: lambda layer: Activation(None),
    FixedPoint: lambda layer: Activation(array(layer.weight)),
}
