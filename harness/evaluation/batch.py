"""A batch of examples under evaluation, and what a stage answers about it."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cerdeq import Box, LinfBall, margin_spec
from harness.common.names import Verdict
from harness.config.trial import Trial
from harness.evaluation.ledger import Ledger
from harness.evaluation.network import PreparedNetwork
from harness.storage import folder
from harness.storage.files import write_atomically

Proofs = dict[str, Tensor]
"""What proves verdicts: a counterexample by its image's index, a certificate's tensors by "<index>/<name>"."""


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


@dataclass(frozen=True)
class StageResult:
    """The result of a stage of the verifier; tensors are [B], NaN for examples that it has no answer for.

    verdicts: of the examples, by their numbers, about which the stage has one.
    lower: lower bounds of the smallest margin. counterexample_margin: of examples that the stage falsified, proved
    upper bounds of the margin at a counterexample; the attack's have the smallest margin that it reached, too.
    columns: further columns of the table of verdicts. proofs: counterexamples and certificates.
    unproved: the numbers of examples for which a certificate was searched and not found.
    """

    verdicts: dict[int, Verdict]
    lower: Tensor
    counterexample_margin: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    proofs: Proofs = field(default_factory=dict)
    unproved: list[int] = field(default_factory=list)


def verdict_where(examples: Tensor, verdict: Verdict) -> dict[int, Verdict]:
    """Return the verdict on examples, bool [B], by their numbers."""
    return dict.fromkeys(examples.nonzero()[:, 0].tolist(), verdict)


def write_proofs(directory: Path, proofs: Proofs) -> None:
    """Write counterexamples to their file and, if there are any, certificates to theirs; else none of before stay."""
    points = {name: tensor for name, tensor in proofs.items() if "/" not in name}
    write_atomically(directory / folder.COUNTEREXAMPLES, partial(save_file, points))
    (directory / folder.CERTIFICATES).unlink(missing_ok=True)
    if certificates := {name: tensor for name, tensor in proofs.items() if "/" in name}:
        write_atomically(directory / folder.CERTIFICATES, partial(save_file, certificates))
