"""The small network CONV of Jovanović et al. (TMLR 2022), explicit and with an equilibrium: no batch norm."""

from collections import OrderedDict

from torch import nn

from baselines.registry import check_layers, register
from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import Named, Shape, scale_channels
from cerdeq.models import takes_equilibrium_options


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

    layers: the number of linear layers of 100.
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
