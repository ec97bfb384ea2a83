"""Training without a certificate, as reference rows, and the attack that some certified methods share.

Batch norm normalises adversarial images by the statistics of the clean batch, in every method, as it does boxes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds import Context, Program, points_of
from harness.attacks.pgd import last_point
from harness.common.errors import require
from harness.common.method_names import register
from harness.methods.method import Method
from harness.methods.passes import Batch, Losses, losses_without_bounds
from harness.settings import RAMP

NEEDS_BOUNDS = dict.fromkeys(("regularisation", "regularise_equilibria"), "it computes no bounds")


@register
@dataclass(frozen=True)
class Plain(Method):
    """Cross entropy of the clean images."""

    name: ClassVar[str] = "plain"

    def ignored(self) -> dict[str, str]:
        """Return the settings of bounds and of the radius, which this method does not use."""
        radius = dict.fromkeys(("eps", *RAMP), "it trains for no radius")
        kappas = dict.fromkeys(("kappa", "kappa_start"), "its whole loss is the clean cross entropy")
        return NEEDS_BOUNDS | radius | kappas

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        logits = points_of(program, batch.x, Context(sound=False))
        return losses_without_bounds(F.cross_entropy(logits, batch.labels), logits, batch)


@dataclass(frozen=True)
class Attacking(Method):
    """A method that begins with projected gradient descent (Madry et al. 2018)."""

    attack_steps: int = 8
    """Number of signed gradient steps; the literature has 1 to 10."""
    attack_step: float = 0.25
    """Size of a step, as a fraction of the attack's radius."""

    def __post_init__(self) -> None:
        require("attack_steps", self.attack_steps, self.attack_steps >= 1, "an integer of at least 1")
        require("attack_step", self.attack_step, self.attack_step > 0, "above 0")

    @property
    def reach(self) -> float:
        """Return the radius of the attack over eps."""
        return 1.0

    def attack(self, program: Program, batch: Batch) -> Tensor:
        """Return the last point of an ascent on the cross entropy within reach * eps of x and within [0, 1].

        The start is random, by torch's generator of the device. Where the method ignores the attack, it returns x.
        """
        if "attack_steps" in self.ignored():
            return batch.x
        with torch.no_grad():
            ctx = Context(sound=False, follow=False)
            points_of(program, batch.x, ctx)
        radius = self.reach * batch.eps
        low, high = (batch.x - radius).clamp(min=0), (batch.x + radius).clamp(max=1)
        point = low + torch.rand_like(batch.x) * (high - low)

        def loss(points: Tensor) -> Tensor:
            return batch.attack_loss(program, points, batch.labels, ctx)

        return last_point(loss, point, self.attack_step * radius, self.attack_steps, low, high)


@register
@dataclass(frozen=True)
class PGD(Attacking):
    """Cross entropy of adversarial images (Madry et al. 2018)."""

    name: ClassVar[str] = "pgd"

    def ignored(self) -> dict[str, str]:
        """Return the settings of bounds, which this method does not use."""
        return NEEDS_BOUNDS

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        ctx = Context(sound=False)
        clean = points_of(program, batch.x, ctx)
        robust = F.cross_entropy(points_of(program, batch.adversarial, ctx), batch.labels)
        return losses_without_bounds(robust, clean, batch)
