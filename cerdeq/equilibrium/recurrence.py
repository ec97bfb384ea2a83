"""The recurrent linear map W of an equilibrium, a stride-1 convolution with zero padding or a dense matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from cerdeq.operators.convolution import conv2d, conv_transpose2d


def apply_weight(weight: Tensor, z: Tensor) -> Tensor:
    """Return W z: weight [C, C, k, k] on z [B, C, H, W], or [N, N] on [B, N]."""
    if weight.dim() == 2:
        return F.linear(z, weight)
    return conv2d(z, weight, padding=weight.shape[-1] // 2)


def fixed_point_step(weight: Tensor, z: Tensor, h: Tensor) -> Tensor:
    """Return relu(W z + h)."""
    return torch.relu(apply_weight(weight, z) + h)


def apply_lifted(weight: Tensor, state: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return W c + h_c and |W| r + h_r for state (c, r): the pre-activation of the lifted equilibrium."""
    return apply_weight(weight, state[0]) + h[0], apply_weight(weight.abs(), state[1]) + h[1]


def apply_transposed(weight: Tensor, y: Tensor) -> Tensor:
    """Return W^T y."""
    if weight.dim() == 2:
        return F.linear(y, weight.T)
    return conv_transpose2d(y, weight, padding=weight.shape[-1] // 2)


def dense_weight(weight: Tensor, shape: torch.Size) -> Tensor:
    """Return W as a matrix [N, N] on flat values of `shape`, [C, H, W] or [N]; differentiable in the weight."""
    if weight.dim() == 2:
        return weight
    units = torch.eye(shape.numel()).to(weight).view(-1, *shape)
    return apply_weight(weight, units).flatten(1).mT


def weight_gradient(weight: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of y . (W z) in W, summed over the batch."""
    if weight.dim() == 2:
        return y.T @ z
    return conv2d_weight(z, weight.shape, y, padding=weight.shape[-1] // 2)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Return values [B] so that they broadcast over [B, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
