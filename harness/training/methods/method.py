"""What every training method is."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cerdeq.bounds import Program
from harness.training.methods.passes import Batch, Losses


@dataclass(frozen=True)
class Method:
    """A training method with its options, which are its fields.

    name: in sweep files. linear: whether it needs operators' backward rules.
    """

    name: ClassVar[str]
    linear: ClassVar[bool] = False

    def loss(self, program: Program, batch: Batch) -> Losses:
        """The loss of one batch, and what was bounded on the way."""
        raise NotImplementedError

    def attack(self, program: Program, batch: Batch) -> Tensor | None:
        """The adversarial examples [B, C, H, W] that `loss` wants as `batch.adversary`; None where it wants none."""
        return None

    def at(self, progress: float) -> "Method":
        """A method with the same loss when eps is `progress` of its target, where one costs less."""
        return self
