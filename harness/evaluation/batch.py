"""A batch of examples under evaluation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cerdeq import Box, LinfBall, margin_spec
from harness.evaluation.ledger import Ledger
from harness.evaluation.network import PreparedNetwork
from harness.settings import Evaluation


@dataclass(frozen=True)
class Batch:
    """Examples under evaluation.

    images: float64 [B, C, H, W], pixels in [0, 1]. labels: [B]. first: the index of the first example.
    evaluation: its settings. seed: of the attack's starts.
    ledger: the verdicts so far. asked: bool [B], the examples that a stage looks at, if they are undecided.
    share: of the time that all examples of the evaluation have together.
    ranges_dir: the folder in which answers of single examples are saved; None saves none.
    """

    network: PreparedNetwork
    images: Tensor
    labels: Tensor
    first: int
    evaluation: Evaluation
    seed: int
    ledger: Ledger
    asked: Tensor
    share: float
    ranges_dir: Path | None = None

    @property
    def undecided(self) -> Tensor:
        """The examples that stages look at: bool [B], on the images' device."""
        return self.asked & self.ledger.undecided.to(self.images.device, non_blocking=True)

    def query(self, examples: Tensor) -> tuple[Box, Tensor]:
        """Return the balls around examples, by their numbers [n], and the rows of their margins."""
        spec = margin_spec(self.labels[examples], self.network.classes)
        return LinfBall(self.images[examples], self.evaluation.eps), spec.to(self.images)

    def nan(self) -> Tensor:
        """Return NaN for each example: float64 [B]."""
        return torch.full(self.labels.shape, torch.nan, dtype=torch.float64, device=self.images.device)
