"""Small networks of the literature whose trained weights are published: no batch norm."""

import reprlib
from collections import OrderedDict

from torch import nn

from baselines.registry import DEEPEST, register
from cerdeq.layers import Named, Shape, scale_channels


@register("fc")
def fc(shape: Shape, classes: int, width: float = 1.0, hidden: list[int] | None = None) -> nn.Sequential:
    """Return a fully connected network.

    hidden: the units of each hidden layer; None for FC of Jovanović et al. (TMLR 2022): 400, 200, 100, 100.
    """
    hidden = [400, 200, 100, 100] if hidden is None else hidden
    if not 1 <= len(hidden) <= DEEPEST or min(hidden) < 1:
        allowed = f"hidden must be numbers of at least 1, from 1 to {DEEPEST:,}"
        raise ValueError(f"{allowed}, found {len(hidden)} in {reprlib.repr(hidden)}")
    return _network(shape, classes, width, [], hidden)


@register("cnn-a")
def cnn_a(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return CNN-A of Dathathri et al. (2020), also the small network of Wong and Kolter (2018).

    Two 4x4 convolutions of 16 and 32 channels, stride 2 and padding 1, a linear layer of 100, the classifier.
    """
    return _network(shape, classes, width, [(16, 2, 1), (32, 2, 1)], [100])


@register("convplus")
def convplus(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return CONV+ of Jovanović et al. (TMLR 2022), the small network of Gowal et al. (2018).

    Two 4x4 convolutions of 16 and 32 channels, strides 2 and 1, without padding, a linear layer of 100, the classifier.
    """
    return _network(shape, classes, width, [(16, 2, 0), (32, 1, 0)], [100])


def _network(
    shape: Shape, classes: int, width: float, convolutions: list[tuple[int, int, int]], hidden: list[int]
) -> nn.Sequential:
    """Return 4x4 convolutions, flattening, linear layers and the classifier, with ReLUs between.

    convolutions: channels at width 1, stride and padding. hidden: units at width 1. Where an image is smaller than 4x4,
    the kernel is as small.
    """
    layers: Named = []
    channels, side = shape[0], shape[1]
    for number, (base, stride, padding) in enumerate(convolutions, start=1):
        kernel = min(4, side + 2 * padding)
        convolution = nn.Conv2d(channels, scale_channels(base, width), kernel, stride=stride, padding=padding)
        layers += [(f"conv{number}", convolution), (f"relu{number}", nn.ReLU())]
        channels, side = convolution.out_channels, (side + 2 * padding - kernel) // stride + 1
    layers.append(("flatten", nn.Flatten()))
    features = channels * side * side
    for number, base in enumerate(hidden, start=1):
        units = scale_channels(base, width)
        layers += [(f"linear{number}", nn.Linear(features, units)), (f"relu_linear{number}", nn.ReLU())]
        features = units
    return nn.Sequential(OrderedDict([*layers, ("classifier", nn.Linear(features, classes))]))
