"""Answers that other evaluations of the same network have already proved, and which of them hold here, too.

| the other evaluation | is taken over |
| --- | --- |
| at the same eps, the stage with the same settings | what the stage answered, also that it left an image undecided |
| at the same eps, the stage with smaller limits | what the stage decided |
| at a larger eps, the stage with the same settings or smaller limits | what it certified |
| at a smaller eps, likewise | what it falsified |

So a stage that was added, more images, a longer limit or another eps ask only what is new, and what is certified at an
eps is certified at every smaller one that is evaluated later. IBP is computed anew, since it costs little and widths
follow from it. A counterexample is proved again in the ball here.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from harness.evaluation.attack import margins_as_stored, margins_at, margins_inside
from harness.evaluation.batch import Batch
from harness.evaluation.ledger import NO_STAGE, Proofs, StageResult
from harness.settings import CERTIFICATE_STAGES, EVALUATION_VERSION, Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file
from harness.storage.parquet import read_verdicts
from harness.storage.records import Result

_ATTACK = ("attack", "attack_steps", "attack_step", "attack_restarts")
_BAB = ("bab_seconds", "bab_branches", "bab_total_seconds")


@dataclass(frozen=True)
class Answers:
    """A finished evaluation of the network, in its folder. verdicts: its table, by the index of the image."""

    directory: Path
    evaluation: Evaluation
    verdicts: pd.DataFrame

    @cached_property
    def counterexamples(self) -> dict[str, Tensor]:
        """The stored counterexamples, by the index of the image; none if they cannot be read."""
        return _tensors(self.directory / folder.COUNTEREXAMPLES)

    @cached_property
    def certificates(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of certificates by their names in the file, by the index of the image; as above."""
        certificates: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _tensors(self.directory / folder.CERTIFICATES).items():
            certificates.setdefault(name.partition("/")[0], {})[name] = tensor
        return certificates


def find_answers(network_dir: Path, evaluation: Evaluation, weights: str) -> list[Answers]:
    """Return the other finished evaluations of a network on images of the same split; those that cannot be read not.

    The nearest eps comes last. weights: the SHA-256 of the network's.
    """
    found, network = list[Answers](), folder.read_training(network_dir / folder.TRAINING).key
    for directory in folder.evaluation_folders(network_dir):
        with suppress(DamagedFileError):
            record, result = folder.read_evaluation(directory), folder.read_result(directory)
            fits = (record.version, record.config.split) == (EVALUATION_VERSION, evaluation.split)
            if result is None or not fits or record.config.key == evaluation.key:
                continue
            is_of_network = (result.key, result.weights) == (f"{network}/{record.config.key}", weights)
            if is_of_network and result.verdicts:  # empty in results of older versions
                found.append(Answers(directory, record.config, _read_verdicts(directory, record.config, result)))
    return sorted(found, key=lambda one: -abs(one.evaluation.eps - evaluation.eps))


def _read_verdicts(directory: Path, evaluation: Evaluation, result: Result) -> pd.DataFrame:
    """Return the verdicts of an evaluation by the index of the image. Raises DamagedFileError, also for another's."""
    columns = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE, names.REASON]
    columns += [names.ATTACK_MARGIN, names.TAKEN_FROM, *map(names.margin_column, evaluation.stages)]
    columns += [names.BRANCHES] if names.BAB in evaluation.stages else []
    table = read_verdicts(directory, columns)
    folder.check_verdicts(directory, result)
    if table[names.INDEX].tolist() != [*range(len(table))]:
        raise DamagedFileError(f"{directory / folder.VERDICTS} has not each image once, in order")
    return table.set_index(names.INDEX)


@dataclass(frozen=True)
class TakenOver:
    """What is taken over of a stage's answers about a batch.

    mask: bool [B], the examples that the stage need not look at. source: for each the key of the evaluation.
    """

    mask: Tensor
    source: np.ndarray
    result: StageResult


@dataclass(frozen=True)
class _Answer:
    """What an evaluation has answered about an example. verdict: None where the stage left it undecided."""

    verdict: Verdict | None
    evaluation: Evaluation
    row: "pd.Series[float]"
    margin: float = math.nan
    proofs: Proofs = field(default_factory=dict)


def answers_taken_over(stage: str, batch: Batch, others: Sequence[Answers]) -> TakenOver:
    """Return what others have answered about the undecided examples of a batch, if it holds for a stage here."""
    size = len(batch.labels)
    mask, source = np.zeros(size, bool), np.full(size, "", dtype=object)
    verdicts, proofs, unproved = dict[int, Verdict](), Proofs(), list[int]()
    lower, margin, branches = (np.full(size, np.nan) for _ in range(3))
    for example, answer in _find_usable(stage, batch, others).items():
        row, verdict = answer.row, answer.verdict
        mask[example], source[example] = True, row[names.TAKEN_FROM] or answer.evaluation.key
        if answer.evaluation.eps >= batch.evaluation.eps:  # a bound of a smaller ball is none here
            lower[example] = row.get(names.margin_column(stage), math.nan)
        margin[example], branches[example] = answer.margin, row.get(names.BRANCHES, math.nan)
        if verdict is not None:
            verdicts[example] = verdict
        proofs |= answer.proofs
        if verdict == names.CERTIFIED and row[names.REASON] == names.NO_CERTIFICATE:
            unproved.append(example)
    device = batch.images.device
    at, low, high, leaves = (torch.from_numpy(each).to(device) for each in (mask, lower, margin, branches))
    columns = {names.BRANCHES: leaves} if stage == names.BAB else {}
    return TakenOver(at, source, StageResult(verdicts, low, high, columns, proofs, unproved))


def _find_usable(stage: str, batch: Batch, others: Sequence[Answers]) -> dict[int, _Answer]:
    """Return the answer that is taken over about each example; of several a decision, by the nearest eps."""
    usable: dict[int, _Answer] = {}
    undecided, labels = batch.undecided.cpu().numpy(), batch.labels.cpu().numpy()
    for answers in others if undecided.any() else ():
        there, rows = answers.evaluation, answers.verdicts.reindex(range(batch.first, batch.first + len(labels)))
        is_asked, is_same = undecided & (rows[names.LABEL] == labels).to_numpy(), there.eps == batch.evaluation.eps
        decided, left_open = _usable(stage, batch.evaluation, there, rows)
        falsified = is_asked & (decided & (rows[names.VERDICT] == names.FALSIFIED)).to_numpy()
        has_certificates = _has_certificates(stage, there)
        is_usable = not has_certificates or bool(answers.certificates)  # else their file is damaged or missing
        certified = is_usable & is_asked & (decided & (rows[names.VERDICT] == names.CERTIFIED)).to_numpy()
        for example in map(int, np.flatnonzero(is_asked & left_open.to_numpy())):
            row = rows.iloc[example]
            is_timeout = row[names.VERDICT] == names.TIMEOUT and row[names.STAGE] == stage
            margin = row[names.ATTACK_MARGIN] if stage == names.ATTACK and is_same else math.nan
            verdict = names.TIMEOUT if is_timeout else None
            usable.setdefault(example, _Answer(verdict, there, row, margin))
        for example in map(int, np.flatnonzero(certified)):
            own = answers.certificates.get(str(batch.first + example), {}) if has_certificates else {}
            usable[example] = _Answer(names.CERTIFIED, there, rows.iloc[example], proofs=own)
        for example, (margin, stored) in _prove_counterexamples(stage, batch, falsified, answers).items():
            row = rows.iloc[example]
            margin = row[names.ATTACK_MARGIN] if is_same else margin
            usable[example] = _Answer(names.FALSIFIED, there, row, margin, {str(batch.first + example): stored})
    return usable


def _usable(
    stage: str, here: Evaluation, there: Evaluation, rows: pd.DataFrame
) -> "tuple[pd.Series[bool], pd.Series[bool]]":
    """Return of which images a stage's decision there holds here, and which it leaves undecided here, too.

    rows: of the other evaluation, NaN for images that it has not.
    """
    verdict, decided_by = rows[names.VERDICT], rows[names.STAGE]
    nowhere = pd.Series(False, rows.index)
    if stage == names.ATTACK and there.eps > here.eps:  # no attack finds anything in the ball of such an image
        holding = [each for each in there.stages if each in here.stages and _limits_fit(each, here, there)]
        return nowhere, (verdict == names.CERTIFIED) & decided_by.isin(holding)
    if not (stage == names.ATTACK or stage in there.stages) or not _limits_fit(stage, here, there):
        return nowhere, nowhere
    decided = nowhere
    if there.eps >= here.eps:
        decided = decided | (verdict == names.CERTIFIED)
    if there.eps <= here.eps:
        decided = decided | (verdict == names.FALSIFIED)
    decided &= decided_by == stage
    if there.certificates and (here.bab_seconds, here.bab_branches) != (there.bab_seconds, there.bab_branches):
        decided &= rows[names.REASON] != names.NO_CERTIFICATE  # a longer search may find one
    if there.eps != here.eps or not _has_same_settings(stage, here, there):
        return decided, nowhere
    order = [names.CLEAN, names.ATTACK, *there.stages, NO_STAGE]
    is_later = decided_by.isin(order[order.index(stage) + 1 :])  # it was decided, or had a problem, in a later stage
    answer = names.ATTACK_MARGIN if stage == names.ATTACK else names.margin_column(stage)
    left_open = is_later & rows[answer].notna()  # else a problem of its own is noted nowhere
    if stage == names.ATTACK:
        left_open &= verdict != names.FALSIFIED  # the margin is that of a later counterexample
    return decided, left_open | ((verdict == names.TIMEOUT) & (decided_by == stage))


def _limits_fit(stage: str, here: Evaluation, there: Evaluation) -> bool:
    """Return whether what a stage decided there it decides here, too: its limits there are no larger."""
    if stage == names.ATTACK and any(getattr(here, name) != getattr(there, name) for name in _ATTACK):
        return False
    limits = [(getattr(there, name) or math.inf, getattr(here, name) or math.inf) for name in _limits_of(stage)]
    return all(a <= b for a, b in limits) and _has_certificates(stage, here) == _has_certificates(stage, there)


def _has_same_settings(stage: str, here: Evaluation, there: Evaluation) -> bool:
    """Return whether an image that a stage left undecided there stays so here. Its limits fit.

    Where images share a limit, that depends on the others.
    """
    is_same = all(getattr(here, name) == getattr(there, name) for name in _limits_of(stage))
    return is_same and not (stage == names.BAB and there.bab_total_seconds is not None)


def _limits_of(stage: str) -> tuple[str, ...]:
    return _BAB if stage == names.BAB else ("stage_seconds",)


def _has_certificates(stage: str, evaluation: Evaluation) -> bool:
    return evaluation.certificates and stage in CERTIFICATE_STAGES


def _prove_counterexamples(
    stage: str, batch: Batch, falsified: np.ndarray, answers: Answers
) -> dict[int, tuple[float, Tensor]]:
    """Return the margins at counterexamples that are proved in the balls here, and what is stored of these points.

    falsified: bool [B]. The result is by the numbers of the examples.
    """
    stored, points = dict[int, Tensor](), dict[int, Tensor]()
    images, eps = batch.images.cpu() if falsified.any() else batch.images, answers.evaluation.eps
    is_same = eps == batch.evaluation.eps
    for example in map(int, np.flatnonzero(falsified)):
        with suppress(KeyError, ValueError):  # ValueError: it is of another type or size
            stored[example] = answers.counterexamples[str(batch.first + example)]
            points[example] = point_of(stored[example], images[example], eps)

    def points_of(examples: Tensor) -> Tensor:
        return torch.stack([points[example] for example in examples.tolist()]).to(batch.images)

    def in_short(examples: Tensor) -> tuple[Tensor, list[Tensor]]:
        if is_same:
            forms = [stored[example] for example in examples.tolist()]
            return margins_at(batch.network, points_of(examples), batch.labels[examples]), forms
        margins, k = margins_as_stored(batch, examples, points_of(examples))
        return margins, [pack(each) for each in k.cpu()]

    def moved_inside(examples: Tensor) -> tuple[Tensor, list[Tensor]]:
        margins, inside = margins_inside(batch, examples, points_of(examples))
        return margins, [each.clone() for each in inside.cpu()]

    proved = dict[int, tuple[float, Tensor]]()
    short = [each for each in points if not is_same or stored[each].dtype != torch.float64]
    for attempt, numbers in ((in_short, short), (moved_inside, [*points])):
        left = torch.tensor([each for each in numbers if each not in proved], dtype=torch.long).to(batch.labels.device)
        for examples, (margins, forms) in batch.ledger.answers(stage, attempt, left):
            rows = zip(examples.tolist(), margins.tolist(), forms, strict=True)
            proved |= {example: (margin, form) for example, margin, form in rows if margin < 0}
    return proved


def find_contradictions(here: Evaluation, verdicts: pd.DataFrame, others: Sequence[Answers]) -> set[int]:
    """Return the images that one evaluation certifies at an eps at which another one falsifies them, or at a larger.

    verdicts: a row for each image.
    """
    found, mine = set[int](), verdicts.set_index(names.INDEX)
    for answers in others:
        theirs = answers.verdicts.reindex(mine.index)
        if answers.evaluation.eps >= here.eps:
            found |= set(mine.index[(theirs[names.VERDICT] == names.CERTIFIED) & _is_wrong(mine)])
        if answers.evaluation.eps <= here.eps:
            found |= set(mine.index[_is_wrong(theirs) & (mine[names.VERDICT] == names.CERTIFIED)])
    return found


def _is_wrong(verdicts: pd.DataFrame) -> "pd.Series[bool]":
    """Return which images the network errs on; without a prediction nothing is known of them."""
    wrong = verdicts[names.VERDICT].isin([names.MISCLASSIFIED, names.FALSIFIED])
    return wrong & (verdicts[names.PREDICTION] != names.NO_PREDICTION)


def _tensors(path: Path) -> dict[str, Tensor]:
    with suppress(DamagedFileError):
        return parse_file(path, load)
    return {}
