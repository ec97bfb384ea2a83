"""The small network CONV of Jovanović et al. (TMLR 2022), explicit and with an equilibrium: no batch norm."""

from collections import OrderedDict

from torch import nn

from baselines.registry import register
from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import Named, Shape, scale_channels
from cerdeq.models import takes_equilibrium_options


def _stem(shape: Shape, width: float) -> tuple[Named, int]:
    """Return a 4x4 convolution of 16 channels, stride 2 and padding 1, ReLU and flattening; the number of features."""
    channels = scale_channels(16, width)
    convolution = nn.Conv2d(shape[0], channels, 4, stride=2, padding=1)
    layers = [("conv", convolution), ("relu", nn.ReLU()), ("flatten", nn.Flatten())]
    return layers, channels * (shape[1] // 2) * (shape[2] // 2)


@register("conv")
def conv(shape: Shape, classes: int, width: float = 1.0, layers: int = 1) -> nn.Sequential:
    """Return CONV: a 4x4 convolution of 16 channels and stride 2, a linear layer of 100, the classifier.

    layers: the number of linear layers of 100.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, found {layers}")
    named, features = _stem(shape, width)
    hidden = scale_channels(100, width)
    for number in range(1, layers + 1):
        named += [(f"linear{number}", nn.Linear(features, hidden)), (f"relu{number}", nn.ReLU())]
        features = hidden
    return nn.Sequential(OrderedDict([*named, ("classifier", nn.Linear(hidden, classes))]))


@register("convdeq")
@takes_equilibrium_options
def convdeq(shape: Shape, classes: int, width: float = 1.0, **options) -> nn.Sequential:
    """Return CONV with an Equilibrium of 100 units and a dense W for its linear layer: CONV itself if W = 0.

    options: of `Equilibrium`.
    """
    named, features = _stem(shape, width)
    hidden = scale_channels(100, width)
    layer = Equilibrium(hidden, nn.Linear(features, hidden), kernel_size=None, **options)
    return nn.Sequential(OrderedDict([*named, ("equilibrium", layer), ("classifier", nn.Linear(hidden, classes))]))
