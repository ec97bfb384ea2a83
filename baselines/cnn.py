"""Plain convolutional networks of any depth (Shi et al. 2021; CTBench 2024)."""

from collections import OrderedDict

from torch import nn

from baselines.registry import Builder, register
from cerdeq.layers import convolution, downsampled, extra_stride, head, pooling, scaled

_CNN7 = [(64, 1), (64, 1), (128, 2), (128, 1), (128, 1)]


def cnn(
    shape: tuple[int, int, int], classes: int, width: float = 1.0, depth: int = 7, pool: bool = False
) -> nn.Sequential:
    """`depth` - 2 convolutions, a linear layer of 512 and a classifier; batch norm and ReLU after each hidden layer.

    Depth 7 is CNN-7: channels 64 64 128 128 128, strides 1 1 2 1 1. Shallower ones leave out its last convolutions,
    deeper ones repeat the last. Images larger than 32 pixels are halved once more, in
    the last stride-1 convolution of CNN-7's part. pool: 2x2 average pooling before the linear layer.
    """
    plan = (_CNN7 + [(128, 1)] * depth)[: depth - 2]
    if extra_stride(shape) == 2:
        last = max(number for number, (_, stride) in enumerate(plan[: len(_CNN7)]) if stride == 1)
        plan[last] = (plan[last][0], 2)
    layers = []
    inputs = shape[0]
    for number, (channels, stride) in enumerate(plan, start=1):
        outputs = scaled(channels, width)
        layers += convolution(str(number), inputs, outputs, stride)
        inputs = outputs
    size = [downsampled(side, [stride for _, stride in plan]) for side in shape[1:]]
    pooled, size = pooling(size) if pool else ([], size)
    features = inputs * size[0] * size[1]
    return nn.Sequential(OrderedDict(layers + pooled + head(features, scaled(512, width), classes)))


def _of_depth(depth: int) -> Builder:
    def build(shape: tuple[int, int, int], classes: int, width: float = 1.0, pool: bool = False) -> nn.Sequential:
        return cnn(shape, classes, width, depth, pool)

    return build


for _depth in range(5, 26):
    register(f"cnn{_depth}")(_of_depth(_depth))
