"""Layers of ONNX networks that torch has only as functions."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
RunInFloat32 = Callable[[np.ndarray], np.ndarray]
"""Inputs [B, *shape] in float32 -> outputs [B, ...], as the network's own runtime computes them."""


class OnnxNetwork(nn.Module):
    """Layers, each applied to earlier values. Value 0 is the input, value i + 1 the result of layer i.

    layers: by name. sources: for each layer, the numbers of the values that it takes. output: the number of the result.
    input_shape, output_shape: of one example.
    """

    def __init__(
        self, layers: dict[str, nn.Module], sources: list[tuple[int, ...]], output: int, shapes: tuple[Shape, Shape]
    ):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.sources, self.output = dict(zip(layers, sources, strict=True)), output
        self.input_shape, self.output_shape = shapes

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, ...] of inputs x [B, *input_shape]."""
        values = [x]
        for name, sources in self.sources.items():
            values.append(getattr(self, name)(*[values[source] for source in sources]))
        return values[self.output]


def window_of(layer: nn.Module) -> int:
    """Return how many products each number of a layer's result takes, at most."""
    if isinstance(layer, nn.Sequential):
        return max(map(window_of, layer))
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        return layer.weight[0].numel()
    size = getattr(layer, "kernel_size", 1)
    return prod(size) if isinstance(size, tuple) else size * size


class Apply(nn.Module):
    """`function` of one or more values, followed by further arguments."""

    def __init__(self, function: Callable[..., Tensor], *further: Any):
        super().__init__()
        self.function, self.further = function, further

    def forward(self, *values: Tensor) -> Tensor:
        """Return `function(*values, *further)`."""
        return self.function(*values, *self.further)


class WithConstant(nn.Module):
    """`function` of a value and a constant, or of the constant and the value."""

    constant: Tensor

    def __init__(self, function: Callable[[Any, Any], Any], constant: Tensor, constant_first: bool):
        super().__init__()
        self.function, self.constant_first = function, constant_first
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        """Return `function(x, constant)`, or `function(constant, x)`."""
        return self.function(self.constant, x) if self.constant_first else self.function(x, self.constant)


class Concatenate(nn.Module):
    """Concatenate values along a dimension other than the batch."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *values: Tensor) -> Tensor:
        """Return the values as one."""
        return torch.cat(values, self.dim)
