"""Runs of layers that explicit and equilibrium networks share, as (name, module) pairs for an nn.Sequential."""

from torch import nn

Named = list[tuple[str, nn.Module]]


def scaled(channels: int, width: float) -> int:
    """A channel count times the width factor, at least 1."""
    return max(1, round(channels * width))


def convolution(name: str, inputs: int, outputs: int, stride: int = 1) -> Named:
    """3x3 convolution with padding 1, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return [(f"conv{name}", conv), (f"norm{name}", nn.BatchNorm2d(outputs)), (f"relu{name}", nn.ReLU())]


def head(features: int, hidden: int, classes: int) -> Named:
    """Flatten, linear, batch norm, ReLU, classifier."""
    return [
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(features, hidden)),
        ("norm_linear", nn.BatchNorm1d(hidden)),
        ("relu_linear", nn.ReLU()),
        ("classifier", nn.Linear(hidden, classes)),
    ]


def pooling(size: list[int]) -> tuple[Named, list[int]]:
    """2x2 average pooling, an odd last row or column left out, and the height and width after it."""
    return [("pool", nn.AvgPool2d(2))], [side // 2 for side in size]


def extra_stride(shape: tuple[int, int, int]) -> int:
    """2 for images larger than 32 pixels, which are halved once more than CIFAR-10's, else 1."""
    return 2 if shape[1] > 32 else 1


def downsampled(size: int, strides: list[int]) -> int:
    """Height or width after 3x3 convolutions with padding 1 and these strides."""
    for stride in strides:
        size = (size - 1) // stride + 1
    return size
