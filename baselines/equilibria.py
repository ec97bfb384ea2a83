"""Networks with an equilibrium layer: CerDEQ, variants of CNN-7, DEQ-7 and IBP-MonDEQ, the competing model."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from baselines.layers import (
    CNN7,
    Named,
    Plan,
    Shape,
    add_extra_stride,
    add_head,
    conv3,
    convolutions,
    extra_stride,
    scale_channels,
    size_after,
)
from baselines.registry import check_layers, register
from cerdeq.equilibrium import Equilibrium

Builder = Callable[..., nn.Sequential]


def takes_equilibrium_options(*fixed: str) -> Callable[[Builder], Builder]:
    """Return a decorator: **options in a builder's signature become the options of `Equilibrium`, except `fixed`."""

    def decorate(builder: Builder) -> Builder:
        own = [p for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD]
        left_out = {"channels", "inject", *fixed, *(p.name for p in own)}
        layer = [p for p in inspect.signature(Equilibrium).parameters.values() if p.name not in left_out]
        builder.__signature__ = inspect.Signature([*own, *layer])  # type: ignore[attr-defined]
        return builder

    return decorate


class ImageInjection(nn.Module):
    """conv(stem(x)) + conv_image(x): an injection that sees the image again, at the resolution of the features."""

    def __init__(self, stem: nn.Module, conv: nn.Module, conv_image: nn.Module):
        super().__init__()
        self.stem, self.conv, self.conv_image = stem, conv, conv_image

    def forward(self, x: Tensor) -> Tensor:
        """x: images [B, C, H, W] -> [B, channels, H / stride, W / stride]."""
        return self.conv(self.stem(x)) + self.conv_image(x)


def equilibrium_layer(
    name: str, conv: nn.Module, channels: int, norm: bool = True, recurrent: bool = True, **options
) -> Named:
    """Return the named layer: an Equilibrium that injects norm(conv(x)), or relu(norm(conv(x))) if not `recurrent`."""
    if options and not recurrent:
        raise ValueError(f"recurrent: false allows no options of the equilibrium, found {', '.join(options)}")
    if options.get("kernel_size", 3) is None:
        raise ValueError("kernel_size must be odd and at least 1, found None: W is a convolution")
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Identity())
    return [(name, Equilibrium(channels, inject, **options) if recurrent else nn.Sequential(inject, nn.ReLU()))]


def _with_equilibria(
    stem: Plan, equilibria: dict[str, tuple[int, int]], shape: Shape, classes: int, width: float,
    image: bool = False, **options,
) -> nn.Sequential:  # fmt: skip
    """Return a network: the convolutions of `stem`, equilibria in a row, the head.

    stem: (channels, stride) of each convolution. equilibria: the same of each injection, by the equilibrium's name. The
    others as in `cerdeq`.
    """
    layers, inputs = convolutions(shape[0], stem, width), scale_channels(stem[-1][0], width)
    for name, (base, stride) in equilibria.items():
        channels = scale_channels(base, width)
        conv: nn.Module = conv3(inputs, channels, stride)
        if image:
            conv_image = conv3(shape[0], channels, stride * math.prod(each for _, each in stem))
            conv = ImageInjection(nn.Sequential(OrderedDict(layers)), conv, conv_image)
            layers, image = [], False
        layers += equilibrium_layer(name, conv, channels, **options)
        inputs = channels
    return add_head(layers, inputs, size_after(shape, [*stem, *equilibria.values()]), classes, width)


def _one_or_two(equilibria: int, shape: Shape) -> dict[str, tuple[int, int]]:
    """Return one or two equilibria of 128 channels, the first behind a stride for images larger than 32 pixels."""
    if equilibria not in (1, 2):
        raise ValueError(f"equilibria must be 1 or 2, found {equilibria}")
    plans = {"equilibrium": (128, extra_stride(shape)), "equilibrium2": (128, 1)}
    return dict(list(plans.items())[:equilibria])


@register("cerdeq")
@takes_equilibrium_options()
def cerdeq(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, norm: bool = True, image: bool = False, recurrent: bool = True,
    **options,
) -> nn.Sequential:  # fmt: skip
    """Return CerDEQ: convolutions 64, 64, 128 (stride 2), an Equilibrium of 128 channels, a linear layer of 512.

    This is our reading of CerDEQ (Li, Wang and Lin, ICML 2022), of which only the abstract was available. For images
    larger than 32 pixels the injection has stride 2. The published results call it "CerDEQ, orthogonal" with the
    options parametrisation="orthogonal", groups=8, margin=0.1, gain=None.

    Args:
        shape: (C, H, W) of an image.
        width: a factor of all channel counts.
        equilibria: 1, or 2 in a row.
        norm: whether the injection has batch norm.
        image: whether the first injection also sees the image, by a 3x3 convolution with the stride of all layers
            before. The stem is then a part of the injection.
        recurrent: False for no recurrence (W = 0), which makes the network explicit.
        options: of `Equilibrium`.
    """
    options |= {"norm": norm, "recurrent": recurrent}
    return _with_equilibria(CNN7[:3], _one_or_two(equilibria, shape), shape, classes, width, image, **options)


@register("deqlate")
@takes_equilibrium_options()
def deqlate(
    shape: Shape, classes: int, width: float = 1.0,
    equilibria: int = 1, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return CNN-7 with an Equilibrium for its last convolution: CNN-7 itself if W = 0. Arguments as in `cerdeq`.

    With two equilibria, or without `norm`, no W makes it CNN-7.
    """
    options |= {"norm": norm, "recurrent": recurrent}
    return _with_equilibria(CNN7[:4], _one_or_two(equilibria, shape), shape, classes, width, **options)


@register("deqscales")
@takes_equilibrium_options()
def deqscales(
    shape: Shape, classes: int, width: float = 1.0,
    norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return a network of equilibria at two resolutions: convolutions 64, 64, Equilibrium(128), Equilibrium(256), 512.

    Both injections have stride 2. Multiscale equilibria (Bai, Koltun and Kolter 2020) are solved together; these are
    solved one after the other. The network has about half of CerDEQ's parameters. For images larger than 32 pixels the
    second convolution has stride 2. Arguments as in `cerdeq`.
    """
    options |= {"norm": norm, "recurrent": recurrent}
    scales = {"equilibrium1": (128, 2), "equilibrium2": (256, 2)}
    return _with_equilibria([(64, 1), (64, extra_stride(shape))], scales, shape, classes, width, **options)


@register("deqdense")
@takes_equilibrium_options("kernel_size")
def deqdense(shape: Shape, classes: int, width: float = 1.0, **options) -> nn.Sequential:
    """Return CNN-7 with an Equilibrium for its linear layer of 512, W a dense matrix: CNN-7 itself if W = 0.

    options: of `Equilibrium`, except kernel_size.
    """
    plan = add_extra_stride(CNN7, shape)
    layers = convolutions(shape[0], plan, width)
    network = add_head(layers, scale_channels(128, width), size_after(shape, plan), classes, width)
    inject = nn.Sequential(*map(network.get_submodule, ("linear", "norm_linear")))
    network.linear = Equilibrium(scale_channels(512, width), inject, kernel_size=None, **options)
    del network.norm_linear, network.relu_linear
    return network


@register("deqsmall")
@takes_equilibrium_options()
def deqsmall(
    shape: Shape, classes: int, width: float = 1.0,
    channels: int = 8, layers: int = 1, norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return a small convolutional equilibrium, for branch and bound: Equilibrium(8) at stride 4, the classifier.

    Args:
        channels: of each convolution, at width 1.
        layers: of convolutions, the last one the equilibrium's injection. The first is 6x6 with stride 4, so that
            CIFAR-10's images become 8x8; the others are 3x3.
        others: as in `cerdeq`. Without recurrence, one layer more has as many parameters as W.
    """
    options |= {"norm": norm, "recurrent": recurrent}
    make_last = partial(equilibrium_layer, "equilibrium", **options)
    return stride4_network(shape, classes, scale_channels(channels, width), layers, norm, make_last)


def stride4_network(
    shape: Shape, classes: int, channels: int, layers: int, norm: bool, make_last: Callable[[nn.Conv2d, int], Named]
) -> nn.Sequential:  # fmt: skip
    """Return convolutions, the first 6x6 with stride 4, the others 3x3, then the classifier.

    make_last: returns the layers around the last convolution, from it and the channels.
    """
    check_layers("layers", layers, least=1)
    first = nn.Conv2d(shape[0], channels, 6, stride=4, padding=1)
    *convs, last = first, *(conv3(channels, channels) for _ in range(1, layers))
    named: Named = []
    for number, conv in enumerate(convs, start=1):
        named += equilibrium_layer(f"conv{number}", conv, channels, norm=norm, recurrent=False)
    features = channels * math.prod((side - 4) // 4 + 1 for side in shape[1:])
    head = [("flatten", nn.Flatten()), ("classifier", nn.Linear(features, classes))]
    return nn.Sequential(OrderedDict([*named, *make_last(last, channels), *head]))


@register("deq7")
@takes_equilibrium_options()
def deq7(
    shape: Shape, classes: int, width: float = 1.0,
    norm: bool = True, recurrent: bool = True, **options,
) -> nn.Sequential:  # fmt: skip
    """Return the DEQ-7 of IBP-MonDEQ (Wei and Kolter 2022): Equilibrium(64), then 128 (stride 2), 128, 128, 512.

    Batch norm follows the equilibrium. For images larger than 32 pixels the last convolution has stride 2. Arguments as
    in `cerdeq`.
    """
    channels = scale_channels(64, width)
    conv = conv3(shape[0], channels)
    first = equilibrium_layer("equilibrium", conv, channels, norm=norm, recurrent=recurrent, **options)
    return _deq7_around(first, shape, classes, width)


def _deq7_around(first: Named, shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Return DEQ-7 with the layers `first` for its equilibrium."""
    inputs = scale_channels(64, width)
    plan = [(128, 2), (128, 1), (128, extra_stride(shape))]
    layers = [*first, ("norm_equilibrium", nn.BatchNorm2d(inputs)), *convolutions(inputs, plan, width)]
    return add_head(layers, scale_channels(128, width), size_after(shape, plan), classes, width)


class Bias(nn.Module):
    """x + b, b a number a channel, 0 at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + b, of the shape of x: [B, channels, H, W]."""
        return x + self.bias


@register("mondeq")
def mondeq(
    shape: Shape, classes: int, width: float = 1.0,
    margin: float = 0.5, iterations: int = 16, backward_iterations: int = 16,
) -> nn.Sequential:  # fmt: skip
    """Return DEQ-7 as published: a monotone W without gain, the injection relu(norm(U x)) + b.

    Wei and Kolter (ICLR 2022) have D of zero-padded sums for each pixel; here it is one number a channel, which bounds
    W a little more at the image's border. Published solves go to a residual of 1e-5; with rho(|W|) <= 1 / 2 so do 16
    iterations.
    """
    channels = scale_channels(64, width)
    conv = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(), Bias(channels))
    layer = Equilibrium(
        channels, inject, parametrisation="monotone", margin=margin, gain=None,
        iterations=iterations, backward_iterations=backward_iterations,
    )  # fmt: skip
    return _deq7_around([("equilibrium", layer)], shape, classes, width)
