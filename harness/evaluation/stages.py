"""The stages of the verifier after IBP: the other bounds of cerdeq, and branch and bound.

To add a stage, add its record to `STAGES` in harness/settings.py. A stage that is no bound of cerdeq also needs
a function here, in `FUNCTIONS`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import cerdeq
from cerdeq.bounds import BOUNDS, Interval, lower_bounds
from harness.common import names
from harness.evaluation.attack import counterexamples, margins_as_stored, margins_at
from harness.evaluation.batch import Batch, Proofs, StageResult
from harness.settings import STAGES

_CERTIFIED, _FALSIFIED, _UNKNOWN = "certified", "falsified", "unknown"  # statuses of cerdeq.verify
_LIMITS = {"timeout": names.TIMEOUT, "out of memory": names.OUT_OF_MEMORY}  # statuses of a search that was cut short
_MOVED = "the counterexample does not survive rounding to a multiple of eps / 32767, as which it is stored"
_CERTIFICATES = "certificates"  # the setting, and the name of the seconds spent on them


def _bound(name: str, batch: Batch) -> StageResult:
    """Return lower bounds by one of cerdeq's bounds, with certificates if the settings ask for them."""
    network, lower = batch.network, batch.nan()

    def ask(examples: Tensor) -> Tensor:
        ball, spec = batch.query(examples)
        region = Interval(ball.center, ball.radius)
        return lower_bounds(network.program, region, spec, name, 0.0, float32=network.program_float32).amin(1)

    for examples, margins in batch.ledger.answers(name, ask, batch.undecided.nonzero()[:, 0]):
        lower[examples] = margins.to(lower)
    has_certificates = batch.config.evaluation.certificates and _CERTIFICATES in STAGES[name].settings
    proofs, unproved = _certificates(batch, lower > 0) if has_certificates else ({}, [])
    return StageResult(lower, batch.nan(), proofs=proofs, unproved=unproved)


def _certificates(batch: Batch, examples: Tensor) -> tuple[Proofs, list[int]]:
    """Return certificates of examples [B] that a stage certified without one, and those for which none was found."""
    proofs, unproved = Proofs(), list[int]()
    for example in examples.nonzero():
        answers = batch.ledger.answers(_CERTIFICATES, partial(_verify, batch), example)
        for _, verification in answers:
            proofs |= _name_tensors(batch, example, verification)
        if not answers or _lacks_certificate(answers[0][1]):
            unproved.append(int(example))
    return proofs, unproved


def _lacks_certificate(verification: cerdeq.Verification) -> bool:
    """Return whether a search has no certificate. Without branches linear bounds were enough, which need none."""
    return not verification.certificates[0] and bool(verification.branches[0] > 0)


def _branch_and_bound(batch: Batch) -> StageResult:
    """Return what branch and bound finds of the undecided examples, one image at a time."""
    lower, upper, branches, proofs = batch.nan(), batch.nan(), batch.nan(), Proofs()
    unproved = list[int]()
    k_of = torch.zeros_like(batch.images, dtype=torch.int16)

    def ask(example: Tensor) -> None:
        verification, margin = _verify(batch, example), torch.nan
        status, bound = verification.status[0], float(verification.lower[0].amin())
        if status == _FALSIFIED:
            point = verification.counterexample.to(batch.images)
            margins, k_of[example] = margins_as_stored(batch, example, point)
            margin = float(margins)
            if not margin < 0 and float(margins_at(batch.network, point, batch.labels[example])) < 0:
                status, margin = _UNKNOWN, torch.nan
                batch.ledger.note(names.BAB, names.UNKNOWN, int(example), _MOVED)
        undecided = status in (_UNKNOWN, *_LIMITS) and not bound > 0
        if not {_CERTIFIED: bound > 0, _FALSIFIED: margin < 0}.get(status, undecided):
            raise ValueError(f"branch and bound says {status}, with a bound of {bound:g} and a margin of {margin:g}")
        lower[example], upper[example], branches[example] = bound, margin, float(verification.branches[0])
        proofs.update(_name_tensors(batch, example, verification))
        if batch.config.evaluation.certificates and status == _CERTIFIED and _lacks_certificate(verification):
            unproved.append(int(example))
        if status in _LIMITS:
            batch.ledger.note(names.BAB, _LIMITS[status], int(example))

    for example in batch.undecided.nonzero():
        batch.ledger.answers(names.BAB, ask, example)
    proofs |= counterexamples(batch, names.BAB, upper < 0, k_of)
    return StageResult(lower, upper, {names.BRANCHES: branches}, proofs, unproved)


def _verify(batch: Batch, example: Tensor) -> cerdeq.Verification:
    """Return the answer of branch and bound about an example [1]."""
    settings = batch.config.evaluation
    budget = settings.bab_seconds, settings.bab_branches
    return cerdeq.verify(batch.network.model, *batch.query(example), *budget, certificates=settings.certificates)


def _name_tensors(batch: Batch, example: Tensor, verification: cerdeq.Verification) -> Proofs:
    """Return the tensors of an example's certificate by their names in the file."""
    index = batch.first + int(example)
    return {f"{index}/{name}": tensor for name, tensor in verification.certificates[0].items()}


FUNCTIONS: dict[str, Callable[[Batch], StageResult]] = {
    **{name: partial(_bound, name) for name in BOUNDS},
    names.BAB: _branch_and_bound,
}
"""What each stage finds of the undecided examples of a batch."""
