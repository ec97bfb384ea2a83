"""The final metrics of a trial, from its verdicts."""

import math
from collections.abc import Mapping

import pandas as pd

from harness.evaluation.verdicts import ATTACK, CLEAN, Judgement
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
        names.ATTACK_ERROR: 100 * float(verdict.isin([names.MISCLASSIFIED, names.ATTACKED]).mean()),
        names.CERTIFIED_ERROR: 100 * float((verdict != names.CERTIFIED).mean()),
    }
    if list(errors.values()) != sorted(errors.values()):
        raise AssertionError(f"errors out of order: {errors}")
    return {
        **errors,
        names.OPEN_ERROR: 100 * float(verdict.isin(names.OPEN).mean()),
        **{names.share_of(kind): 100 * float((verdict == kind).mean()) for kind in names.OPEN},
        **_errors_by_stage(judgement.verdicts, stages),
        **stage_counts(judgement.verdicts, stages),
        **{names.seconds_of(stage): seconds for stage, seconds in judgement.seconds.items()},
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / judgement.clean_spread if judgement.clean_spread else math.inf,
        **judgement.layers,
    }


def _errors_by_stage(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> dict[str, float]:
    """The certified error that each stage and those before it leave."""
    certified = verdicts[names.VERDICT] == names.CERTIFIED
    return {
        names.certified_by(stage): 100 * float((~(certified & verdicts[names.STAGE].isin(stages[:number]))).mean())
        for number, stage in enumerate(stages, start=1)
    }


def stage_counts(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> dict[str, int]:
    """How many examples were open when each stage's turn came, and how many it decided; those before the verifier's
    too."""
    by_stage = verdicts[names.STAGE].where(~verdicts[names.VERDICT].isin(names.OPEN)).value_counts()
    left = len(verdicts)
    counts: dict[str, int] = {}
    for stage in (CLEAN, ATTACK, *stages):
        decided = int(by_stage.get(stage, 0))
        counts |= {names.examples_at(stage): left, names.decided_by(stage): decided}
        left -= decided
    return counts


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as result.json holds them, which knows neither infinities nor NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def warnings(judgement: Judgement, metrics: dict[str, float | None]) -> list[str]:
    """What a reader of the table must know: a network that predicts one class, examples that a stage could not be asked
    about, metrics that are not finite (None)."""
    shares = judgement.verdicts[names.PREDICTION].value_counts(normalize=True)
    missing = [name for name, value in metrics.items() if value is None]
    told = []
    if shares.iloc[0] >= _COLLAPSED:
        told.append(f"collapsed: predicts class {shares.index[0]} for {100 * shares.iloc[0]:.1f} % of the images")
    ended = judgement.verdicts[judgement.verdicts[names.VERDICT].isin([names.OUT_OF_MEMORY, names.FAILED])]
    for (verdict, stage), part in ended.groupby([names.VERDICT, names.STAGE]):
        told.append(f"{verdict} in {stage}: {len(part)} examples, such as {_first(part)}")
    if missing:
        told.append(f"not finite: {', '.join(missing)}")
    return told


def _first(examples: pd.DataFrame) -> str:
    row = examples.iloc[0]
    return f"{row[names.INDEX]}" + (f" ({row[names.REASON]})" if row[names.REASON] else "")
