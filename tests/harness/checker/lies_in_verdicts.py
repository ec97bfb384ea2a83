"""Lies in tables of verdicts."""

from typing import Any

import numpy as np
import pandas as pd
from lies_in_folders import Lie
from lying_sweep import Change, change_row, change_table

from harness.common import names

NOT_PROVED_BY_IBP = "certified by ibp, but the smallest margin is at least -"
NOT_CONFIRMED = "certified by alpha-crown, not confirmed: "


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
        NOT_PROVED_BY_IBP),
    "unknown called crown-ibp": Lie(
        change_row(names.UNKNOWN, verdict=names.CERTIFIED, stage="crown-ibp", **{"margin_crown__ibp": 0.1}),
        "certified by crown-ibp, not confirmed: the lower bound of a margin is -"),
    "falsified called alpha-crown": Lie(
        change_row(names.FALSIFIED, verdict=names.CERTIFIED, stage="alpha-crown", attack_margin=0.1,
            **{"margin_alpha__crown": 0.1}), NOT_CONFIRMED),
    "wrong called right": Lie(change_row(names.MISCLASSIFIED, verdict=names.CERTIFIED, stage="ibp", margin_ibp=1.0),
        "recorded as right, but at the image"),
    "right called wrong": Lie(
        change_row(names.CERTIFIED, verdict=names.MISCLASSIFIED, stage="clean", margin_ibp=-1.0, prediction=9),
        "recorded as wrong, but at the image"),
    "wrong called failed": Lie(change_table(fail_misclassified), "recorded as right, but at the image"),
    "no verdict": Lie(change_row(names.FALSIFIED, verdict="robust"), "'robust' is not a verdict"),
    "misclassified by a later stage": Lie(change_row(names.MISCLASSIFIED, stage="crown-ibp"),
        "misclassified by 'crown-ibp', expected clean"),
    # Rows and columns.
    "labels swapped": Lie(change_table(swap_labels), "image 2: label "),
    "images left out": Lie(change_table(lambda table: table[:20]), "verdicts of 20 examples; there are 24"),
    "an image instead of another": Lie(change_table(lambda table: table.iloc[[0, 0, *range(2, 24)]]),
        "image 1: expected in row 1, found image 0"),
    "indices as float64": Lie(cast(names.INDEX, float), "verdicts.parquet: index is float64, expected int64"),
    "stages as numbers": Lie(change_table(lambda table: table.assign(stage=0.0)), "stage is float64, expected text"),
}  # fmt: skip
