"""Check the table of verdicts against the data, and errors against verdicts. Each check returns a line a problem."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from harness.common import names
from harness.data import Split

COLUMNS = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE]  # that are checked


def check_index(verdicts: pd.DataFrame, test: Split) -> list[str]:
    """Check that there is a row for each image, in order."""
    if len(verdicts) != len(test):
        return [f"verdicts of {len(verdicts)} examples; there are {len(test)}"]
    index = verdicts[names.INDEX].to_numpy()
    wrong = np.flatnonzero(index != np.arange(len(test)))
    return [f"image {row}: expected in row {row}, found image {index[row]}" for row in wrong]


def check_labels(verdicts: pd.DataFrame, test: Split) -> list[str]:
    """Check the labels against the data's."""
    recorded, labels = verdicts[names.LABEL].to_numpy(), test.labels.numpy()
    wrong = np.flatnonzero(recorded != labels)
    return [f"image {index}: label {recorded[index]}, the data has {labels[index]}" for index in wrong]


def check_values(verdicts: pd.DataFrame, stages: Sequence[str]) -> list[str]:
    """Check that each verdict is a known one, reached by a stage that can reach it."""
    possible = {
        names.MISCLASSIFIED: [names.CLEAN],
        names.FALSIFIED: [names.ATTACK, *stages],
        names.CERTIFIED: [*stages],
    }
    problems = []
    for index, verdict, stage in zip(verdicts.index, verdicts[names.VERDICT], verdicts[names.STAGE], strict=True):
        if verdict not in names.VERDICTS:
            problems.append(f"image {index}: {verdict!r} is not a verdict")
        elif verdict in possible and stage not in possible[verdict]:
            problems.append(f"image {index}: {verdict} by {stage!r}, expected {' or '.join(possible[verdict])}")
    return problems


def describe(row: Mapping[str, object]) -> str:
    """Return a verdict with the stage that certified."""
    verdict = row[names.VERDICT]
    return f"{verdict} by {row[names.STAGE]}" if verdict == names.CERTIFIED else str(verdict)


def check_metrics(verdicts: pd.DataFrame, metrics: Mapping[str, float | None], stages: Sequence[str]) -> list[str]:
    """Check the errors and the counts of images that follow from the verdicts."""
    required, optional = _errors(verdicts, stages), _shares_and_counts(verdicts, stages)  # which older results lack
    expected = required | {name: value for name, value in optional.items() if name in metrics}
    problems = []
    for name, value in expected.items():
        recorded = metrics.get(name)
        if recorded is None or not abs(recorded - value) <= 1e-6:
            problems.append(f"{name}: recorded {recorded}, by the verdicts {value}")
    return problems


def _errors(verdicts: pd.DataFrame, stages: Sequence[str]) -> dict[str, float]:
    """Return the errors in percent."""
    verdict, stage = verdicts[names.VERDICT], verdicts[names.STAGE]
    certified = verdict == names.CERTIFIED
    masks = {
        names.STANDARD_ERROR: verdict == names.MISCLASSIFIED,
        names.ATTACK_ERROR: verdict.isin([names.MISCLASSIFIED, names.FALSIFIED]),
        names.CERTIFIED_ERROR: ~certified,
        **{
            names.certified_error_after(last): ~(certified & stage.isin(stages[:number]))
            for number, last in enumerate(stages, start=1)
        },
    }
    return {name: 100 * float(mask.mean()) for name, mask in masks.items()}


def _shares_and_counts(verdicts: pd.DataFrame, stages: Sequence[str]) -> dict[str, float]:
    """Return the percentages of undecided images, and the numbers of images that reached and left each stage."""
    verdict = verdicts[names.VERDICT]
    undecided = verdict.isin(names.UNDECIDED)
    kinds = {names.UNDECIDED_ERROR: undecided, **{names.share_of(kind): verdict == kind for kind in names.UNDECIDED}}
    return {name: 100 * float(mask.mean()) for name, mask in kinds.items()} | dict(_counts(verdicts, undecided, stages))


def _counts(verdicts: pd.DataFrame, undecided: pd.Series, stages: Sequence[str]) -> Iterator[tuple[str, float]]:
    left = len(verdicts)
    for stage in (names.CLEAN, names.ATTACK, *stages):
        decided = int(((verdicts[names.STAGE] == stage) & ~undecided).sum())
        yield names.examples_at(stage), left
        yield names.decided_by(stage), decided
        left -= decided
