"""The final metrics of a trial, from its verdicts."""

import math

import pandas as pd

from harness.evaluation.verdicts import Judgement
from harness.storage import names

_COLLAPSED = 0.99


def final_metrics(judgement: Judgement, stages: tuple[str, ...]) -> dict[str, float]:
    """Errors in percent and widths, by the names in harness.storage.names; infinite where nothing finite was bounded.

    Raises AssertionError unless standard <= attack <= certified error.
    """
    verdict = judgement.verdicts[names.VERDICT]
    width = float(judgement.verdicts[names.WIDTH].mean())
    errors = {
        names.STANDARD_ERROR: 100 * float((verdict == names.MISCLASSIFIED).mean()),
        names.ATTACK_ERROR: 100 * float(verdict.isin([names.MISCLASSIFIED, names.FALSIFIED]).mean()),
        names.CERTIFIED_ERROR: 100 * float((verdict != names.CERTIFIED).mean()),
    }
    if list(errors.values()) != sorted(errors.values()):
        raise AssertionError(f"errors out of order: {errors}")
    return {
        **errors,
        **_errors_by_stage(judgement.verdicts, stages),
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / judgement.clean_spread if judgement.clean_spread else math.inf,
        **{names.layer_width(layer): width for layer, width in judgement.layers.items()},
    }


def _errors_by_stage(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> dict[str, float]:
    """The certified error that each stage and those before it leave."""
    certified = verdicts[names.VERDICT] == names.CERTIFIED
    return {
        names.certified_by(stage): 100 * float((~(certified & verdicts[names.STAGE].isin(stages[:number]))).mean())
        for number, stage in enumerate(stages, start=1)
    }


def warnings(judgement: Judgement, metrics: dict[str, float | None]) -> list[str]:
    """What a reader of the table must know: a network that predicts one class, metrics that are not finite (None)."""
    shares = judgement.verdicts[names.PREDICTION].value_counts(normalize=True)
    missing = [name for name, value in metrics.items() if value is None]
    told = []
    if shares.iloc[0] >= _COLLAPSED:
        told.append(f"collapsed: predicts class {shares.index[0]} for {100 * shares.iloc[0]:.1f} % of the images")
    if missing:
        told.append(f"not finite: {', '.join(missing)}")
    return told
