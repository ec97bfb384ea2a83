"""A network as a list of steps, and its margins over boxes of images by intervals.

`cerdeq.bounds.trace` lists the module's steps, so that what certification refuses is refused here, too. What each layer
computes is defined in this package.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq import bounds
from cerdeq.bounds import Program, Reference, trace
from cerdeq.bounds.refusals import refuse_training
from cerdeq.equilibrium import FixedPoint, NotConvergedError
from harness.checker import maps
from harness.checker.boxes import Array, Box, affine, relu
from harness.checker.equilibrium import NotProvedError, equilibrium
from harness.checker.maps import Map, UnknownLayerError, array

_AGREEMENT = 1e-4  # of logits, relative to 1 + their size, beside their proved boxes


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


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode that takes images [B, C, H, W].

    weight [K, N], bias [K]: of the last step, which is linear.
    """

    steps: list[Step]
    weight: Array
    bias: Array

    def refuse_other_logits(self, model: nn.Module, images: Array) -> None:
        """Raise UnknownLayerError if the model computes other logits of images [B, C, H, W] than these steps.

        Code that tests a value's type takes another branch under torch.fx. And the logits of an image must not depend
        on other images: they are computed alone, and all together.
        """
        try:
            features = self.boxes(Box(images, np.zeros_like(images)))[self.steps[-1].sources[0]]
            with torch.no_grad():
                parts = [model(part) for part in torch.from_numpy(images).split(1)]
                together = model(torch.from_numpy(images))
        except (NotProvedError, NotConvergedError):
            return  # there is nothing to compare; without a proof of contraction nothing is confirmed
        logits = affine(features, self.weight, self.bias, maps.matrix, self.weight.shape[1])
        allowed = logits.radius + _AGREEMENT * (1 + np.abs(logits.center))
        for computed in (torch.cat(parts).numpy(), together.numpy()):
            alike = computed.shape == logits.center.shape and (np.abs(computed - logits.center) <= allowed).all()
            if not alike:
                raise UnknownLayerError("the network, whose torch.fx trace gives other logits,")

    def boxes(self, images: Box) -> list[Box]:
        """Return the box of every value but the logits, by intervals."""
        return boxes_of(self.steps[:-1], images)

    def margins(self, values: list[Box], labels: Array) -> Box:
        """Return the box of the margins over every other class, [B, K - 1]. values: as from `boxes`."""
        return self.rows(values, np.stack([self.margin_spec(label) for label in labels]))

    def margin_spec(self, label: int) -> Array:
        """Return the margins over every other class as rows of the logits, [K - 1, K]."""
        units = np.eye(len(self.bias))
        return units[label] - np.delete(units, label, axis=0)

    def rows(self, values: list[Box], spec: Array) -> Box:
        """Return the box of rows of outputs, [B, R]. values: as from `boxes`.

        spec: [B, R, K]; each row is an output, or the difference of two: more would be rounded more than once.
        """
        features, terms = values[self.steps[-1].sources[0]], self.weight.shape[1]
        if features.center.ndim != 2:
            raise UnknownLayerError(f"a last layer of values of shape {list(features.center.shape[1:])}")
        product = partial(np.einsum, "brn,bn->br")
        return affine(features, spec @ self.weight, spec @ self.bias, product, terms)


def read_network(model: nn.Module) -> Network:
    """Return the network of a module. Raises UnknownLayerError for a layer or operator without a rule."""
    steps, last = read_steps(model)
    if not isinstance(last, nn.Linear):
        raise UnknownLayerError(f"{steps[-1].name} is the last layer, and not linear")
    bias = last.bias if last.bias is not None else torch.zeros(last.out_features)
    return Network(steps, array(last.weight), array(bias))


def read_steps(model: nn.Module) -> tuple[list[Step], Any]:
    """Return the steps of a module, and what the last one calls. Raises UnknownLayerError as `read_network`."""
    program, numbers, constants, steps = _read(model), {0: 0}, dict[int, Array](), list[Step]()
    for number, step in enumerate(program.steps, start=1):
        if step.record is not None:
            operation, sources = _operation_of(step, constants), tuple(numbers[source] for source in step.sources)
            steps.append(Step(step.name, operation, sources))
            if step.target in _ABSOLUTE:
                steps.append(Step(f"{step.name}/absolute", maps.absolute(), (len(steps), *sources)))
            numbers[number] = len(steps)
        elif not step.args and not step.kwargs:  # a parameter or buffer; no numbers that the model computes
            constants[number] = array(step.target())
    if not steps or numbers.get(program.output) != len(steps):
        raise UnknownLayerError("an output that is not the last layer's")
    return steps, program.steps[program.output - 1].target


def boxes_of(steps: list[Step], images: Box) -> list[Box]:
    """Return the box of every value, by intervals: of the images, and of each step's result."""
    values = [images]
    for step in steps:
        values.append(result_box(step, *[values[source] for source in step.sources]))
    return values


def result_box(step: Step, *sources: Box) -> Box:
    """Return the box of a step's result from the boxes of its sources."""
    if isinstance(step.operation, Map):
        return step.operation.box(*sources)
    return relu(*sources) if step.operation.weight is None else equilibrium(step.operation.weight, *sources)


def _read(model: nn.Module) -> Program:
    """Return the model's steps, read as for its certification. Raises UnknownLayerError for what that refuses."""
    try:
        refuse_training(model)
        return trace(model)
    except (TypeError, ValueError) as error:  # UnsupportedOperator, torch.fx's TraceError
        raise UnknownLayerError(f"the network ({error})") from None


def _operation_of(step: bounds.Step, constants: dict[int, Array]) -> Map | Activation:
    """Return the operation of a step whose value depends on the images."""
    if isinstance(step.target, nn.Module):
        if type(step.target) not in _MODULES:
            raise UnknownLayerError(f"{step.name}, {step.target},")
        return _MODULES[type(step.target)](step.target)
    if step.target in _ABSOLUTE:
        return Activation(None)
    args: list[Any] = [constants.get(arg.index, arg) if isinstance(arg, Reference) else arg for arg in step.args]
    match step.target, args:
        case (operator.add | operator.iadd, [Reference(), Reference()]) if len(step.sources) == 2:
            return maps.add_values()
        case (operator.add | operator.iadd, [Reference(), np.ndarray() as constant]):
            return maps.add_constant(constant)
        case (operator.add, [np.ndarray() as constant, Reference()]):
            return maps.add_constant(constant)
        case (operator.sub | operator.isub, [Reference(), np.ndarray() as constant]):
            return maps.add_constant(-constant)
        case (operator.sub, [np.ndarray() as constant, Reference()]):
            return maps.subtract_from_constant(constant)
        case (operator.mul | operator.imul, [Reference(), np.ndarray() as constant]):
            return maps.multiply_by_constant(constant)
        case (operator.mul, [np.ndarray() as constant, Reference()]):
            return maps.multiply_by_constant(constant)
        case (operator.truediv | operator.itruediv, [Reference(), np.ndarray() as constant]):
            return maps.divide_by_constant(constant)
        case (operator.getitem, [Reference(), tuple() as items]):
            return maps.index(tuple([*item] if isinstance(item, list) else item for item in items))
        case (torch.cat, [[*parts], int() as dim]) if dim > 0 and not step.kwargs and len(step.sources) == len(parts):
            return maps.concatenate(dim)
        case (operator.matmul | torch.matmul, [Reference(), np.ndarray() as constant]) if not step.kwargs:
            return maps.product(constant.T, np.zeros(1))
        case (torch.reshape | Tensor.reshape | Tensor.view, [Reference(), -1, *sizes]) if _are_sizes(sizes):
            return maps.reshape(tuple(sizes))
        case (torch.permute | Tensor.permute, [Reference(), *order]) if _are_sizes(order):
            return maps.permute(tuple(order))
        case (F.pad, [Reference(), [*sizes]]) if _are_sizes(sizes) and step.kwargs in _ZERO_PADDING:
            return maps.pad(tuple(sizes))
    raise UnknownLayerError(f"{step.name}, {step.target},")


def _are_sizes(values: list[Any]) -> bool:
    """Return whether all values are integers of at least 0: no sizes that the network computes."""
    return all(type(value) is int and value >= 0 for value in values)


_ABSOLUTE = torch.abs, torch.absolute, Tensor.abs, Tensor.absolute
_ZERO_PADDING = [{"mode": "constant", "value": None}, {"mode": "constant", "value": 0.0}]
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
