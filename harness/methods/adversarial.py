"""Training without a certificate, as reference rows, and the attack that some certified methods share.

Batch norm normalises attacked images by the statistics of the clean batch, in every method, as it does boxes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds import Context, Program, points_of
from harness.attacks.pgd import last_point
from harness.methods.method import Method, register
from harness.methods.passes import Batch, Losses, unbounded

NOTHING_BOUNDED = dict.fromkeys(("regularisation", "regularise_equilibria"), "it bounds nothing to be regularised")


@register
@dataclass(frozen=True)
class Plain(Method):
    """Cross entropy of the clean images."""

    name: ClassVar[str] = "plain"

    def ignored(self) -> dict[str, str]:
        """There are neither boxes nor a radius."""
        radius = dict.fromkeys(("eps", "ramp_start", "ramp_epochs"), "it trains for no radius")
        return NOTHING_BOUNDED | radius | {"kappa": "its whole loss is the clean cross entropy"}

    def loss(self, program: Program, batch: Batch) -> Losses:
        """As the class says."""
        logits = points_of(program, batch.x, Context(sound=False))
        return unbounded(F.cross_entropy(logits, batch.labels), logits, batch)


@dataclass(frozen=True)
class Attacking(Method):
    """A method that begins with projected gradient descent (Madry et al. 2018)."""

    attack_steps: int = 8
    """How many signed gradient steps; ours (the literature takes 1 to 10)."""
    attack_step: float = 0.25
    """The size of each over the radius attacked."""

    def __post_init__(self) -> None:
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps must be at least 1, found {self.attack_steps}")
        if not self.attack_step > 0:
            raise ValueError(f"attack_step must be above 0, found {self.attack_step}")

    @property
    def reach(self) -> float:
        """The radius attacked over eps."""
        return 1.0

    def attack(self, program: Program, batch: Batch) -> Tensor:
        """Ascent on the cross entropy within reach * eps of x and [0, 1], from a random start; the last point.

        The start is drawn by torch's generator of the device.
        """
        with torch.no_grad():
            ctx = Context(sound=False, follow=False)
            points_of(program, batch.x, ctx)
        radius = self.reach * batch.eps
        low, high = (batch.x - radius).clamp(min=0), (batch.x + radius).clamp(max=1)
        point = low + torch.rand_like(batch.x) * (high - low)

        def loss(points: Tensor) -> Tensor:
            return batch.climbed(program, points, batch.labels, ctx)

        return last_point(loss, point, self.attack_step * radius, self.attack_steps, low, high)


@register
@dataclass(frozen=True)
class PGD(Attacking):
    """Cross entropy of the attacked images (Madry et al. 2018)."""

    name: ClassVar[str] = "pgd"

    def ignored(self) -> dict[str, str]:
        """There are no boxes."""
        return NOTHING_BOUNDED

    def loss(self, program: Program, batch: Batch) -> Losses:
        """As the class says."""
        ctx = Context(sound=False)
        clean = points_of(program, batch.x, ctx)
        robust = F.cross_entropy(points_of(program, batch.attacked, ctx), batch.labels)
        return unbounded(robust, clean, batch)
