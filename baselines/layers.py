"""Layers that networks share; most are (name, module) pairs for an nn.Sequential."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

Named = list[tuple[str, nn.Module]]
Plan = list[tuple[int, int]]  # (channels at width 1, stride) of each convolution or block
Shape = tuple[int, int, int]  # (channels, height, width)

CNN7: Plan = [(64, 1), (64, 1), (128, 2), (128, 1), (128, 1)]
"""The convolutions of CNN-7 (Shi et al. 2021), of which other networks keep the first ones."""


class Normalize(nn.Module):
    """(x - mean) / std per channel, the first layer of every network, so that eps is in pixel units."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pixels x [B, C, H, W], normalised."""
        return (x - self.mean) / self.std


def scale_channels(channels: int, width: float) -> int:
    """Return a channel count times the width factor, at least 1."""
    return max(1, round(channels * width))


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def convolution(name: str, inputs: int, outputs: int, stride: int = 1) -> Named:
    """Return a 3x3 convolution with padding 1, batch norm, ReLU."""
    return [
        (f"conv{name}", conv3(inputs, outputs, stride)),
        (f"norm{name}", nn.BatchNorm2d(outputs)),
        (f"relu{name}", nn.ReLU()),
    ]


def convolutions(inputs: int, plan: Plan, width: float) -> Named:
    """Return a `convolution` for each entry of the plan, numbered from 1; channels are scaled by the width factor."""
    layers = []
    for number, (channels, stride) in enumerate(plan, start=1):
        outputs = scale_channels(channels, width)
        layers += convolution(str(number), inputs, outputs, stride)
        inputs = outputs
    return layers


def add_head(
    layers: Named, channels: int, size: list[int], classes: int, width: float, norm: bool = True
) -> nn.Sequential:
    """Return a network of the layers and a head: flatten, linear, batch norm, ReLU, classifier.

    The linear layer has 512 units times the width factor.

    Args:
        layers: their output is [B, channels, *size].
        norm: whether to put batch norm after the linear layer.
    """
    hidden = scale_channels(512, width)
    head = [
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(channels * math.prod(size), hidden)),
        *([("norm_linear", nn.BatchNorm1d(hidden))] if norm else []),
        ("relu_linear", nn.ReLU()),
        ("classifier", nn.Linear(hidden, classes)),
    ]
    return nn.Sequential(OrderedDict(layers + head))


def extra_stride(shape: Shape) -> int:
    """Return 2 for images larger than 32 pixels, which get one more stride than CIFAR-10's, else 1."""
    return 2 if shape[1] > 32 else 1


def add_extra_stride(plan: Plan, shape: Shape) -> Plan:
    """Return the plan with the extra stride at its last entry of stride 1."""
    last = max(number for number, (_, stride) in enumerate(plan) if stride == 1)
    return [*plan[:last], (plan[last][0], extra_stride(shape)), *plan[last + 1 :]]


def size_after(shape: Shape, plan: Plan) -> list[int]:
    """Return height and width after 3x3 convolutions with padding 1 and the plan's strides."""
    size = list(shape[1:])
    for _, stride in plan:
        size = [(side - 1) // stride + 1 for side in size]
    return size
