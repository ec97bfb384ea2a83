"""CerDEQ networks: a stem of convolutions, an equilibrium, a linear head. Inputs are normalised pixels."""

from collections import OrderedDict

from torch import nn

from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import convolution, downsampled, extra_stride, head, scaled


def _network(
    shape: tuple[int, int, int], classes: int, width: float, stem: list[tuple[int, int]], **options
) -> nn.Sequential:
    layers = []
    inputs = shape[0]
    for number, (channels, stride) in enumerate(stem, start=1):
        outputs = scaled(channels, width)
        layers += convolution(str(number), inputs, outputs, stride)
        inputs = outputs
    last_stride = extra_stride(shape)
    size = [downsampled(side, [stride for _, stride in stem] + [last_stride]) for side in shape[1:]]
    channels = scaled(128, width)
    inject = nn.Sequential(nn.Conv2d(inputs, channels, 3, stride=last_stride, padding=1), nn.BatchNorm2d(channels))
    layers += [("equilibrium", Equilibrium(channels, inject, **options))]
    layers += head(channels * size[0] * size[1], scaled(512, width), classes)
    return nn.Sequential(OrderedDict(layers))


def cerdeq(
    shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    parametrisation: str = "perron",
    margin: float = 0.3,
    gain: float | None = 0.5,
    iterations: int = 10,
    backward_iterations: int = 6,
) -> nn.Sequential:
    """The equilibrium as the body, straight after the stride-2 convolution: 64, 64, 128 / 2, Equilibrium(128), 512.

    Our reading of CerDEQ (Li, Wang and Lin, ICML 2022), of which only the abstract was at hand. shape: (C, H, W).
    Images larger than 32 pixels are halved once more, in the injection. Options as in `Equilibrium`.
    """
    return _network(
        shape,
        classes,
        width,
        [(64, 1), (64, 1), (128, 2)],
        parametrisation=parametrisation,
        margin=margin,
        gain=gain,
        iterations=iterations,
        backward_iterations=backward_iterations,
    )


def deqlate(
    shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    parametrisation: str = "perron",
    margin: float = 0.3,
    gain: float | None = 0.5,
    iterations: int = 10,
    backward_iterations: int = 6,
) -> nn.Sequential:
    """CNN-7 whose last convolution is an Equilibrium: exactly CNN-7 where W = 0. Arguments as in `cerdeq`."""
    return _network(
        shape,
        classes,
        width,
        [(64, 1), (64, 1), (128, 2), (128, 1)],
        parametrisation=parametrisation,
        margin=margin,
        gain=gain,
        iterations=iterations,
        backward_iterations=backward_iterations,
    )
