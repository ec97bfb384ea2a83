"""Nodes of an ONNX file, with what their inputs are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq.errors import OnnxError


@dataclass(frozen=True)
class Value:
    """A value that depends on the input.

    number: as in OnnxNetwork. shape: of one example. has_batch: False if it has no batch dimension in the file.
    """

    number: int
    shape: tuple[int, ...]
    has_batch: bool = True

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape in the file, for a batch of 1."""
        return (1, *self.shape) if self.has_batch else self.shape


Argument = Value | np.ndarray | None


@dataclass(frozen=True)
class Node:
    """A node of the file.

    inputs: None for an optional one that is left out. makers: the layers that made its inputs, of inputs that no other
    node takes. opset: of the file.
    """

    operator: str
    attributes: dict[str, Any]
    inputs: list[Argument]
    makers: list[nn.Module]
    opset: int

    @property
    def value(self) -> Value:
        """The first input. Raises OnnxError if it does not depend on the network's input."""
        if not isinstance(self.inputs[0], Value):
            raise OnnxError("found a constant as first input, allowed: a value that depends on the network's input")
        return self.inputs[0]

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute; numbers are of float32, as ONNX's are."""
        value = self.attributes.get(name, default)
        if isinstance(value, float):
            return float(np.float32(value))
        return value.decode() if isinstance(value, bytes) else value

    def constant(self, position: int) -> np.ndarray | None:
        """Return an input that must be constant, None if it is left out."""
        argument = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(argument, Value):
            raise OnnxError(f"input {position} depends on the network's input, allowed: a constant")
        return argument

    def required(self, position: int) -> np.ndarray:
        """Return an input that must be constant and may not be left out."""
        array = self.constant(position)
        if array is None:
            raise OnnxError(f"input {position} is missing")
        return array

    def numbers(self, position: int) -> Tensor | None:
        """Return a constant input of float32, None if it is left out."""
        array = self.constant(position)
        if array is not None and array.dtype != np.float32:
            raise OnnxError(f"input {position}: found numbers of {array.dtype}, allowed: float32")
        return None if array is None else torch.tensor(array)  # a copy: the file's are read-only

    def weight(self, position: int) -> Tensor:
        """Return a constant input of float32 that may not be left out."""
        self.required(position)
        numbers = self.numbers(position)
        assert numbers is not None
        return numbers

    def allow(self, name: str, default: Any, *allowed: Any) -> None:
        """Raise OnnxError unless an attribute has one of the allowed values."""
        value = self.attribute(name, default)
        if value not in allowed:
            raise OnnxError(f"found {name} = {value!r}, allowed: {', '.join(map(repr, allowed))}")
