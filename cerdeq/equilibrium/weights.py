"""Parametrisations of an equilibrium's W from a free kernel, each with a proof of rho(|W|) <= 1 - margin.

They are torch parametrisations (torch.nn.utils.parametrize): the module's `weight` is W, the free kernel is trained.
"""

import math

import torch
from torch import Tensor, nn

from cerdeq.equilibrium.certificate import channel_matrix

_POWER_ITERATIONS = 3


class Perron(nn.Module):
    """W = g M min(1, (1 - margin) / bound(M)), bound(M) = max_i (A v)_i / v_i >= rho(A) >= rho(|M|) (Collatz-Wielandt).

    A is the channel matrix of |M|; v and the left Perron vector follow M by a few power iterations a training step.
    Any v > 0 makes the bound valid; a converged one makes it tight. Gradients pass through the scale by the Perron
    vectors, d rho = u v^T / (u . v). The learned gain g in (0, 1) is a sigmoid, since a clamped one sticks at 0;
    `gain` is its first value, None for W at its bound throughout. Raises ValueError for either outside (0, 1).
    """

    left: Tensor
    right: Tensor

    def __init__(self, channels: int, margin: float, gain: float | None):
        super().__init__()
        if not 0 < margin < 1:
            raise ValueError(f"margin must lie in (0, 1), found {margin}")
        if gain is not None and not 0 < gain < 1:
            raise ValueError(f"gain must lie in (0, 1) or be None, found {gain}")
        self.margin = margin
        self.gain_logit = None if gain is None else nn.Parameter(torch.tensor(math.log(gain / (1 - gain))))
        self.register_buffer("left", torch.ones(channels))
        self.register_buffer("right", torch.ones(channels))

    @property
    def gain(self) -> Tensor:
        """The gain g, a scalar in (0, 1]."""
        return self.left.new_ones(()) if self.gain_logit is None else torch.sigmoid(self.gain_logit)

    def forward(self, kernel: Tensor) -> Tensor:
        """W from the free kernel, of the same shape."""
        matrix = channel_matrix(kernel)
        if self.training:
            self._follow(matrix.detach())
        left, right = self.left.clone(), self.right.clone()
        estimate = (left @ matrix @ right) / (left @ right)
        proved = ((matrix @ right) / right).amax()
        bound = (estimate + (proved - estimate).detach()).clamp(min=1e-12)
        return kernel * (self.gain * torch.clamp((1 - self.margin) / bound, max=1.0))

    @torch.no_grad()
    def _follow(self, matrix: Tensor) -> None:
        floor = 1e-4 * matrix.mean() + 1e-12
        for _ in range(_POWER_ITERATIONS):
            right = matrix @ self.right + floor * self.right.sum()
            left = self.left @ matrix + floor * self.left.sum()
            self.right.copy_(right / right.amax())
            self.left.copy_(left / left.amax())


PARAMETRISATIONS = {"perron": Perron}
