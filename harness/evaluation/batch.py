"""A batch of examples under evaluation, and the files of what proves their verdicts."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cerdeq import Box, LinfBall, margin_spec
from harness.config.trial import Trial
from harness.evaluation.ledger import Ledger, Proofs
from harness.evaluation.network import PreparedNetwork
from harness.storage import folder
from harness.storage.files import write_atomically


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


def write_proofs(directory: Path, proofs: Proofs) -> None:
    """Write counterexamples to their file and, if there are any, certificates to theirs; else none of before stay."""
    points = {name: tensor for name, tensor in proofs.items() if "/" not in name}
    write_atomically(directory / folder.COUNTEREXAMPLES, partial(save_file, points))
    (directory / folder.CERTIFICATES).unlink(missing_ok=True)
    if certificates := {name: tensor for name, tensor in proofs.items() if "/" in name}:
        write_atomically(directory / folder.CERTIFICATES, partial(save_file, certificates))
