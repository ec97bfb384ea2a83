"""A part of a leaderboard: rows that can be compared, and how they are told in words."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS, Column, of_group, whole
from harness.analysis.trials import CHOSEN, LABEL
from harness.storage import names

FEWEST_SEEDS = 2
"""That a test over seeds needs."""


@dataclass(frozen=True)
class Section:
    """Rows of one data set, eps, profile and recipe version, judged by the same stages on the same images.

    Beside them are published ones, unless the recipe is stale.

    whole: whether all of it is of the size that published numbers are of: the full profile, width and data.
    notes: what to know before comparing the numbers.
    settings: the columns of `rows` that decide a row's numbers beside its label and width.
    """

    heading: str
    dataset: str
    eps: Fraction
    whole: bool
    stale: bool
    notes: list[str]
    rows: pd.DataFrame
    settings: list[str]

    @property
    def differing(self) -> list[str]:
        """The settings that not all rows share."""
        return self._not_shared(self.settings)

    def _not_shared(self, columns: list[str]) -> list[str]:
        own = self.rows[self.rows["source"].isna()]
        return [name for name in columns if own[name].nunique(dropna=False) > 1]

    @cached_property
    def own(self) -> pd.DataFrame:
        """The rows that are not published ones, each with its `label`."""
        return self.rows.assign(label=self.labels)[self.rows["source"].isna()]

    @cached_property
    def comparable(self) -> pd.DataFrame:
        """Those of `own` that comparisons are of, best first."""
        return self.own[~incomparable(self.own)]

    @cached_property
    def shown(self) -> pd.DataFrame:
        """The rows as text, as people see them; settings that all rows share are left out."""
        rows, own = self.rows, self.rows["source"].isna()
        ranked = own & rows[names.CERTIFIED_ERROR].notna()
        columns = {"#": ranked.cumsum().where(ranked)} | {name: rows[name] for name in [*LABEL, "width"]}
        columns |= {name: rows[name].where(rows[name].notna() | ~own, absent(name)) for name in self.differing}
        numbers = {
            column.title: pd.Series(_mean_std(rows, column), rows.index, dtype=object)
            for column in COLUMNS
            if column.everywhere or (column.name in rows and rows[column.name].notna().any())
        }
        seeds = rows["seeds"].map(str)
        seeds = seeds.where(rows["seeds"] == rows["seeds_started"], seeds + " of " + rows["seeds_started"].map(str))
        errors = {
            column.title: numbers[column.title] for column in of_group("error", "open") if column.title in numbers
        }
        columns |= {**errors, "seeds": seeds.where(own), "source": rows["source"]}
        if CHOSEN in rows and rows[CHOSEN].notna().any():
            columns[CHOSEN] = rows[CHOSEN]
        return pd.DataFrame({**columns, **numbers}).map(as_text)

    @cached_property
    def labels(self) -> list[str]:
        """Each row in words: network, method, and what sets it apart from other rows of the same; a published one in
        full, with its source."""
        told, records = self._not_shared(["width", *self.settings]), self.shown.to_dict("records")
        apart = [(*row["options"].split(), *(f"{name}={row[name]}" for name in told if row[name])) for row in records]
        kinds = [(row["model"], row["method"]) for row in records]
        shared = {
            kind: set.intersection(*(set(words) for words, its in zip(apart, kinds, strict=True) if its == kind))
            for kind in kinds
        }
        return [
            row_label(row) if published else " ".join([*kind, *(word for word in words if word not in shared[kind])])
            for row, kind, words, published in zip(records, kinds, apart, self.published, strict=True)
        ]

    @property
    def warnings(self) -> list[str]:
        """One line for each row that has warnings."""
        pairs = zip(self.labels, self.rows["warnings"].fillna(""), strict=True)
        return [f"{label}: {text}" for label, text in pairs if text]

    @property
    def published(self) -> list[bool]:
        """Which rows are published ones."""
        return self.rows["source"].notna().tolist()


def incomparable(rows: pd.DataFrame) -> pd.Series:
    """Which rows no comparison is of: those without certified error and, unless all others have as few, those of fewer
    seeds than tests need; published ones name no seeds."""
    seeds, unknown = pd.to_numeric(rows["seeds"]), rows[names.CERTIFIED_ERROR].isna()
    return unknown | (seeds < seeds[~unknown].clip(upper=FEWEST_SEEDS).max())


def absent(setting: str) -> str:
    """What stands for a setting that is None."""
    return "all" if setting.endswith("_images") else "none"


def as_text(value: Any) -> str:
    """A cell; empty for what is missing."""
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def row_label(row: dict[str, Any]) -> str:
    """A row in words: model, method, options, and the source of a published one."""
    return " ".join(row[name] for name in [*LABEL, "source"] if row.get(name))


def _mean_std(rows: pd.DataFrame, column: Column) -> list[str]:
    def cell(mean: float, std: float) -> str:
        if math.isnan(mean):
            return ""
        alone = math.isnan(std) or (column.write is whole and std == 0)
        return column.write(mean) if alone else f"{column.write(mean)} ± {column.write(std)}"

    return [cell(*pair) for pair in zip(rows[column.name], rows[f"{column.name}_std"], strict=True)]
