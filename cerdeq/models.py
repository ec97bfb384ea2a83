"""CerDEQ networks: a stem of convolutions, one or two equilibria, a linear head. Inputs are normalised pixels."""

import inspect
from collections.abc import Callable

from torch import nn

from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import Named, Plan, Shape, convolutions, downsampled, extra_stride, headed, scaled


def takes_equilibrium_options(builder: Callable[..., nn.Sequential]) -> Callable[..., nn.Sequential]:
    """Decorator: the builder's **options are written out in its signature as those of `Equilibrium`."""
    own = [p for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fixed = {"channels", "inject", "kernel_size"} | {p.name for p in own}
    layer = [p for p in inspect.signature(Equilibrium).parameters.values() if p.name not in fixed]
    builder.__signature__ = inspect.Signature([*own, *layer])  # type: ignore[attr-defined]
    return builder


def equilibrium(
    name: str, inputs: int, channels: int, stride: int = 1, norm: bool = True, recurrent: bool = True, **options
) -> Named:
    """An Equilibrium with a 3x3 convolution and batch norm for injection; with W = 0 and no W where not `recurrent`."""
    if options and not recurrent:
        raise ValueError(f"recurrent: without a recurrence there is no {', '.join(options)}")
    conv = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1)
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Identity())
    return [(name, Equilibrium(channels, inject, **options) if recurrent else nn.Sequential(inject, nn.ReLU()))]


def _late(
    stem: Plan, shape: Shape, classes: int, width: float,
    equilibria: int, pool: bool, **options,
) -> nn.Sequential:  # fmt: skip
    """The stem, (channels, stride) a convolution, then equilibria of 128 channels and the head."""
    if equilibria not in (1, 2):
        raise ValueError(f"equilibria must be 1 or 2, found {equilibria}")
    layers = convolutions(shape[0], stem, width)
    inputs, channels, stride = scaled(stem[-1][0], width), scaled(128, width), extra_stride(shape)
    layers += equilibrium("equilibrium", inputs, channels, stride, **options)
    if equilibria == 2:
        layers += equilibrium("equilibrium2", channels, channels, **options)
    return headed(layers, channels, downsampled(shape, [*stem, (128, stride)]), classes, width, pool)


@takes_equilibrium_options
def cerdeq(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """The equilibrium as the body, straight after the stride-2 convolution: 64, 64, 128 / 2, Equilibrium(128), 512.

    Our reading of CerDEQ (Li, Wang and Lin, ICML 2022), of which only the abstract was at hand. shape: (C, H, W).
    Images larger than 32 pixels are halved once more, in the injection. equilibria: 1, or 2 in a row. pool: 2x2 average
    pooling before the linear layer. norm: batch norm in the injection. recurrent: False for the twin with W = 0, an
    explicit network. options: of `Equilibrium`.
    """
    stem = [(64, 1), (64, 1), (128, 2)]
    return _late(stem, shape, classes, width, equilibria, pool, norm=norm, recurrent=recurrent, **options)


@takes_equilibrium_options
def deqlate(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """CNN-7 whose last convolution is an Equilibrium: exactly CNN-7 where W = 0. Arguments as in `cerdeq`."""
    stem = [(64, 1), (64, 1), (128, 2), (128, 1)]
    return _late(stem, shape, classes, width, equilibria, pool, norm=norm, recurrent=recurrent, **options)


@takes_equilibrium_options
def deq7(
    shape: Shape, classes: int, width: float = 1.0,
    pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """The layout of IBP-MonDEQ's DEQ-7 (Wei and Kolter 2022): Equilibrium(64) first, then 128 / 2, 128, 128, 512.

    Images larger than 32 pixels are halved once more, in the last convolution. Arguments as in `cerdeq`.
    """
    first = equilibrium("equilibrium", shape[0], scaled(64, width), norm=norm, recurrent=recurrent, **options)
    return deq7_around(first, shape, classes, width, pool)


def deq7_around(first: Named, shape: Shape, classes: int, width: float, pool: bool) -> nn.Sequential:
    """DEQ-7 with `first` for its equilibrium."""
    inputs = scaled(64, width)
    plan = [(128, 2), (128, 1), (128, extra_stride(shape))]
    layers = [*first, ("norm_equilibrium", nn.BatchNorm2d(inputs)), *convolutions(inputs, plan, width)]
    return headed(layers, scaled(128, width), downsampled(shape, plan), classes, width, pool)
