"""Expressive losses, between adversarial training and IBP: SABR, MTL-IBP, CC-IBP and Exp-IBP."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds import Program, points_of
from harness.common.errors import require
from harness.common.method_names import register
from harness.methods.adversarial import Attacking
from harness.methods.passes import Batch, BoundedBox, Losses, bound_box, cross_entropy


@register
@dataclass(frozen=True)
class SABR(Attacking):
    """IBP over a box of radius subselection * eps, inside the ball, around an attack's point (Mueller et al. 2023).

    The box is not the whole ball, so training rows have no certified error.
    """

    name: ClassVar[str] = "sabr"

    subselection: float = 0.7
    """Radius of the small box as a fraction of eps: the paper has 0.7 for CIFAR-10 at 8/255, 0.1 at 2/255."""
    relu_shrinkage: float = 1.0
    """Factor of the upper bound after each unstable ReLU (CTBench 2024: 0.8 at 2/255). Equilibria may then not
    converge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("subselection", self.subselection, 0 < self.subselection <= 1, "above 0 and at most 1")
        require("relu_shrinkage", self.relu_shrinkage, 0 < self.relu_shrinkage <= 1, "above 0 and at most 1")

    def ignored(self) -> dict[str, str]:
        """Return the attack's settings if the box is as large as the ball."""
        reason = "with subselection 1 the box is the whole ball, so there is no attack"
        return dict.fromkeys(("attack_steps", "attack_step"), reason) if self.subselection == 1 else {}

    @property
    def reach(self) -> float:
        """Return the largest radius at which the small box stays inside the ball, over eps."""
        return 1 - self.subselection

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        box = bound_box(program, batch, batch.adversarial, self.subselection * batch.eps, self.relu_shrinkage)
        return box.losses(cross_entropy(box.margins.box.lower), certifies=False)


@dataclass(frozen=True)
class Expressive(Attacking):
    """A loss between that of adversarial images, at alpha 0, and IBP's, at alpha 1 (De Palma et al. 2024)."""

    alpha: float = 0.5
    """Weight of IBP. The paper has 0.5 for CIFAR-10 at 8/255; at 2/255 0.004 for MTL-IBP, 0.01 for CC-IBP and 0.095 for
    Exp-IBP."""
    attack_radius: float = 1.0
    """Radius of the attack as a fraction of eps (at 2/255 CTBench has 2, the paper 2.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("alpha", self.alpha, 0 <= self.alpha <= 1, "from 0 to 1")
        require("attack_radius", self.attack_radius, self.attack_radius > 0, "above 0")

    def ignored(self) -> dict[str, str]:
        """Return the attack's settings if the attack has no weight."""
        reason = "with alpha 1 its attack has no weight"
        return dict.fromkeys(("attack_steps", "attack_step", "attack_radius"), reason) if self.alpha == 1 else {}

    @property
    def reach(self) -> float:
        """Return `attack_radius`."""
        return self.attack_radius

    def both(self, program: Program, batch: Batch) -> tuple[Tensor, BoundedBox]:
        """Return the logits [B, K] of the adversarial images, and the ball's bounds."""
        ball = bound_box(program, batch, batch.x, batch.eps)
        return points_of(program, batch.adversarial, ball.ctx), ball


@register
@dataclass(frozen=True)
class MTLIBP(Expressive):
    """(1 - alpha) cross entropy of adversarial images + alpha that of IBP's worst logits (De Palma et al. 2024)."""

    name: ClassVar[str] = "mtl-ibp"

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        logits, ball = self.both(program, batch)
        adversarial = F.cross_entropy(logits, batch.labels)
        return ball.losses((1 - self.alpha) * adversarial + self.alpha * cross_entropy(ball.margins.box.lower))


@register
@dataclass(frozen=True)
class CCIBP(Expressive):
    """Cross entropy of (1 - alpha) margins of adversarial images + alpha IBP's lower margins (De Palma et al. 2024)."""

    name: ClassVar[str] = "cc-ibp"

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        logits, ball = self.both(program, batch)
        margins = (1 - self.alpha) * batch.margins_of(logits) + self.alpha * ball.margins.box.lower
        return ball.losses(cross_entropy(margins))


@register
@dataclass(frozen=True)
class ExpIBP(Expressive):
    """MTL-IBP's two cross entropies multiplied: adversarial^(1 - alpha) IBP^alpha (De Palma et al. 2024)."""

    name: ClassVar[str] = "exp-ibp"

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        logits, ball = self.both(program, batch)
        adversarial, bounded = F.cross_entropy(logits, batch.labels), cross_entropy(ball.margins.box.lower)
        # A cross entropy may round to 0, where the power has no finite gradient.
        return ball.losses(adversarial.clamp(min=1e-12) ** (1 - self.alpha) * bounded.clamp(min=1e-12) ** self.alpha)
