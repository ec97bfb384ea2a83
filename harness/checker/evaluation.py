"""Prove the verdicts of one evaluation again, in its folder."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from harness.checker import folders, verdict_table
from harness.checker.images import Checker, check_contraction, load_checked_network
from harness.checker.proofs.certificates import read_tensors, split_by_example
from harness.common import names
from harness.config.own_data import OwnData
from harness.config.plugins import load_for
from harness.data import Data, Split, fingerprint, load
from harness.data.own import require_near
from harness.evaluation.ranges import evaluated_images
from harness.machine.environment import data_directory
from harness.storage import folder
from harness.storage.parquet import read_verdicts


@dataclass
class RecheckResult:
    """The result for one evaluation.

    images, of: the number of checked verdicts, and of all verdicts.
    problems: what is wrong or not confirmed, a line each.
    recorded, confirmed: the certified errors of the checked verdicts, in percent; NaN if none was checked.
    proofs: the number of certified examples by stage and by what proved them, "" for not confirmed.
    has_weights: whether the weights are stored.
    files: a digest of the files that were checked; "" if none were.
    """

    images: int
    of: int
    problems: list[str]
    recorded: float = np.nan
    confirmed: float = np.nan
    proofs: Counter[tuple[str, str]] = field(default_factory=Counter)
    has_weights: bool = True
    files: str = ""

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
    evaluation_dir: Path,
    load_data: Callable[[str | OwnData], Data] = load_hashed,
    stop: int | None = None,
    trusted: Collection[str] = (),
    first: int = 0,
) -> RecheckResult:
    """Recheck the verdicts of an evaluation in its folder.

    Args:
        load_data: returns a data set as `harness.data.load`, with the fingerprint of its tensors.
        first, stop: check the verdicts from the first one to before the other; default: all.
        trusted: the plugins that may be imported.

    Raises:
        InputError: for what is unfinished, unreadable files, missing data, and plugins that differ.
    """
    state = folders.read_finished(evaluation_dir)
    assert state.training is not None and state.evaluation is not None and state.result is not None
    config, evaluation = state.training.config, state.evaluation.config
    if problems := folders.check_plugins(config, trusted):
        return RecheckResult(0, 0, problems)
    load_for(config)
    data = load_data(config.data_source)
    if problems := check_data(data, state.training.fingerprint):
        return RecheckResult(0, 0, problems)
    test = evaluated_images(data, config.validation_images, evaluation)
    verdicts = read_verdicts(evaluation_dir, verdict_table.COLUMNS)
    if problems := _check_records(verdicts, test, evaluation.stages, state.result.metrics):
        return RecheckResult(0, len(test), problems)
    path = folder.network_of(evaluation_dir) / folder.WEIGHTS
    if problems := folders.check_weights(evaluation_dir, state.result.weights):
        return RecheckResult(0, len(test), problems, has_weights=path.is_file())
    network = load_checked_network(path, config, test)
    counterexamples = read_tensors(evaluation_dir / folder.COUNTEREXAMPLES)
    certificates = split_by_example(read_tensors(evaluation_dir / folder.CERTIFICATES))
    if problems := check_contraction(network, test.images.shape[1:]):
        return RecheckResult(0, len(test), problems)
    checker = Checker(network, evaluation.eps, counterexamples, certificates)
    checked = verdicts[first:stop]
    problems, proofs = checker.check_all(test, checked)
    recorded = 100 * float((checked[names.VERDICT] != names.CERTIFIED).mean())
    confirmed = sum(count for (_, proved_by), count in proofs.items() if proved_by)
    error = 100 * ((len(checked) - confirmed) / len(checked))  # rounded as `recorded` is
    files = folders.digest_files(evaluation_dir)
    return RecheckResult(len(checked), len(test), problems, recorded, error, proofs, files=files)


def check_data(data: Data, expected: str) -> list[str]:
    """Check that the data have the network's fingerprint."""
    if data.fingerprint == expected:
        return []
    return [f"data: the fingerprint is {data.fingerprint}, expected the network's, {expected}"]


def _check_records(
    verdicts: pd.DataFrame, test: Split, stages: Sequence[str], metrics: Mapping[str, float | None]
) -> list[str]:
    """Return the problems of the table of verdicts, and of the metrics that follow from it."""
    if problems := verdict_table.check_index(verdicts, test):
        return problems
    return [
        *verdict_table.check_labels(verdicts, test),
        *verdict_table.check_values(verdicts, stages),
        *(f"{folder.RESULT}: {problem}" for problem in verdict_table.check_metrics(verdicts, metrics, stages)),
    ]
