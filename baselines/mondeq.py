"""IBP-MonDEQ, the competing certified equilibrium model (Wei and Kolter, ICLR 2022)."""

import torch
from torch import Tensor, nn

from baselines.registry import register
from cerdeq.equilibrium import Equilibrium
from cerdeq.layers import Shape, scale_channels
from cerdeq.models import deq7_around


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

    Published with D of zero-padded sums for each pixel; here it is one number a channel, which bounds W a little more
    at the image's border. Published solves go to a residual of 1e-5; with rho(|W|) <= 1 / 2 so do 16 iterations.
    """
    channels = scale_channels(64, width)
    conv = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
    inject = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(), Bias(channels))
    layer = Equilibrium(
        channels, inject, parametrisation="monotone", margin=margin, gain=None,
        iterations=iterations, backward_iterations=backward_iterations,
    )  # fmt: skip
    return deq7_around([("equilibrium", layer)], shape, classes, width)
