"""The final metrics and warnings of a trial, from its verdicts."""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from baselines.datasets import Dataset
from harness.common import names
from harness.common.terminal import with_plural
from harness.evaluation.verdicts import EvaluationResult

_COLLAPSED_SHARE = 0.99
_SHOWN = 5  # names of missing classes


def final_metrics(evaluation: EvaluationResult, stages: tuple[str, ...]) -> dict[str, float]:
    """Return errors in percent, widths and seconds, by the names in harness.common.names."""
    verdict, decided_by = evaluation.verdicts[names.VERDICT], evaluation.verdicts[names.STAGE]
    certified = verdict == names.CERTIFIED
    width = float(evaluation.verdicts[names.WIDTH].mean())
    return {
        names.STANDARD_ERROR: 100 * float((verdict == names.MISCLASSIFIED).mean()),
        names.ATTACK_ERROR: 100 * float(verdict.isin([names.MISCLASSIFIED, names.FALSIFIED]).mean()),
        names.CERTIFIED_ERROR: 100 * float((~certified).mean()),
        names.UNDECIDED_ERROR: 100 * float(verdict.isin(names.UNDECIDED).mean()),
        **{names.share_of(kind): 100 * float((verdict == kind).mean()) for kind in names.UNDECIDED},
        **{
            names.certified_error_after(stage): 100 * float((~(certified & decided_by.isin(stages[:number]))).mean())
            for number, stage in enumerate(stages, start=1)
        },
        **_counts_by_stage(evaluation.verdicts, stages),
        **{names.seconds_of(stage): seconds for stage, seconds in evaluation.seconds.items()},
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / evaluation.clean_spread if evaluation.clean_spread else math.inf,
        **evaluation.layers,
    }


def _counts_by_stage(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> dict[str, int]:
    """Return how many examples reached each stage, from the clean prediction on, and how many it decided."""
    by_stage = verdicts[names.STAGE].where(~verdicts[names.VERDICT].isin(names.UNDECIDED)).value_counts()
    undecided = len(verdicts)
    counts: dict[str, int] = {}
    for stage in (names.CLEAN, names.ATTACK, *stages):
        decided = int(by_stage.get(stage, 0))
        counts |= {names.examples_at(stage): undecided, names.decided_by(stage): decided}
        undecided -= decided
    return counts


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics as floats, with None for infinities and NaN, which JSON does not have."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def missing_classes(labels: Iterable[int], kind: str, entry: Dataset) -> list[str]:
    """Return a warning if images of some classes are missing. kind: of the images, for the text."""
    labels = list(labels)
    missing = sorted(set(range(entry.classes)) - set(labels))
    if not missing:
        return []
    shown = ", ".join(entry.class_names[label] if entry.class_names else str(label) for label in missing[:_SHOWN])
    more = ", ..." if len(missing) > _SHOWN else ""
    images = with_plural(len(labels), "image")
    return [f"{kind}: {len(missing)} of {entry.classes} classes are missing in {images}: {shown}{more}"]


def warnings(evaluation: EvaluationResult, metrics: dict[str, float | None], entry: Dataset) -> list[str]:
    """Return what a reader must know: missing classes, a collapsed network, what failed, has no proof or is infinite.

    entry: of the data set.
    """
    without = evaluation.verdicts[names.PREDICTION] == names.NO_PREDICTION
    shares = evaluation.verdicts.loc[~without, names.PREDICTION].value_counts(normalize=True)
    missing = [name for name, value in metrics.items() if value is None]
    messages = missing_classes(evaluation.verdicts[names.LABEL], "evaluated images", entry)
    if without.any():
        messages.append(_describe_without_prediction(evaluation.verdicts[without]))
    if len(shares) and shares.iloc[0] >= _COLLAPSED_SHARE:
        messages.append(f"collapsed: predicts class {shares.index[0]} for {100 * shares.iloc[0]:.1f} % of the images")
    failed = evaluation.verdicts[evaluation.verdicts[names.VERDICT].isin([names.OUT_OF_MEMORY, names.FAILED])]
    for (verdict, stage), part in failed.groupby([names.VERDICT, names.STAGE]):
        index, reason = part[[names.INDEX, names.REASON]].iloc[0]
        example = f"{index} ({reason})" if reason else index
        messages.append(f"{verdict} in {stage}: {with_plural(len(part), 'example')}, such as {example}")
    uncertain = evaluation.verdicts.loc[evaluation.verdicts[names.REASON] == names.NO_CERTIFICATE, names.INDEX]
    if len(uncertain):
        examples = f"{with_plural(len(uncertain), 'certified example')}, such as {uncertain.iloc[0]}"
        messages.append(f"no certificate: {examples}; harness.recheck may not confirm them")
    if missing:
        messages.append(f"not finite: {', '.join(missing)}")
    return messages


def _describe_without_prediction(verdicts: pd.DataFrame) -> str:
    """Return a line on the images without a prediction: how many there are, and why."""
    causes = verdicts[names.REASON].str.partition(":")[0].value_counts()
    counts = ", ".join(f"{count} {cause}" for cause, count in causes.items())
    index, reason = verdicts[[names.INDEX, names.REASON]].iloc[0]
    images = with_plural(len(verdicts), "image")
    return f"no prediction of {images} ({counts}), such as {index} ({reason}): counted as errors"
