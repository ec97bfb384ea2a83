"""Small networks of the literature without batch norm, and CONV and FC with an equilibrium."""

import reprlib
from collections import OrderedDict

from torch import nn

from baselines.equilibria import takes_equilibrium_options
from baselines.layers import Named, Shape, scale_channels
from baselines.registry import DEEPEST, check_layers, register
from baselines.tied import Unrolled
from cerdeq.equilibrium import Equilibrium


@register("fc")
def fc(shape: Shape, classes: int, width: float = 1.0, hidden: list[int] | None = None) -> nn.Sequential:
    """Return a fully connected network.

    hidden: the units of each hidden layer; None for FC of Jovanović et al. (TMLR 2022): 400, 200, 100, 100.
    """
    return _network(shape, classes, width, [], _check_hidden([400, 200, 100, 100] if hidden is None else hidden))


@register("fcdeq")
@takes_equilibrium_options("kernel_size")
def fcdeq(
    shape: Shape, classes: int, width: float = 1.0, hidden: list[int] | None = None, **options
) -> nn.Sequential:  # fmt: skip
    """Return FC with an Equilibrium, W a dense matrix, for its last hidden layer: FC itself if W = 0.

    hidden: the units of each hidden layer, those of the equilibrium last; None for one layer of 100. options: of
    `Equilibrium`, except kernel_size.
    """
    hidden = _check_hidden([100] if hidden is None else hidden)
    network, last = _network(shape, classes, width, [], hidden), f"linear{len(hidden)}"
    inject = network.get_submodule(last)
    network.set_submodule(last, Equilibrium(scale_channels(hidden[-1], width), inject, kernel_size=None, **options))
    delattr(network, f"relu_{last}")
    return network


@register("fctied")
def fctied(
    shape: Shape, classes: int, width: float = 1.0, hidden: list[int] | None = None, steps: int = 1
) -> nn.Sequential:  # fmt: skip
    """Return FC with `steps` steps of z = relu(W z + h) after its last hidden layer, from relu(h): FC itself if W = 0.

    It is `fcdeq` with its equilibrium unrolled; W is not constrained. hidden: as in `fcdeq`.
    """
    check_layers("steps", steps, least=1)
    hidden = _check_hidden([100] if hidden is None else hidden)
    network, last = _network(shape, classes, width, [], hidden), f"linear{len(hidden)}"
    units = scale_channels(hidden[-1], width)
    recurrence = nn.Linear(units, units, bias=False)
    network.set_submodule(last, Unrolled(network.get_submodule(last), recurrence, steps))
    delattr(network, f"relu_{last}")
    return network


def _check_hidden(hidden: list[int]) -> list[int]:
    """Return the units of hidden layers. Raises ValueError for too many layers, or for one without units."""
    if not 1 <= len(hidden) <= DEEPEST or min(hidden) < 1:
        allowed = f"hidden must be numbers of at least 1, from 1 to {DEEPEST:,}"
        raise ValueError(f"{allowed}, found {len(hidden)} in {reprlib.repr(hidden)}")
    return hidden


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


def _layers_before_last(shape: Shape, width: float, layers: int) -> tuple[Named, int, int]:
    """Return a 4x4 convolution of 16 channels and stride 2, and all but the last of `layers` linear layers of 100.

    Each has a ReLU. Also return the inputs and the outputs of the last linear layer.
    """
    check_layers("layers", layers, least=1)
    channels, hidden = scale_channels(16, width), scale_channels(100, width)
    convolution = nn.Conv2d(shape[0], channels, 4, stride=2, padding=1)
    named: Named = [("conv", convolution), ("relu", nn.ReLU()), ("flatten", nn.Flatten())]
    features = channels * (shape[1] // 2) * (shape[2] // 2)
    for number in range(1, layers):
        named += [(f"linear{number}", nn.Linear(features, hidden)), (f"relu{number}", nn.ReLU())]
        features = hidden
    return named, features, hidden


@register("conv")
def conv(shape: Shape, classes: int, width: float = 1.0, layers: int = 1) -> nn.Sequential:
    """Return CONV: a 4x4 convolution of 16 channels and stride 2, a linear layer of 100, the classifier.

    It is of Jovanović et al. (TMLR 2022). layers: the number of linear layers of 100.
    """
    named, features, hidden = _layers_before_last(shape, width, layers)
    named += [(f"linear{layers}", nn.Linear(features, hidden)), (f"relu{layers}", nn.ReLU())]
    return nn.Sequential(OrderedDict([*named, ("classifier", nn.Linear(hidden, classes))]))


@register("convdeq")
@takes_equilibrium_options("kernel_size")
def convdeq(shape: Shape, classes: int, width: float = 1.0, layers: int = 1, **options) -> nn.Sequential:
    """Return CONV with an Equilibrium of 100 units and a dense W for its last linear layer: CONV itself if W = 0.

    layers: as in CONV. options: of `Equilibrium`.
    """
    named, features, hidden = _layers_before_last(shape, width, layers)
    layer = Equilibrium(hidden, nn.Linear(features, hidden), kernel_size=None, **options)
    return nn.Sequential(OrderedDict([*named, ("equilibrium", layer), ("classifier", nn.Linear(hidden, classes))]))
