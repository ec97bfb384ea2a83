"""A batch of examples under evaluation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq import Box, LinfBall, margin_spec
from harness.config.trial import Trial
from harness.evaluation.ledger import Ledger
from harness.evaluation.network import PreparedNetwork


@dataclass(frozen=True)
class Batch:
    """Examples under evaluation.

    images: float64 [B, C, H, W], pixels in [0, 1]. labels: [B]. first: the index of the first example.
    ledger: the verdicts so far. bounded: bool [B], the examples that IBP could bound; stages skip the others.
    """

    network: PreparedNetwork
    images: Tensor
    labels: Tensor
    first: int
    config: Trial
    ledger: Ledger
    bounded: Tensor

    @property
    def undecided(self) -> Tensor:
        """The examples that stages look at: bool [B], on the images' device."""
        return self.bounded & self.ledger.undecided.to(self.images.device, non_blocking=True)

    def query(self, examples: Tensor) -> tuple[Box, Tensor]:
        """Return the balls around examples, by their numbers [n], and the rows of their margins."""
        spec = margin_spec(self.labels[examples], self.config.data_info.classes)
        return LinfBall(self.images[examples], self.config.eps), spec.to(self.images)

    def nan(self) -> Tensor:
        """Return NaN for each example: float64 [B]."""
        return torch.full(self.labels.shape, torch.nan, dtype=torch.float64, device=self.images.device)
