"""CerDEQ networks: a stem of convolutions, one or two equilibria, a linear head. Their inputs are normalised pixels."""

import inspect
from collections.abc import Callable

from torch import nn

from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import Named, Plan, Shape, add_head, convolutions, extra_stride, scale_channels, size_after


def takes_equilibrium_options(builder: Callable[..., nn.Sequential]) -> Callable[..., nn.Sequential]:
    """Decorate a builder: its signature lists the options of `Equilibrium` in place of **options."""
    own = [p for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fixed = {"channels", "inject", "kernel_size"} | {p.name for p in own}
    layer = [p for p in inspect.signature(Equilibrium).parameters.values() if p.name not in fixed]
    builder.__signature__ = inspect.Signature([*own, *layer])  # type: ignore[attr-defined]
    return builder


def equilibrium(
    name: str, inputs: int, channels: int, stride: int = 1, norm: bool = True, recurrent: bool = True, **options
) -> Named:
    """Return an Equilibrium whose injection is a 3x3 convolution and batch norm; W = 0 if not `recurrent`."""
    if options and not recurrent:
        raise ValueError(f"recurrent: false allows no options of the equilibrium, found {', '.join(options)}")
    conv = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1)
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Identity())
    return [(name, Equilibrium(channels, inject, **options) if recurrent else nn.Sequential(inject, nn.ReLU()))]


def _late(
    stem: Plan, shape: Shape, classes: int, width: float,
    equilibria: int, pool: bool, **options,
) -> nn.Sequential:  # fmt: skip
    """Return the stem, (channels, stride) for each convolution, then equilibria of 128 channels and the head."""
    if equilibria not in (1, 2):
        raise ValueError(f"equilibria must be 1 or 2, found {equilibria}")
    layers = convolutions(shape[0], stem, width)
    inputs, channels, stride = scale_channels(stem[-1][0], width), scale_channels(128, width), extra_stride(shape)
    layers += equilibrium("equilibrium", inputs, channels, stride, **options)
    if equilibria == 2:
        layers += equilibrium("equilibrium2", channels, channels, **options)
    return add_head(layers, channels, size_after(shape, [*stem, (128, stride)]), classes, width, pool)


@takes_equilibrium_options
def cerdeq(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return CerDEQ: convolutions 64, 64, 128 (stride 2), an Equilibrium of 128 channels, a linear layer of 512.

    This is our reading of CerDEQ (Li, Wang and Lin, ICML 2022), of which only the abstract was available. For images
    larger than 32 pixels the injection has stride 2.

    Args:
        shape: (C, H, W) of an image.
        width: a factor of all channel counts.
        equilibria: 1, or 2 in a row.
        pool: whether to put 2x2 average pooling before the linear layer.
        norm: whether the injection has batch norm.
        recurrent: False for no recurrence (W = 0), which makes the network explicit.
        options: of `Equilibrium`.
    """
    stem = [(64, 1), (64, 1), (128, 2)]
    return _late(stem, shape, classes, width, equilibria, pool, norm=norm, recurrent=recurrent, **options)


@takes_equilibrium_options
def deqlate(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return CNN-7 with an Equilibrium for its last convolution: CNN-7 itself if W = 0. Arguments as in `cerdeq`."""
    stem = [(64, 1), (64, 1), (128, 2), (128, 1)]
    return _late(stem, shape, classes, width, equilibria, pool, norm=norm, recurrent=recurrent, **options)


@takes_equilibrium_options
def deq7(
    shape: Shape, classes: int, width: float = 1.0,
    pool: bool = False, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return the DEQ-7 of IBP-MonDEQ (Wei and Kolter 2022): Equilibrium(64), then 128 (stride 2), 128, 128, 512.

    For images larger than 32 pixels the last convolution has stride 2. Arguments as in `cerdeq`.
    """
    first = equilibrium("equilibrium", shape[0], scale_channels(64, width), norm=norm, recurrent=recurrent, **options)
    return deq7_around(first, shape, classes, width, pool)


def deq7_around(first: Named, shape: Shape, classes: int, width: float, pool: bool) -> nn.Sequential:
    """Return DEQ-7 with the layers `first` for its equilibrium."""
    inputs = scale_channels(64, width)
    plan = [(128, 2), (128, 1), (128, extra_stride(shape))]
    layers = [*first, ("norm_equilibrium", nn.BatchNorm2d(inputs)), *convolutions(inputs, plan, width)]
    return add_head(layers, scale_channels(128, width), size_after(shape, plan), classes, width, pool)
