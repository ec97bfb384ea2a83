"""Lies in tables of verdicts."""

from typing import Any

import numpy as np
import pandas as pd
from lies_in_folders import IMAGES, RECORDS, Lie
from lying_sweep import Change, change_row, change_table

from harness.checker.proofs.example import LINEAR, Proof
from harness.common import names

INDEX, LABELS, VALUES = (f"{RECORDS}.check_{name}" for name in ("index", "labels", "values"))
COLUMNS = "harness.storage.folder.check_columns"
PREDICTIONS, SIGNS = f"{RECORDS}.check_predictions", f"{RECORDS}.check_signs"
PREDICTED, IBP, IBP_MARGIN = (f"{IMAGES}.check_{name}" for name in ("prediction", "ibp", "ibp_margin"))
OTHER_MARGINS, PROVE = f"{IMAGES}.check_other_margins", f"{IMAGES}.prove"
CERTIFICATES = "harness.checker.verdicts.check_certificates"
EXTRA, READ = "harness.checker.verdicts.check_counterexamples", f"{RECORDS}.columns_of"
COLUMNS_OF_ALL = (names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE, names.ATTACK_MARGIN)
NOT_PROVED_BY_IBP = "certified by ibp, but the smallest margin is at least -"
NOT_CONFIRMED = "certified by alpha-crown, not confirmed: "


def proved(*_args: Any) -> Proof:
    return Proof(LINEAR, 1.0)


def cast(name: str, kind: Any) -> Change:
    """Store a column in another type."""
    return change_table(lambda table: table.astype({name: kind}))


def swap_labels(table: pd.DataFrame) -> None:
    table.loc[[0, 2, 3], names.LABEL] = table.loc[[2, 3, 0], names.LABEL].to_numpy()


def fail_misclassified(table: pd.DataFrame) -> None:
    """Leave the first misclassified image out of the standard and the attack error."""
    row = table.index[table[names.VERDICT] == names.MISCLASSIFIED][0]
    table.loc[row, [names.VERDICT, names.STAGE, names.PREDICTION]] = [names.FAILED, "none", -1]
    table.loc[row, [column for column in table if "margin" in column]] = np.nan


LIES = {
    # Verdicts.
    "unknown called ibp": Lie(change_row(names.UNKNOWN, verdict=names.CERTIFIED, stage="ibp", margin_ibp=1.0),
        NOT_PROVED_BY_IBP, IBP),
    "unknown called crown-ibp": Lie(
        change_row(names.UNKNOWN, verdict=names.CERTIFIED, stage="crown-ibp", **{"margin_crown__ibp": 0.1}),
        "certified by crown-ibp, not confirmed: the lower bound of a margin is -", PROVE, accept=proved),
    "falsified called alpha-crown": Lie(
        change_row(names.FALSIFIED, verdict=names.CERTIFIED, stage="alpha-crown", attack_margin=0.1,
            **{"margin_alpha__crown": 0.1}),
        NOT_CONFIRMED, PROVE, accept=proved),
    "wrong called right": Lie(change_row(names.MISCLASSIFIED, verdict=names.CERTIFIED, stage="ibp", margin_ibp=1.0),
        "recorded as right, but at the image", PREDICTED),
    "right called wrong": Lie(
        change_row(names.CERTIFIED, verdict=names.MISCLASSIFIED, stage="clean", margin_ibp=-1.0, prediction=9),
        "recorded as wrong, but at the image", PREDICTED),
    "right called wrong, with its prediction": Lie(
        change_row(names.CERTIFIED, verdict=names.MISCLASSIFIED, stage="clean", margin_ibp=-1.0),
        "misclassified, but prediction ", PREDICTIONS),
    "certified with another prediction": Lie(change_row(names.CERTIFIED, prediction=9),
        "certified by ibp, but prediction 9 and label ", PREDICTIONS),
    "unknown without a prediction": Lie(change_row(names.UNKNOWN, prediction=-1),
        "unknown, but prediction -1 and label ", PREDICTIONS),
    "falsified called unknown": Lie(change_row(names.FALSIFIED, verdict=names.UNKNOWN, stage="none"),
        "unknown, but attack_margin is recorded as -", SIGNS),
    "falsified called unknown, its margin hidden": Lie(
        change_row(names.FALSIFIED, verdict=names.UNKNOWN, stage="none", attack_margin=0.5),
        "counterexamples.safetensors has a counterexample, but the verdict is unknown", EXTRA),
    "no verdict": Lie(change_row(names.FALSIFIED, verdict="robust"), "'robust' is not a verdict", VALUES),
    "an empty verdict": Lie(change_row(names.UNKNOWN, verdict=None), "is not a verdict", VALUES),
    "certified by an earlier stage, which stores no certificate": Lie(
        change_row("alpha-crown", stage="crown-ibp", **{"margin_crown__ibp": 0.1, "margin_alpha__crown": np.nan}),
        "certificates.safetensors has a certificate, but the verdict is certified by crown-ibp", CERTIFICATES),
    "another stage": Lie(change_row("ibp", stage="milp"), "certified by 'milp', expected ibp or", VALUES),
    "misclassified by a later stage": Lie(change_row(names.MISCLASSIFIED, stage="crown-ibp"),
        "misclassified by 'crown-ibp', expected clean", VALUES),
    "wrong called failed": Lie(change_table(fail_misclassified),
        "no prediction is recorded, but the prediction is not proved to be", PREDICTED),
    "a later stage called ibp": Lie(change_row("crown-ibp", stage="ibp", margin_ibp=0.1, margin_crown__ibp=np.nan),
        NOT_PROVED_BY_IBP, IBP),
    # Rows and columns.
    "labels swapped": Lie(change_table(swap_labels), "image 2: label ", LABELS),
    "images left out": Lie(change_table(lambda table: table[:20]), "verdicts of 20 examples; there are 24", INDEX),
    "a row twice": Lie(change_table(lambda table: pd.concat([table, table[:1]])),
        "verdicts of 25 examples; there are 24", INDEX),
    "an image instead of another": Lie(change_table(lambda table: table.iloc[[0, 0, *range(2, 24)]]),
        "image 1: expected in row 1, found image 0", INDEX),
    "rows in another order": Lie(change_table(lambda table: table[::-1]), "image 0: expected in row 0, found image 23",
        INDEX),
    "no rows": Lie(change_table(lambda table: table[:0]), "verdicts of 0 examples; there are 24", INDEX),
    "indices as float64": Lie(cast(names.INDEX, float), "verdicts.parquet: index is float64, expected int64", COLUMNS),
    "labels as int8": Lie(cast(names.LABEL, "int8"), "verdicts.parquet: label is int8, expected int64", COLUMNS),
    "predictions as truths": Lie(cast(names.PREDICTION, bool), "prediction is bool, expected int64", COLUMNS),
    "verdicts as bytes": Lie(
        change_table(lambda table: table.assign(verdict=[text.encode() for text in table.verdict])),
        "verdict is object, expected text", COLUMNS),
    "stages as numbers": Lie(change_table(lambda table: table.assign(stage=0.0)), "stage is float64, expected text",
        COLUMNS),
    "margins as float32": Lie(cast("margin_ibp", "float32"), "margin_ibp is float32, expected float64", COLUMNS),
    "margins as text": Lie(cast("margin_ibp", str), "margin_ibp is ", COLUMNS),
    "margins that are missing": Lie(change_table(lambda table: table.drop(columns="margin_alpha-crown")),
        "verdicts.parquet: margin_alpha-crown is missing", READ,
        accept=lambda stages: [*COLUMNS_OF_ALL, names.margin_column("ibp")]),
    # Margins.
    "larger margins": Lie(
        change_table(lambda table: table.assign(margin_ibp=table.margin_ibp + 1e-2 * np.sign(table.margin_ibp))),
        "ibp's margin is recorded as", IBP_MARGIN),
    "a margin above 0 of an unknown image": Lie(change_row(names.UNKNOWN, margin_ibp=3e-5),
        "unknown, but margin_ibp is recorded as 3e-05", SIGNS),
    "a margin below 0 of a certified image": Lie(change_row("ibp", margin_ibp=-3e-5),
        "certified by ibp, but margin_ibp is recorded as -3e-05", SIGNS),
    "no margin of a certified image": Lie(change_row("ibp", margin_ibp=np.nan),
        "certified by ibp, but margin_ibp is recorded as nan", SIGNS),
    "certified by ibp called unknown": Lie(change_row("ibp", verdict=names.UNKNOWN, stage="none", margin_ibp=-np.inf),
        "ibp's margin is recorded as -inf, but the checker's is", IBP_MARGIN),
    "certified by ibp, credited to a later stage": Lie(
        change_row("ibp", stage="crown-ibp", margin_ibp=np.nan, **{"margin_crown__ibp": 0.1}),
        "ibp's margin is recorded as nan, but the checker's is", IBP_MARGIN),
    "an infinite margin": Lie(change_row("ibp", margin_ibp=np.inf),
        "ibp's margin is recorded as inf, but the checker's", IBP_MARGIN),
    "a later margin above 0 of an unknown image": Lie(change_row(names.UNKNOWN, **{"margin_crown__ibp": 0.3}),
        "unknown, but margin_crown-ibp is recorded as 0.3", SIGNS),
    "a later margin below 0 of a certified image": Lie(change_row("alpha-crown", **{"margin_alpha__crown": -0.3}),
        "certified by alpha-crown, but margin_alpha-crown is recorded as -0.3", SIGNS),
    "a later margin that no image has": Lie(change_row("alpha-crown", **{"margin_alpha__crown": 1e9}),
        "alpha-crown's margin is recorded as 1e+09", OTHER_MARGINS),
    "a negative attack margin of a certified image": Lie(change_row("ibp", attack_margin=-1.0),
        "certified by ibp, but attack_margin is recorded as -1", SIGNS),
}  # fmt: skip
