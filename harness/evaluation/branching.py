"""Branch and bound of undecided examples, one image at a time."""

from functools import partial

import torch
from torch import Tensor

import cerdeq
from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from harness.attacks.counterexamples import decode, encode
from harness.config.settings import BAB
from harness.evaluation.attack import margins_at
from harness.evaluation.batch import Batch, Evidence, StageResult
from harness.storage import names

_CERTIFIED, _FALSIFIED, _UNKNOWN = "certified", "falsified", "unknown"  # statuses of cerdeq.verify
_CERTIFICATES = "certificates"  # the name of the seconds spent on certificates
_LIMITS = {"timeout": names.TIMEOUT, "out of memory": names.OUT_OF_MEMORY}  # statuses of a search that was cut short


def branch_and_bound(batch: Batch) -> StageResult:
    """Return what branch and bound finds of the undecided examples."""
    lower, branches, upper = batch.nan(), batch.nan(), batch.nan()
    evidence: Evidence = {}
    for example in batch.undecided.nonzero():
        for number, answer in batch.ledger.answers(BAB, partial(_verify_and_check, batch), example):
            status, lower[number], branches[number], upper[number], tensors = answer
            evidence.update({f"{batch.first + int(number)}{name}": tensor for name, tensor in tensors.items()})
            if status in _LIMITS:
                batch.ledger.note(BAB, _LIMITS[status], int(number))
    return StageResult(lower, upper, {names.BRANCHES: branches}, evidence)


def certificates(batch: Batch, examples: Tensor) -> Evidence:
    """Return certificates of examples [B] that a stage certified without one; some may have none."""
    evidence: Evidence = {}
    for example in examples.nonzero():
        for number, verification in batch.ledger.answers(_CERTIFICATES, partial(_verify, batch), example):
            tensors = verification.certificates[0].items()
            evidence |= {f"{batch.first + int(number)}/{name}": tensor for name, tensor in tensors}
    return evidence


def _verify(batch: Batch, example: Tensor) -> cerdeq.Verification:
    """Return the answer of branch and bound about an example [1]."""
    config, settings = batch.config, batch.config.evaluation
    region = LinfBall(batch.images[example], config.eps)
    spec = margin_spec(batch.labels[example], DATASETS[config.dataset].classes).to(batch.images)
    budget = settings.bab_seconds, settings.bab_branches
    return cerdeq.verify(batch.network.model, region, spec, *budget, certificates=settings.certificates)


def _verify_and_check(batch: Batch, example: Tensor) -> tuple[str, float, float, float, Evidence]:
    """Return, of an example [1]: status, lower bound, branches, margin at its counterexample, evidence.

    The evidence's names are those that follow the example's index.

    Raises:
        ValueError: the status contradicts the bound or the margin.
    """
    image, eps, verification = batch.images[example], batch.config.eps, _verify(batch, example)
    status, lower = verification.status[0], float(verification.lower[0].amin())
    upper, evidence = torch.nan, {f"/{name}": tensor for name, tensor in verification.certificates[0].items()}
    if status == _FALSIFIED:
        encoded = encode(verification.counterexample.to(image), image, eps)
        upper = float(margins_at(batch.network, decode(encoded, image, eps), batch.labels[example]))
        evidence[""] = encoded[0].cpu()
    undecided = status in (_UNKNOWN, *_LIMITS) and not lower > 0
    if not {_CERTIFIED: lower > 0, _FALSIFIED: upper < 0}.get(status, undecided):
        raise ValueError(f"branch and bound says {status}, with a bound of {lower:g} and a margin of {upper:g}")
    return status, lower, float(verification.branches[0]), upper, evidence
