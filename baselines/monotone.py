"""monDEQ, the equilibrium network of Winston and Kolter (2020): W is strongly monotone, rho(|W|) of any size."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines.layers import Shape, scale_channels
from baselines.registry import register
from cerdeq.equilibrium import FixedPoint, PeacemanRachford


class MonotoneWeight(nn.Module):
    """W = (1 - m) I - A^T A + B - B^T from free A and B, [2, N, N], or convolutions, [2, C, C, k, k].

    I - (W + W^T) / 2 is at least m I. Convolutions are circular, over an image [H, W];
    W is their matrix on C H W units.
    """

    def __init__(self, modulus: float, image: tuple[int, int] | None = None):
        super().__init__()
        if not modulus > 0:
            raise ValueError(f"modulus must be positive, found {modulus}")
        self.modulus, self.image = modulus, image

    def forward(self, free: Tensor) -> Tensor:
        """Return W [N, N]."""
        a, b = free if self.image is None else (circular_matrix(kernel, self.image) for kernel in free)
        identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
        return (1 - self.modulus) * identity - a.mT @ a + b - b.mT


def circular_matrix(kernel: Tensor, image: tuple[int, int]) -> Tensor:
    """Return the matrix [C H W, C H W] of a stride-1 convolution [C, C, k, k] with circular padding."""
    shape, pad = (kernel.shape[1], *image), kernel.shape[-1] // 2
    units = torch.eye(shape[0] * shape[1] * shape[2], dtype=kernel.dtype, device=kernel.device).view(-1, *shape)
    return F.conv2d(F.pad(units, (pad,) * 4, mode="circular"), kernel).flatten(1).mT


@register("monotone")
def monotone(
    shape: Shape, classes: int, width: float = 1.0,
    units: int = 100, modulus: float = 1.0, channels: int | None = None, stride: int = 3,
) -> nn.Sequential:  # fmt: skip
    """Return a linear layer, a monotone equilibrium and a linear layer; `width` scales units or channels.

    units: of a dense equilibrium. channels: instead of `units`, of a convolutional one: a 6x6 convolution of `stride`
    into it, 3x3 circular convolutions within it. modulus: m.
    """
    if channels is None:
        count = scale_channels(units, width)
        before: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten()), ("inject", nn.Linear(_size(shape), count))]
        form, free = MonotoneWeight(modulus), torch.empty(2, count, count)
    else:
        count = scale_channels(channels, width)
        conv = nn.Conv2d(shape[0], count, 6, stride=stride, padding=1)
        image = (shape[1] - 4) // stride + 1, (shape[2] - 4) // stride + 1
        before = [("inject", conv), ("flatten", nn.Flatten())]
        form, free = MonotoneWeight(modulus, image), torch.empty(2, count, count, 3, 3)
        count = count * image[0] * image[1]
    if not free.is_meta:
        free.normal_()
    layer = FixedPoint(free / free[0, 0].numel() ** 0.5 / 2, PeacemanRachford())
    parametrize.register_parametrization(layer, "weight", form, unsafe=True)
    return nn.Sequential(OrderedDict([*before, ("equilibrium", layer), ("head", nn.Linear(count, classes))]))


def _size(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]
