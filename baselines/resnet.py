"""Residual networks."""

from collections import OrderedDict

from torch import Tensor, nn

from baselines.registry import register
from cerdeq.layers import convolution, downsampled, extra_stride, head, scaled


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the shortcut a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        hidden = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(hidden + self.shortcut(x))


@register("resnet9")
def resnet9(shape: tuple[int, int, int], classes: int, width: float = 1.0) -> nn.Sequential:
    """CNN-7's residual sibling: a convolution of 64, BasicBlocks 64 128 128 with strides 1 2 1, linear 512, classifier.

    Not a published network: the same channels, resolutions and head as CNN-7, two layers deeper. Images larger than
    32 pixels are halved once more, in the last block.
    """
    strides = [1, 2, extra_stride(shape)]
    inputs = scaled(64, width)
    layers = convolution("1", shape[0], inputs)
    for number, (channels, stride) in enumerate(zip((64, 128, 128), strides, strict=True), start=1):
        outputs = scaled(channels, width)
        layers.append((f"block{number}", BasicBlock(inputs, outputs, stride)))
        inputs = outputs
    size = [downsampled(side, strides) for side in shape[1:]]
    return nn.Sequential(OrderedDict(layers + head(inputs * size[0] * size[1], scaled(512, width), classes)))
