"""A torch module as a list of steps."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.errors import explained_errors
from cerdeq.operators.backward import nested_items
from cerdeq.operators.record import Operator
from cerdeq.operators.table import module_arguments

_NAMED_INPUTS = ("input", "other", "tensors")
UNKNOWN = object()  # in place of a value that depends on the input


@dataclass(frozen=True)
class Reference:
    """The value of an earlier step, in a step's arguments."""

    index: int


@dataclass(frozen=True)
class Step:
    """One operation.

    name: unique in the program.
    record: its entry in the rule table; None if it does not depend on the input, so that it is simply run.
    target: the leaf module or function that is called.
    args, kwargs: its arguments, with References to earlier values.
    sources: the bounded values among its arguments, in order.
    line: the user's line of code, for messages.
    """

    name: str
    record: Operator | None
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    sources: tuple[int, ...] = ()
    line: str = ""

    @property
    def where(self) -> str:
        """The operation, its node and the user's line, for messages."""
        name = self.record.name if self.record is not None else getattr(self.target, "__name__", "a constant")
        return f"{name} at node '{self.name}'{self.line}"

    def call(self, values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments and options of the rules, or of the target if there is no record, from earlier values."""
        arguments = [resolved(arg, values) for arg in self.args]
        if self.record is not None and isinstance(self.target, nn.Module):
            return arguments, module_arguments(self.record, self.target)
        return arguments, {name: resolved(arg, values) for name, arg in self.kwargs.items()}

    def run(self, values: list[Any]) -> Any:
        """Return what the target computes from earlier values."""
        arguments = [resolved(arg, values) for arg in self.args]
        return self.target(*arguments, **{name: resolved(arg, values) for name, arg in self.kwargs.items()})


@dataclass(frozen=True)
class Program:
    """The steps of a module with one tensor in and one out. Value 0 is the input, value i + 1 that of steps[i]."""

    steps: tuple[Step, ...]
    output: int


def resolved(arg: Any, values: list[Any]) -> Any:
    """Return an argument with values in place of its References."""
    if isinstance(arg, Reference):
        return values[arg.index]
    if isinstance(arg, list | tuple):
        items = [resolved(item, values) for item in arg]
        return items if isinstance(arg, list) else tuple(items)  # never torch.fx's own lists: they do not compile
    if isinstance(arg, slice):
        return slice(*[resolved(end, values) for end in (arg.start, arg.stop, arg.step)])
    return arg


def value_of(step: Step, values: list[Any]) -> Any:
    """Return what a step computes from earlier values; UNKNOWN if one of these is, or for a tensor without values."""
    arguments = [resolved(arg, values) for arg in (*step.args, *step.kwargs.values())]
    if any(item is UNKNOWN for item in nested_items(arguments)):
        return UNKNOWN
    with explained_errors("torch cannot compute a constant (of a float32 model in float64, too)", lambda: step.where):
        value = step.run(values)
    return UNKNOWN if isinstance(value, Tensor) and value.is_meta else value


def positional(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, those that were passed by torch's names `input` and `other` in their positions."""
    named = [kwargs[name] for name in _NAMED_INPUTS if name in kwargs]
    return (*args, *named), {name: value for name, value in kwargs.items() if name not in _NAMED_INPUTS}


def is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and numbers; NaN is the same as NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is neither sparse nor quantized."""
    return tensor.layout == torch.strided and not tensor.is_quantized
