"""Layers of ONNX networks that torch has only as functions."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return layer.weight[0].numel()
    size = getattr(layer, "kernel_size", 1)
    return prod(size) if isinstance(size, tuple) else size * size


class Combined(nn.Module):
    """`function` of two values."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return `function(a, b)`."""
        return self.function(a, b)


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


class Reshape(nn.Module):
    """Reshape each example."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, ...] as [B, *shape]."""
        return x.reshape(-1, *self.shape)


class Permute(nn.Module):
    """Reorder the dimensions; dimension 0, the batch, stays."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dimension `dims[i]` as dimension i."""
        return x.permute(*self.dims)


class Pad(nn.Module):
    """Pad with a constant. pads: as of torch, last dimension first."""

    def __init__(self, pads: tuple[int, ...], value: float):
        super().__init__()
        self.pads, self.value = pads, value

    def forward(self, x: Tensor) -> Tensor:
        """Return x, padded."""
        return F.pad(x, self.pads, value=self.value)


class Index(nn.Module):
    """Take parts of each example. items: an index of [B, ...], whose first item takes the batch."""

    def __init__(self, items: tuple[Any, ...]):
        super().__init__()
        self.items = items

    def forward(self, x: Tensor) -> Tensor:
        """Return x[items]."""
        return x[self.items]


class Absolute(nn.Module):
    """The absolute value."""

    def forward(self, x: Tensor) -> Tensor:
        """Return |x|."""
        return torch.abs(x)


class Sign(nn.Module):
    """-1, 0 or 1, element by element."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the signs of x."""
        return torch.sign(x)


class Concatenate(nn.Module):
    """Concatenate values along a dimension other than the batch."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, *values: Tensor) -> Tensor:
        """Return the values as one."""
        return torch.cat(values, self.dim)
