"""Answers that other evaluations of the same network have already proved, and which of them hold here, too.

| the other evaluation | is taken over |
| --- | --- |
| at the same eps, the stage with the same settings | what the stage answered, also that it left an image undecided |
| at the same eps, the stage with smaller limits | what the stage decided |
| at a larger eps, the stage with the same settings or smaller limits | what it certified |
| at a smaller eps, likewise | what it falsified |

So a stage that was added, more images, a longer limit or another eps ask only what is new, and certified error never
falls as eps grows. IBP is computed anew, since it costs little and widths follow from it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load
from torch import Tensor

from harness.attacks.counterexamples import pack, point_of
from harness.common import names
from harness.common.names import Verdict
from harness.evaluation.attack import margins_as_stored, margins_inside
from harness.evaluation.batch import Batch
from harness.evaluation.ledger import Proofs, StageResult
from harness.settings import CERTIFICATE_STAGES, EVALUATION_VERSION, Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file
from harness.storage.parquet import read_table

_ATTACK = ("attack", "attack_steps", "attack_step", "attack_restarts")
_BAB = ("bab_seconds", "bab_branches", "bab_total_seconds")
_DECIDED = (names.MISCLASSIFIED, names.FALSIFIED, names.CERTIFIED)
_RETRIED = (names.OUT_OF_MEMORY, names.FAILED)


@dataclass(frozen=True)
class Answers:
    """A finished evaluation of the network, in its folder. verdicts: its table, by the index of the image."""

    directory: Path
    evaluation: Evaluation
    verdicts: pd.DataFrame

    @cached_property
    def counterexamples(self) -> dict[str, Tensor]:
        """The stored counterexamples, by the index of the image."""
        return _tensors(self.directory / folder.COUNTEREXAMPLES)

    @cached_property
    def certificates(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of certificates by their names in the file, by the index of the image."""
        certificates: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _tensors(self.directory / folder.CERTIFICATES).items():
            certificates.setdefault(name.partition("/")[0], {})[name] = tensor
        return certificates


def find_answers(network_dir: Path, evaluation: Evaluation, weights: str) -> list[Answers]:
    """Return the other finished evaluations of a network on images of the same split; those that cannot be read not.

    The nearest eps comes last. weights: the SHA-256 of the network's.
    """
    found = list[Answers]()
    for directory in folder.evaluation_folders(network_dir):
        try:
            record, result = folder.read_evaluation(directory), folder.read_result(directory)
            fits = record.version == EVALUATION_VERSION and record.config.split == evaluation.split
            is_other = record.config.key != evaluation.key and record.weights == weights
            if result is not None and fits and is_other:
                table = read_table(directory / folder.VERDICTS)
                found.append(Answers(directory, record.config, table.set_index(names.INDEX)))
        except DamagedFileError:
            continue
    return sorted(found, key=lambda one: -abs(one.evaluation.eps - evaluation.eps))


@dataclass(frozen=True)
class Known:
    """What is taken over of a stage's answers about a batch.

    mask: bool [B], the examples that the stage need not look at. source: for each the key of the evaluation.
    """

    mask: Tensor
    source: np.ndarray
    result: StageResult


def known_answers(stage: str, batch: Batch, others: Sequence[Answers]) -> Known:
    """Return what others have answered about the undecided examples of a batch, and holds for a stage here.

    Raises ValueError for a damaged counterexample.
    """
    size = len(batch.labels)
    mask, source = np.zeros(size, bool), np.full(size, "", dtype=object)
    verdicts, proofs, unproved = dict[int, Verdict](), Proofs(), list[int]()
    lower, upper, branches = (np.full(size, np.nan) for _ in range(3))
    undecided = batch.undecided.cpu().numpy()
    for answers in others:
        rows = answers.verdicts.reindex(range(batch.first, batch.first + size))
        for example, verdict in _usable(stage, batch.evaluation, answers.evaluation, rows):
            if not undecided[example] or (verdict is None and mask[example]):
                continue
            row, index = rows.iloc[example], str(batch.first + example)
            found: Proofs | None = {}
            is_same = answers.evaluation.eps == batch.evaluation.eps
            is_attacked = verdict == names.FALSIFIED or (stage == names.ATTACK and is_same)
            margin = _number(row, names.ATTACK_MARGIN) if is_attacked else math.nan
            if verdict == names.FALSIFIED:
                margin, found = _counterexample(batch, example, answers, index, margin)
            elif verdict == names.CERTIFIED:
                found = answers.certificates.get(index, {})
            if found is None:  # nothing is stored, or the point is not proved adversarial in this ball
                continue
            mask[example], source[example] = True, row.get(names.TAKEN_FROM) or answers.evaluation.key
            lower[example], upper[example] = _number(row, names.margin_column(stage)), margin
            branches[example] = _number(row, names.BRANCHES)
            verdicts.pop(example, None)
            if verdict is not None:
                verdicts[example] = verdict
            proofs |= found
            unproved += [example] if row[names.REASON] == names.NO_CERTIFICATE and verdict == names.CERTIFIED else []
    device = batch.images.device
    at, low, high, leaves = (torch.from_numpy(each).to(device) for each in (mask, lower, upper, branches))
    columns = {names.BRANCHES: leaves} if stage == names.BAB else {}
    return Known(at, source, StageResult(verdicts, low, high, columns, proofs, unproved))


def _usable(
    stage: str, here: Evaluation, there: Evaluation, rows: pd.DataFrame
) -> Iterator[tuple[int, Verdict | None]]:  # fmt: skip
    """Yield the examples of a stage's usable answers, by their numbers, with the verdict; None where it left one open.

    rows: of the other evaluation, NaN for images that it has not.
    """
    order = (names.CLEAN, names.ATTACK, *there.stages)
    is_certified_later = rows[names.VERDICT] == names.CERTIFIED
    if stage == names.ATTACK and there.eps > here.eps:  # no attack finds anything in the ball of such an image
        holding = [each for each in there.stages if each in here.stages and _limits_fit(each, here, there)]
        yield from ((int(i), None) for i in np.flatnonzero(is_certified_later & rows[names.STAGE].isin(holding)))
        return
    if stage not in order or not _limits_fit(stage, here, there):
        return
    is_decided = rows[names.VERDICT].isin(_DECIDED)
    is_here = is_decided & (rows[names.STAGE] == stage)
    if there.certificates and (here.bab_seconds, here.bab_branches) != (there.bab_seconds, there.bab_branches):
        is_here &= rows[names.REASON] != names.NO_CERTIFICATE  # a longer search may find one
    allowed = {names.CERTIFIED: there.eps >= here.eps, names.FALSIFIED: there.eps <= here.eps}
    for verdict, holds in allowed.items():
        if holds:
            yield from ((int(i), verdict) for i in np.flatnonzero(is_here & (rows[names.VERDICT] == verdict)))
    if there.eps == here.eps and _settings(stage, here) == _settings(stage, there) and not _is_shared(stage, there):
        position = {name: number for number, name in enumerate(order)}
        decided_at = rows[names.STAGE].map(position).where(is_decided, len(order))
        is_open = rows[names.VERDICT].notna() & (decided_at > position[stage])
        noted = rows[names.STAGE] == stage
        is_timeout = is_open & noted & (rows[names.VERDICT] == names.TIMEOUT)
        is_open &= ~(noted & rows[names.VERDICT].isin(_RETRIED))
        yield from ((int(i), names.TIMEOUT if is_timeout.iloc[i] else None) for i in np.flatnonzero(is_open))


def _settings(stage: str, evaluation: Evaluation) -> tuple[object, ...]:
    """Return the settings that decide what a stage answers about an image that reaches it."""
    if stage == names.ATTACK:
        return tuple(getattr(evaluation, name) for name in _ATTACK)
    limits = _BAB if stage == names.BAB else ("stage_seconds",)
    return (*(getattr(evaluation, name) for name in limits), _has_certificates(stage, evaluation))


def _limits_fit(stage: str, here: Evaluation, there: Evaluation) -> bool:
    """Return whether what a stage decided there it decides here, too: its limits there are no larger."""
    if stage == names.ATTACK:
        return _settings(stage, here) == _settings(stage, there)
    names_of = _BAB if stage == names.BAB else ("stage_seconds",)
    limits = [(getattr(there, name) or math.inf, getattr(here, name) or math.inf) for name in names_of]
    return all(a <= b for a, b in limits) and _has_certificates(stage, here) == _has_certificates(stage, there)


def _has_certificates(stage: str, evaluation: Evaluation) -> bool:
    return evaluation.certificates and stage in CERTIFICATE_STAGES


def _is_shared(stage: str, evaluation: Evaluation) -> bool:
    """Return whether images share a limit of a stage: then what it left open depends on the others."""
    return stage == names.BAB and evaluation.bab_total_seconds is not None


def _counterexample(
    batch: Batch, example: int, answers: Answers, index: str, margin: float
) -> tuple[float, Proofs | None]:
    """Return the margin at an image's counterexample, and what is stored of that; None if it proves nothing here.

    margin: the one that is recorded, in the ball of the other evaluation.
    """
    stored = answers.counterexamples.get(index)
    if stored is None or answers.evaluation.eps == batch.evaluation.eps:
        return margin, None if stored is None else {index: stored}
    examples = torch.tensor([example], device=batch.images.device)
    point = point_of(stored, batch.images[example].cpu(), answers.evaluation.eps).to(batch.images)[None]
    margins, k = margins_as_stored(batch, examples, point)
    if margins[0] < 0:
        return float(margins[0]), {index: pack(k[0].cpu())}
    margins, inside = margins_inside(batch, examples, point)
    return (float(margins[0]), {index: inside[0].cpu()}) if margins[0] < 0 else (math.nan, None)


def find_contradictions(here: Evaluation, verdicts: pd.DataFrame, others: Sequence[Answers]) -> set[int]:
    """Return the images that one evaluation certifies at an eps at which another one falsifies them, or at a larger.

    verdicts: a row for each image.
    """
    found, mine = set[int](), verdicts.set_index(names.INDEX)[names.VERDICT]
    wrong = (names.MISCLASSIFIED, names.FALSIFIED)
    for answers in others:
        theirs = answers.verdicts[names.VERDICT].reindex(mine.index)
        if answers.evaluation.eps >= here.eps:
            found |= set(mine.index[(theirs == names.CERTIFIED) & mine.isin(wrong)])
        if answers.evaluation.eps <= here.eps:
            found |= set(mine.index[theirs.isin(wrong) & (mine == names.CERTIFIED)])
    return found


def _number(row: "pd.Series[float]", column: str) -> float:
    return float(row[column]) if column in row else math.nan


def _tensors(path: Path) -> dict[str, Tensor]:
    return parse_file(path, load) if path.exists() else {}
