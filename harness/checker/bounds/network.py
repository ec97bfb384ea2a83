"""A network as a list of steps, and its margins over boxes of images by intervals.

`cerdeq.bounds.trace` lists the module's steps, so that what certification refuses is refused here, too. What each layer
computes is defined in this package.
"""

import copy
import operator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from cerdeq import bounds
from cerdeq.bounds import Program, Reference, UnsupportedOperator, refuse_other_precision, trace
from cerdeq.bounds.agreement import refuse_other_outputs
from cerdeq.equilibrium import NotConvergedError
from cerdeq.tracing.refusals import refuse_training
from harness.checker.bounds import maps
from harness.checker.bounds.boxes import Array, Box, affine, relu
from harness.checker.bounds.equilibrium import NotProvedError, equilibrium
from harness.checker.bounds.maps import Map, Product, UnknownLayerError, array
from harness.checker.bounds.operators import BATCH, SHAPE, VALUE, Operation, ReluStep, Stand, operation_of
from harness.checker.bounds.relaxations import Relaxation

_AGREEMENT = 1e-6  # of logits, relative to 1 + their size, beside their proved boxes


@dataclass(frozen=True)
class Step:
    """One step. Value 0 are the images, value i + 1 is the result of step i.

    name: the module's path or torch.fx's name of a function; with .2, .3 if it is used again.
    sources: the numbers of the values that it takes.
    """

    name: str
    operation: Operation
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

        They are computed alone, and all together: the logits of an image must not depend on other images. What it does
        to them must be what its trace says, as for its certification.
        """
        x = torch.from_numpy(images)
        try:
            features = self.boxes(Box(images, np.zeros_like(images)))[self.steps[-1].sources[0]]
            with torch.no_grad():
                parts, together = [model(part) for part in x.split(1)], model(x)
            refuse_other_outputs(model, trace(model), torch.cat([x[:2], x[:1]]))
        except (NotProvedError, NotConvergedError):
            return  # there is nothing to compare; without a proof of contraction nothing is confirmed
        except UnsupportedOperator as error:
            raise UnknownLayerError(f"the network ({error})") from None
        logits = affine(features, self.weight, self.bias, maps.matrix, self.weight.shape[1])
        allowed = logits.radius + _AGREEMENT * (1 + np.abs(logits.center))
        for computed in (torch.cat(parts).numpy(), together.numpy()):
            alike = computed.shape == logits.center.shape and (np.abs(computed - logits.center) <= allowed).all()
            if not alike:
                raise UnknownLayerError("a network whose torch.fx trace gives other logits than the network itself")

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
    steps = read_steps(model)
    last = steps[-1].operation
    if not isinstance(last, Product):
        raise UnknownLayerError(f"a last layer that is not linear, such as {steps[-1].name!r}")
    return Network(steps, last.weight, last.bias)


def read_steps(model: nn.Module) -> list[Step]:
    """Return the steps of a module. Raises UnknownLayerError, which names all steps without a rule."""
    program, numbers, steps, without_rule = _read(model), {0: 0}, list[Step](), list[str]()
    stands: dict[int, Any] = {0: VALUE}
    for number, step in enumerate(program.steps, start=1):
        try:
            if step.record is None:
                stands[number] = _constant_of(step, stands)
                continue
            args, kwargs = map_aggregate((step.args, step.kwargs), partial(_stand_for, stands=stands))
            operation = operation_of(step.target, args, kwargs)
            sources = tuple(numbers[source] for source in step.sources)
            steps.append(Step(step.name, operation, sources))
            if isinstance(operation, ReluStep) and operation.negative_slope:
                leaky = maps.leaky(operation.negative_slope)
                steps.append(Step(f"{step.name}/leaky", leaky, (len(steps), *sources)))
        except UnknownLayerError as error:
            without_rule.append(f"{error.what} at node '{step.name}'{step.line}")
        numbers[number], stands[number] = len(steps), VALUE
    if without_rule:
        raise UnknownLayerError("; ".join(without_rule))
    if not steps or numbers.get(program.output) != len(steps):
        raise UnknownLayerError("an output that is not the last layer's")
    return steps


def boxes_of(steps: list[Step], images: Box) -> list[Box]:
    """Return the box of every value, by intervals: of the images, and of each step's result."""
    values = [images]
    for step in steps:
        values.append(result_box(step, *[values[source] for source in step.sources]))
    return values


def result_box(step: Step, *sources: Box) -> Box:
    """Return the box of a step's result from the boxes of its sources.

    Raises NotProvedError for an equilibrium that may not exist or not be unique, or that its module may not solve.
    """
    operation = step.operation
    if isinstance(operation, Map | Relaxation):
        return operation.box(*sources)
    (h,) = sources
    if operation.weight is None:
        return relu(h)
    try:
        return equilibrium(operation.weight, h, operation.by_splitting)
    except NotProvedError as error:
        raise NotProvedError(f"{step.name}: {error}") from None


def _read(model: nn.Module) -> Program:
    """Return the model's steps, read as for its certification. Raises UnknownLayerError for what that refuses."""
    try:
        refuse_training(model)
        program = trace(model)
    except (TypeError, ValueError) as error:  # UnsupportedOperator, torch.fx's TraceError
        raise UnknownLayerError(f"this network: {error}") from None
    try:
        refuse_other_precision(trace(copy.deepcopy(model).float()), program)
    except (TypeError, ValueError) as error:
        raise UnknownLayerError(f"this network in float32, where small numbers become 0: {error}") from None
    return program


def _constant_of(step: bounds.Step, stands: dict[int, Any]) -> Any:
    """Return what stands for the result of a step that is not bounded; None for numbers that the network computes."""
    if not step.args and not step.kwargs:
        return array(step.target())  # a parameter, a buffer or a tensor made in forward
    first, *others = step.args or (None,)
    stand = stands.get(first.index) if isinstance(first, Reference) else None
    function = getattr(step.target, "function", step.target)
    call = (function, stand if isinstance(stand, Stand) else None, *others)
    if call in ((getattr, VALUE, "shape"), (Tensor.size, VALUE)):
        return SHAPE
    return BATCH if call in ((Tensor.size, VALUE, 0), (operator.getitem, SHAPE, 0)) else None


def _stand_for(part: Any, stands: dict[int, Any]) -> Any:
    """Return a part of arguments, or what stands for an earlier step. Raises UnknownLayerError for computed numbers."""
    if not isinstance(part, Reference):
        return part
    if stands.get(part.index) is None:
        raise UnknownLayerError("a constant that the network computes")
    return stands[part.index]
