"""Plain convolutional networks of any depth (Shi et al. 2021; CTBench 2024)."""

from functools import partial

from torch import nn

from baselines.layers import CNN7, Shape, add_extra_stride, add_head, convolutions, scale_channels, size_after
from baselines.registry import check_layers, register


@register("cnn")
def cnn(shape: Shape, classes: int, width: float = 1.0, *, depth: int) -> nn.Sequential:
    """Return `depth` - 2 convolutions, a linear layer of 512 and a classifier.

    Batch norm and ReLU follow each hidden layer. Depth 7 is CNN-7: channels 64 64 128 128 128, strides 1 1 2 1 1.
    Shallower networks, down to depth 5, leave out its last convolutions; deeper networks repeat the last. Images larger
    than 32 pixels are halved once more, in the last stride-1 convolution of CNN-7's part.
    """
    check_layers("depth", depth, least=5)
    plan = add_extra_stride(CNN7[: depth - 2], shape) + [(128, 1)] * (depth - 7)
    layers = convolutions(shape[0], plan, width)
    return add_head(layers, scale_channels(plan[-1][0], width), size_after(shape, plan), classes, width)


for _depth in (5, 7, 11):
    register(f"cnn{_depth}")(partial(cnn, depth=_depth))
