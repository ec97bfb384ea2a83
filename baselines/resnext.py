"""ResNeXt of certified training (Xu et al. 2020; with batch norm, Shi et al. 2021)."""

from torch import Tensor, nn

from baselines.registry import register
from baselines.resnet import residual, shortcut
from cerdeq.layers import Shape, extra_stride

_CARDINALITY = 2


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
