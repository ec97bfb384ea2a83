"""The stages of the verifier after IBP: the other bounds of cerdeq, and branch and bound.

To add a stage, add its name to `STAGES` in harness/settings.py. A stage that is no bound of cerdeq also needs
a function here, in `FUNCTIONS`.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO

import torch
from torch import Tensor

import cerdeq
from cerdeq.bounds import BOUNDS, Interval, lower_bounds
from cerdeq.deadline import DeadlineError
from harness.common import names
from harness.common.names import Verdict
from harness.evaluation.attack import counterexamples, margins_as_stored, margins_inside
from harness.evaluation.batch import Batch
from harness.evaluation.ledger import Proofs, SoundnessError, StageResult, verdict_where
from harness.settings import CERTIFICATE_STAGES
from harness.storage.files import DamagedFileError, parse_file, write_bytes
from harness.storage.ranges import search_path

_UNPROVED = "the counterexample of branch and bound is not proved to be one within the exact ball"
_CERTIFICATES = "certificates"  # the name of the seconds spent on them


def _bound(name: str, batch: Batch) -> StageResult:
    """Return lower bounds by one of cerdeq's bounds, with certificates if the settings ask for them."""
    network, lower = batch.network, batch.nan()

    def ask(examples: Tensor) -> Tensor:
        ball, spec = batch.query(examples)
        region = Interval(ball.center, ball.radius)
        return lower_bounds(network.program, region, spec, name, 0.0, float32=network.program_float32).amin(1)

    for examples, margins in batch.ledger.answers(name, ask, batch.undecided.nonzero()[:, 0]):
        lower[examples] = margins.to(lower)
    has_certificates = batch.evaluation.certificates and name in CERTIFICATE_STAGES
    proofs, unproved = _certificates(batch, lower > 0) if has_certificates else ({}, [])
    return StageResult(verdict_where(lower > 0, names.CERTIFIED), lower, batch.nan(), proofs=proofs, unproved=unproved)


def _certificates(batch: Batch, examples: Tensor) -> tuple[Proofs, list[int]]:
    """Return certificates of examples [B] that a stage certified without one, and those for which none was found."""
    proofs, unproved = Proofs(), list[int]()
    for example in examples.nonzero():
        answers = batch.ledger.answers(_CERTIFICATES, partial(search, batch, _CERTIFICATES), example)
        for _, verification in answers:
            if verification.status[0] == names.FALSIFIED:
                index = batch.first + int(example)
                raise SoundnessError(f"image {index}: certified, and falsified by the search for its certificate")
            proofs |= _name_tensors(batch, example, verification)
        if not answers or _lacks_certificate(answers[0][1]):
            unproved.append(int(example))
    return proofs, unproved


def _lacks_certificate(verification: cerdeq.Verification) -> bool:
    """Return whether a search has no certificate. Without branches linear bounds were enough, which need none."""
    is_certified, branches = verification.status[0] == names.CERTIFIED, verification.branches[0]
    return not verification.certificates[0] and not (is_certified and bool(branches == 0))


def _branch_and_bound(batch: Batch) -> StageResult:
    """Return what branch and bound finds of the undecided examples, one image at a time."""
    verdicts, proofs, unproved, short = dict[int, Verdict](), Proofs(), list[int](), list[int]()
    lower, upper, branches = batch.nan(), batch.nan(), batch.nan()
    k_of = torch.zeros_like(batch.images, dtype=torch.int16)

    def ask(example: Tensor) -> None:
        left = batch.share * (batch.evaluation.bab_total_seconds or math.inf) - batch.ledger.seconds.get(names.BAB, 0.0)
        if left <= 0:
            raise DeadlineError
        verification, number = search(batch, names.BAB, example, left), int(example)
        verdict, bound = Verdict(verification.status[0]), float(verification.lower[0].amin())
        if verdict == (names.FALSIFIED if bound > 0 else names.CERTIFIED):
            index = batch.first + number
            raise SoundnessError(f"image {index}: branch and bound says {verdict}, with a bound of {bound:g}")
        if verdict == names.FALSIFIED:
            point = verification.counterexample.to(batch.images)
            upper[example], k_of[example] = margins_as_stored(batch, example, point)
            if upper[example] < 0:
                short.append(number)
            else:
                upper[example], inside = margins_inside(batch, example, point)
                if upper[example] < 0:
                    proofs[str(batch.first + number)] = inside[0].cpu()
                else:
                    verdict, upper[example] = names.UNKNOWN, torch.nan
                    batch.ledger.note(names.BAB, verdict, number, _UNPROVED)
        verdicts[number], lower[example], branches[example] = verdict, bound, float(verification.branches[0])
        proofs.update(_name_tensors(batch, example, verification))
        if batch.evaluation.certificates and verdict == names.CERTIFIED and _lacks_certificate(verification):
            unproved.append(number)

    for example in batch.undecided.nonzero():
        batch.ledger.answers(names.BAB, ask, example)
    proofs |= counterexamples(batch, names.BAB, short, k_of)
    return StageResult(verdicts, lower, upper, {names.BRANCHES: branches}, proofs, unproved)


def _name_tensors(batch: Batch, example: Tensor, verification: cerdeq.Verification) -> Proofs:
    """Return the tensors of an example's certificate by their names in the file."""
    index = batch.first + int(example)
    return {f"{index}/{name}": tensor for name, tensor in verification.certificates[0].items()}


FUNCTIONS: dict[str, Callable[[Batch], StageResult]] = {
    **{name: partial(_bound, name) for name in BOUNDS if name != names.IBP},
    names.BAB: _branch_and_bound,
}
"""What each stage after IBP finds of the undecided examples of a batch."""


def search(batch: Batch, stage: str, example: Tensor, seconds: float = math.inf) -> cerdeq.Verification:
    """Return the answer of branch and bound about an example [1], within so many seconds and the limits of an image.

    An answer that was saved before a kill is read, and the seconds that it took are added to those of the stage.
    """
    if batch.ranges_dir is None:
        return _search(batch, example, seconds)
    path, started = search_path(batch.ranges_dir, batch.first + int(example)), time.perf_counter()
    with suppress(DamagedFileError):
        fields, taken = parse_file(path, lambda content: torch.load(BytesIO(content), weights_only=True))
        batch.ledger.seconds[stage] = batch.ledger.seconds.get(stage, 0.0) + taken
        return cerdeq.Verification(**fields)
    verification, content = _search(batch, example, seconds), BytesIO()
    torch.save((vars(verification), time.perf_counter() - started), content)
    write_bytes(path, content.getvalue())
    return verification


def _search(batch: Batch, example: Tensor, seconds: float) -> cerdeq.Verification:
    settings = batch.evaluation
    seconds = min(seconds, math.inf if settings.bab_seconds is None else settings.bab_seconds)
    budget = None if seconds == math.inf else seconds, settings.bab_branches
    return cerdeq.verify(batch.network.model, *batch.query(example), *budget, certificates=settings.certificates)
