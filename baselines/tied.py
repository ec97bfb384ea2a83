"""Weight-tied networks of any depth: a finite unrolling of an equilibrium, `tied` that of `cerdeq`."""

from functools import partial

from torch import Tensor, nn

from baselines.equilibria import stride4_network
from baselines.layers import Named, Shape, add_head, conv3, convolutions, extra_stride, scale_channels, size_after
from baselines.registry import check_layers, register

_STEM = [(64, 1), (64, 1), (128, 2)]


class Unrolled(nn.Module):
    """z = relu(W z + inject(x)), `steps` times from relu(inject(x)).

    recurrence: W, a linear layer or convolution without bias, which nothing keeps contractive.
    """

    def __init__(self, inject: nn.Module, recurrence: nn.Module, steps: int):
        super().__init__()
        self.inject, self.recurrence, self.relu, self.steps = inject, recurrence, nn.ReLU(), steps

    def forward(self, x: Tensor) -> Tensor:
        """Return z, of the shape of inject(x)."""
        h = self.inject(x)
        z = self.relu(h)
        for _ in range(self.steps):
            z = self.relu(self.recurrence(z) + h)
        return z


def unrolled_layer(conv: nn.Conv2d, channels: int, steps: int) -> Named:
    """Return the layer "unrolled": it injects norm(conv(x)), and W is a 3x3 convolution."""
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels))
    return [("unrolled", Unrolled(inject, nn.Conv2d(channels, channels, 3, padding=1, bias=False), steps))]


@register("tied")
def tied(shape: Shape, classes: int, width: float = 1.0, *, depth: int) -> nn.Sequential:
    """Return `cerdeq` with `depth` - 6 unrolled steps in place of the equilibrium.

    Channels are 64, 64, 128 (stride 2), 128 tied; then a linear layer of 512 and the classifier. Every step counts as a
    layer, and all depths have the same parameters. Depth 7, the smallest, applies W once. Images larger than 32 pixels
    are halved once more, in the injection.
    """
    check_layers("depth", depth, least=7)
    stride, channels = extra_stride(shape), scale_channels(128, width)
    layers = convolutions(shape[0], _STEM, width) + unrolled_layer(
        conv3(channels, channels, stride), channels, depth - 6
    )
    return add_head(layers, channels, size_after(shape, [*_STEM, (128, stride)]), classes, width)


register("tied9")(partial(tied, depth=9))


@register("tiedsmall")
def tiedsmall(
    shape: Shape, classes: int, width: float = 1.0, channels: int = 8, layers: int = 1, steps: int = 1
) -> nn.Sequential:  # fmt: skip
    """Return `deqsmall` with `steps` unrolled steps in place of its equilibrium; W is not constrained."""
    check_layers("steps", steps, least=1)
    make_last = partial(unrolled_layer, steps=steps)
    return stride4_network(shape, classes, scale_channels(channels, width), layers, True, make_last)
