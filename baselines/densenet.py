"""DenseNet of certified training (Xu et al. 2020)."""

import torch
from torch import Tensor, nn

from baselines.layers import Named, Shape, add_head, scale_channels
from baselines.registry import register

_GROWTH = 32


class DenseLayer(nn.Module):
    """cat(conv3x3(relu(norm(conv1x1(relu(norm(x)))))), x): `growth` channels more, through `hidden`."""

    def __init__(self, inputs: int, hidden: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, growth + inputs, H, W]."""
        hidden = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([self.conv2(self.relu2(self.norm2(hidden))), x], 1)


def activation(name: str, channels: int) -> Named:
    """Return batch norm and ReLU."""
    return [(f"norm{name}", nn.BatchNorm2d(channels)), (f"relu{name}", nn.ReLU())]


@register("densenet")
def densenet(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return a convolution of 64, then three runs of 2 4 4 dense layers of growth 32, channels halved between them.

    Pre-activation: batch norm and ReLU come before each convolution but the first, and before the linear layer of 512,
    which has no batch norm of its own. The published one for Tiny ImageNet takes crops of 56 pixels; here the same
    network takes all 64, and its linear layer sees 16x16.
    """
    channels, inputs, growth = 64, scale_channels(64, width), scale_channels(_GROWTH, width)
    layers: Named = [("conv1", nn.Conv2d(shape[0], inputs, 3, padding=1))]
    for run, count in enumerate((2, 4, 4), start=1):
        if run > 1:
            channels //= 2
            outputs = scale_channels(channels, width)
            layers += activation(str(run), inputs)
            layers += [(f"conv{run}", nn.Conv2d(inputs, outputs, 1)), (f"pool{run}", nn.AvgPool2d(2))]
            inputs = outputs
        for number in range(1, count + 1):
            layers.append((f"dense{run}_{number}", DenseLayer(inputs, scale_channels(4 * _GROWTH, width), growth)))
            inputs += growth
        channels += count * _GROWTH
    layers += activation("4", inputs)
    return add_head(layers, inputs, [side // 4 for side in shape[1:]], classes, width, norm=False)
