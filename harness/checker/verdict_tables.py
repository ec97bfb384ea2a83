"""Check the table of verdicts against the data, its own columns against each other, and errors against verdicts.

Each check returns a line for each problem. A comparison with NaN never passes.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from harness.common import names
from harness.data import Split

_FAMILIES = (
    names.layer_inactive(""), names.layer_unstable(""), names.examples_at(""), names.decided_by(""),
    names.seconds_of(""),
)  # fmt: skip
_SHARES = (
    names.UNDECIDED_ERROR, names.layer_inactive(""), names.layer_unstable(""), names.NOT_CONVERGED,
    names.STANDARD_ERROR_W0, names.CERTIFIED_ERROR_W0,
)  # fmt: skip
_WITHOUT_PREDICTION = (names.OUT_OF_MEMORY, names.FAILED)


def columns_of(stages: Sequence[str]) -> list[str]:
    """Return the columns that are checked."""
    of_all = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE, names.ATTACK_MARGIN]
    return [*of_all, *(names.margin_column(stage) for stage in stages)]


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


def check_predictions(verdicts: pd.DataFrame) -> list[str]:
    """Check that the prediction differs from the label of misclassified images, and of no others."""
    is_right = verdicts[names.PREDICTION] == verdicts[names.LABEL]
    has_none = (verdicts[names.PREDICTION] == names.NO_PREDICTION) & verdicts[names.VERDICT].isin(_WITHOUT_PREDICTION)
    wrong = verdicts[(is_right == (verdicts[names.VERDICT] == names.MISCLASSIFIED)) & ~has_none]
    return [
        f"image {index}: {describe(row)}, but prediction {row[names.PREDICTION]} and label {row[names.LABEL]}"
        for index, row in wrong.iterrows()
    ]


def check_signs(verdicts: pd.DataFrame, stages: Sequence[str]) -> list[str]:
    """Check the signs of margins.

    A stage's margin is above 0 where that stage certified, nowhere else. The attack's is below 0 where the image is
    falsified, nowhere else.
    """
    verdict, stage = verdicts[names.VERDICT], verdicts[names.STAGE]
    signs = {names.ATTACK_MARGIN: (verdicts[names.ATTACK_MARGIN] < 0) == (verdict == names.FALSIFIED)}
    for name in stages:
        column = names.margin_column(name)
        signs[column] = (verdicts[column] > 0) == ((verdict == names.CERTIFIED) & (stage == name))
    return [
        f"image {index}: {describe(row)}, but {column} is recorded as {row[column]:.6g}"
        for column, holds in signs.items()
        for index, row in verdicts[~holds].iterrows()
    ]


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


def check_other_stages(metrics: Mapping[str, float | None], stages: Sequence[str]) -> list[str]:
    """Check that there are no errors and counts of stages that the trial does not have."""
    ran = {names.certified_error_after(""): stages} | dict.fromkeys(
        (names.examples_at(""), names.decided_by("")), (names.CLEAN, names.ATTACK, *stages)
    )
    return [
        f"{name}: recorded, but {name.removeprefix(prefix)} is not a stage of this trial"
        for prefix, own in ran.items()
        for name in metrics
        if name.startswith(prefix) and name.removeprefix(prefix) not in own
    ]


def check_ranges(metrics: Mapping[str, float | None]) -> list[str]:
    """Check that no metric is below 0, and no percentage missing or above 100: not all are computed again."""
    problems = []
    for name, value in metrics.items():
        is_share = name.startswith(_SHARES)
        is_in_range = not is_share if value is None else 0 <= value <= (100 if is_share else np.inf)
        if not is_in_range:
            problems.append(f"{name}: recorded {value}, expected {'0 to 100' if is_share else 'at least 0'}")
    return problems


def check_names(metrics: Mapping[str, float | None]) -> list[str]:
    """Check that all metrics have names that evaluations write."""
    known = {value for value in vars(names).values() if isinstance(value, str)}
    known |= {names.share_of(verdict) for verdict in names.UNDECIDED}
    families = (names.certified_error_after(""), names.layer_width(""), *_FAMILIES)
    others = [name for name in metrics if name not in known and not name.startswith(families)]
    return [f"{name!r}: recorded, but no evaluation has such a metric" for name in others]


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
