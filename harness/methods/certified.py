"""Certified training by bounds of the whole ball: IBP and CROWN-IBP."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cerdeq.bounds import Program
from harness.common.errors import require
from harness.common.method_names import register
from harness.methods.method import Method
from harness.methods.passes import Batch, BoundedBox, Losses, bound_box, cross_entropy


@register
@dataclass(frozen=True)
class IBP(Method):
    """Cross entropy of (0, -lower margins), margins bounded by IBP (Gowal et al. 2018; Shi et al. 2021)."""

    name: ClassVar[str] = "ibp"

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        ball = bound_box(program, batch, batch.x, batch.eps)
        return ball.losses(cross_entropy(ball.margins.box.lower))


@register
@dataclass(frozen=True)
class CrownIBP(Method):
    """beta CROWN-IBP + (1 - beta) IBP, beta falling from 1 to `final_beta` as eps grows (Zhang et al. 2020)."""

    name: ClassVar[str] = "crown-ibp"
    linear: ClassVar[bool] = True

    loss_fusion: bool = True
    """Bound the cross entropy with one backward pass instead of one for each margin (Xu et al. 2020): several times
    faster, but looser, most of all while margins are wide. Beta then mixes bounds of the sum in the cross entropy."""
    final_beta: float = 0.0
    """The last value of beta."""

    def __post_init__(self) -> None:
        require("final_beta", self.final_beta, 0 <= self.final_beta <= 1, "from 0 to 1")

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        ball = bound_box(program, batch, batch.x, batch.eps)
        beta = 1 - (1 - self.final_beta) * batch.progress
        if self.loss_fusion:
            return ball.losses(_fused_cross_entropy(ball, beta))
        return ball.losses(cross_entropy(beta * ball.crown(ball.spec) + (1 - beta) * ball.margins.box.lower))

    def at(self, progress: float) -> Method:
        """Return IBP once beta is 0."""
        return IBP() if progress >= 1 and not self.final_beta else self


def _fused_cross_entropy(ball: BoundedBox, beta: Tensor) -> Tensor:
    """Return log(1 + S), S an upper bound of the sum of exp(-margin) over the other classes.

    exp lies below its chord over each margin's IBP interval, so S = sum of exp(-lower) - (c . margins - c . lower)
    is such a bound, c >= 0 the chords' slopes, and c . margins is one functional for CROWN. The largest
    exp divides all terms.
    """
    lower, width = ball.margins.box.lower, 2 * ball.margins.radius
    shift = torch.relu(-lower).amax(1, keepdim=True).detach()
    largest = torch.exp(-lower - shift)
    slopes = largest * torch.where(width > 1e-4, -torch.expm1(-width) / width.clamp(min=1e-4), 1 - width / 2)
    weighted = (slopes.unsqueeze(2) * ball.spec).sum(1, keepdim=True)
    gain = ball.crown(weighted).squeeze(1) - (slopes * lower).sum(1)
    total = (largest.sum(1) - beta * gain).clamp(min=1e-12)
    return (shift.squeeze(1) + torch.log(torch.exp(-shift.squeeze(1)) + total)).mean()
