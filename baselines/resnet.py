"""Residual networks of any depth; Wide ResNet 8 and ResNeXt (Xu et al. 2020; with batch norm, Shi et al. 2021)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from baselines.layers import (
    Plan,
    Shape,
    add_extra_stride,
    add_head,
    convolution,
    extra_stride,
    scale_channels,
    size_after,
)
from baselines.registry import DEEPEST, register

_CARDINALITY = 2  # of ResNeXt


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


@register("wideresnet8")
def wideresnet8(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return a convolution of 16, BasicBlocks 128 256 512 with strides 1 2 2, linear 512, classifier.

    For images larger than 32 pixels the widen factor is 10 in place of 8, channels 160 320 640, and nothing else
    changes, so that the linear layer sees 16x16 pixels of Tiny ImageNet (Shi et al. 2021).
    """
    widen = 10 if extra_stride(shape) == 2 else 8
    plan = [(16 * widen, 1), (32 * widen, 2), (64 * widen, 2)]
    return residual(BasicBlock, 16, plan, shape, classes, width)


class GroupedBlock(nn.Module):
    """relu(shortcut(x) + norm(conv1x1(relu(norm(grouped3x3(relu(norm(conv1x1(x)))))))), inside of half the outputs."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        hidden = _CARDINALITY * max(1, round(outputs / 2 / _CARDINALITY))
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=_CARDINALITY)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(hidden, outputs, 1)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        hidden = self.relu1(self.norm1(self.conv1(x)))
        hidden = self.relu2(self.norm2(self.conv2(hidden)))
        return self.relu3(self.norm3(self.conv3(hidden)) + self.shortcut(x))


@register("resnext")
def resnext(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return a convolution of 64, blocks (cardinality 2; 128 256 512; strides 1 2 2), linear 512, classifier.

    For images larger than 32 pixels a convolution of 16 and two blocks each of 32 64 128, the linear layer seeing
    16x16 pixels of Tiny ImageNet (Shi et al. 2021).
    """
    if extra_stride(shape) == 2:
        plan = [(32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]
        return residual(GroupedBlock, 16, plan, shape, classes, width)
    return residual(GroupedBlock, 64, [(128, 1), (256, 2), (512, 2)], shape, classes, width)
