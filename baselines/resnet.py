"""Residual networks of any depth, for the study of depth; not published ones."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from baselines.registry import DEEPEST, register
from cerdeq.layers import Plan, Shape, add_extra_stride, add_head, convolution, scale_channels, size_after


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the shortcut a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        hidden = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(hidden + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution and batch norm where the shape changes."""
    projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
    return nn.Identity() if inputs == outputs and stride == 1 else projection


def residual(
    block: Callable[[int, int, int], nn.Module], stem: int, plan: Plan, shape: Shape, classes: int, width: float
) -> nn.Sequential:
    """A convolution of `stem` channels, a block(inputs, outputs, stride) for each entry of the plan, the head."""
    inputs = scale_channels(stem, width)
    layers = convolution("1", shape[0], inputs)
    for number, (channels, stride) in enumerate(plan, start=1):
        outputs = scale_channels(channels, width)
        layers.append((f"block{number}", block(inputs, outputs, stride)))
        inputs = outputs
    return add_head(layers, inputs, size_after(shape, plan), classes, width)


@register("resnet")
def resnet(shape: Shape, classes: int, width: float = 1.0, *, depth: int) -> nn.Sequential:
    """Return CNN-7's residual sibling: a convolution of 64, (depth - 3) / 2 BasicBlocks, linear 512, classifier.

    Depth 9 has blocks 64 128 128 with strides 1 2 1; depth 7 leaves out the last, deeper networks repeat it. Channels,
    resolutions and head are CNN-7's; shortcuts do not count as layers. Images larger than 32 pixels are halved once
    more, in the last stride-1 block of the first three.
    """
    if not 7 <= depth <= DEEPEST or depth % 2 == 0:
        raise ValueError(f"depth must be odd, from 7 to {DEEPEST:,}, found {depth}")
    blocks = (depth - 3) // 2
    plan = add_extra_stride([(64, 1), (128, 2), (128, 1)][:blocks], shape) + [(128, 1)] * (blocks - 3)
    return residual(BasicBlock, 64, plan, shape, classes, width)


register("resnet9")(partial(resnet, depth=9))
