"""Prove the verdicts in one folder again, a trial's or a certification's."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from harness.checker import folders, verdict_tables
from harness.checker.images import (
    Checker,
    check_contraction,
    load_checked_network,
)
from harness.checker.proofs.certificates import read_tensors, split_by_example
from harness.common import names
from harness.config.plugins import load_for
from harness.config.trial import Trial
from harness.data import Data, Split, fingerprint, load
from harness.data.own import require_near
from harness.machine.environment import data_directory
from harness.own_data import OwnData
from harness.storage import certification, folder
from harness.storage.parquet import read_verdicts


@dataclass
class RecheckResult:
    """The result for one folder of verdicts.

    images, of: the number of checked verdicts, and of all verdicts.
    problems: what is wrong or not confirmed, a line each.
    recorded, confirmed: the certified errors of the checked verdicts, in percent; NaN if none was checked.
    proofs: the number of certified examples by stage and by what proved them, "" for not confirmed.
    has_weights: whether the weights are stored.
    """

    images: int
    of: int
    problems: list[str]
    recorded: float = np.nan
    confirmed: float = np.nan
    proofs: Counter[tuple[str, str]] = field(default_factory=Counter)
    has_weights: bool = True

    @property
    def is_confirmed(self) -> bool:
        """True if every checked verdict was confirmed."""
        return not self.problems

    @property
    def is_complete(self) -> bool:
        """True if every verdict was checked."""
        return self.images == self.of


def load_hashed(source: str | OwnData, data_dir: str | None = None) -> Data:
    """Return a data set with the fingerprint of the tensors that were loaded, whatever its cache records.

    Raises InputError as `load` does, and for own data that results of others may not name or would download.
    """
    if isinstance(source, OwnData):
        require_near(source, data_directory(data_dir))
    data = load(source, data_dir, writes=not isinstance(source, OwnData))
    return replace(data, fingerprint=fingerprint(data.train, data.test))


def recheck(
    verdict_dir: Path,
    load_data: Callable[[str | OwnData], Data] = load_hashed,
    limit: int | None = None,
    trusted: Collection[str] = (),
) -> RecheckResult:
    """Recheck the verdicts of a trial or certification in its folder.

    Args:
        load_data: returns a data set as `harness.data.load`, with the fingerprint of its tensors.
        limit: how many verdicts to check, from the first; default: all.
        trusted: the plugins that may be imported.

    Raises:
        InputError: for an unfinished trial, unreadable files, missing data, and plugins that differ.
    """
    trial, result = folders.read_finished(verdict_dir)
    config = trial.config
    if problems := folders.check_certification(verdict_dir, trial) or folders.check_plugins(config, trusted):
        return RecheckResult(0, 0, problems)
    load_for(config)
    data = load_data(config.data_source)
    if problems := check_data(data, trial.fingerprint):
        return RecheckResult(0, 0, problems)
    test = evaluated_images(verdict_dir, config, data)
    verdicts = read_verdicts(verdict_dir, verdict_tables.COLUMNS)
    if problems := _check_records(verdicts, test, config.evaluation.stages, result.metrics):
        return RecheckResult(0, len(test), problems)
    if problems := folders.check_weights(verdict_dir):
        return RecheckResult(0, len(test), problems, has_weights=False)
    path = certification.trial_of(verdict_dir) / folder.WEIGHTS
    network = load_checked_network(path, config, test)
    counterexamples = read_tensors(verdict_dir / folder.COUNTEREXAMPLES)
    certificates = split_by_example(read_tensors(verdict_dir / folder.CERTIFICATES))
    if problems := check_contraction(network, test.images.shape[1:]):
        return RecheckResult(0, len(test), problems)
    checker = Checker(network, config.eps, counterexamples, certificates)
    checked = verdicts[:limit]
    problems, proofs = checker.check_all(test, checked)
    recorded = 100 * float((checked[names.VERDICT] != names.CERTIFIED).mean())
    confirmed = sum(count for (_, proved_by), count in proofs.items() if proved_by)
    error = 100 * ((len(checked) - confirmed) / len(checked))  # rounded as `recorded` is
    return RecheckResult(len(checked), len(test), problems, recorded, error, proofs)


def check_data(data: Data, expected: str) -> list[str]:
    """Check that the data have the trial's fingerprint."""
    if data.fingerprint == expected:
        return []
    return [f"data: the fingerprint is {data.fingerprint}, expected the trial's, {expected}"]


def evaluated_images(verdict_dir: Path, config: Trial, data: Data) -> Split:
    """Return the images of all verdicts of a trial or certification."""
    is_certification = certification.is_certification(verdict_dir)
    count = config.evaluation.test_images if is_certification else config.trial_image_count
    return data.evaluated_images(config.validation_images, count)


def _check_records(
    verdicts: pd.DataFrame, test: Split, stages: Sequence[str], metrics: Mapping[str, float | None]
) -> list[str]:
    """Return the problems of the table of verdicts, and of the metrics that follow from it."""
    if problems := verdict_tables.check_index(verdicts, test):
        return problems
    return [
        *verdict_tables.check_labels(verdicts, test),
        *verdict_tables.check_values(verdicts, stages),
        *(f"{folder.RESULT}: {problem}" for problem in verdict_tables.check_metrics(verdicts, metrics, stages)),
    ]
