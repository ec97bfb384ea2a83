"""Wide ResNet 8 of certified training (Xu et al. 2020; with batch norm, Shi et al. 2021)."""

from torch import nn

from baselines.registry import register
from baselines.resnet import BasicBlock, residual
from cerdeq.layers import Shape, extra_stride


@register("wideresnet8")
def wideresnet8(shape: Shape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Return a convolution of 16, BasicBlocks 128 256 512 with strides 1 2 2, linear 512, classifier.

    For images larger than 32 pixels the widen factor is 10 in place of 8, channels 160 320 640, and nothing else
    changes, so that the linear layer sees 16x16 pixels of Tiny ImageNet (Shi et al. 2021).
    """
    widen = 10 if extra_stride(shape) == 2 else 8
    plan = [(16 * widen, 1), (32 * widen, 2), (64 * widen, 2)]
    return residual(BasicBlock, 16, plan, shape, classes, width)
