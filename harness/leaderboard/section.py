"""A section of a leaderboard: the rows of one data set and profile under one evaluation, and what follows from them."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.radius import Radius
from harness.common.terminal import with_plural
from harness.config.training import is_of_training, missing_text, row_name, value_text
from harness.leaderboard.columns import COLUMNS, ERRORS, REPORTED
from harness.leaderboard.evaluations import CHOSEN, ENTRY_LABEL, EPS_VALUE, LABEL
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import STAGES, Evaluation

FEWEST_SEEDS = 3
"""The smallest number of seeds that ranks two rows."""


@dataclass(frozen=True)
class Section:
    """Rows of one data set and profile under one evaluation.

    evaluation: its settings. held_out: how many images are held out of training for it, 0 for test images.
    is_full_size: whether its numbers compare with published ones: the full profile, width and data.
    notes: what to know before comparing the numbers.
    rows: best first, those of the literature among them (with a `source`).
    settings: the columns of `rows` that decide a row's numbers, beside its label and width.
    finished: row, training, seed, evaluation_dir, result and published of each finished network, by `read_evaluations`.
    is_main: whether the evaluation is the main one of a study.
    verifier: the kind of what verifies the section's own rows, as `read_literature` has it.
    papers: sentences on the best numbers from papers.
    """

    heading: str
    evaluation: Evaluation
    held_out: int
    profile: str
    is_main: bool
    dataset: str
    eps: Radius
    is_full_size: bool
    notes: list[str]
    rows: pd.DataFrame
    settings: list[str]
    finished: pd.DataFrame
    verifier: str
    papers: list[str]

    @property
    def differing(self) -> list[str]:
        """The settings that not all rows share, the width among them."""
        own = self.rows[self.rows["source"].isna()]
        trained = own[own["method"] != TRAINED_ELSEWHERE]

        def differs(name: str) -> bool:
            return (trained if is_of_training(name) else own)[name].nunique(dropna=False) > 1

        return [name for name in ("width", *self.settings) if differs(name)]

    @property
    def is_literature(self) -> list[bool]:
        """For each row whether its numbers are those of a paper."""
        return self.rows["source"].notna().tolist()

    @cached_property
    def own(self) -> pd.DataFrame:
        """The rows of own trials, each with its `label`."""
        return self.rows.assign(label=self.labels)[self.rows["source"].isna()]

    @property
    def has_equilibrium(self) -> pd.Series:
        """For each row of `comparable` whether its networks have an equilibrium: those have a bound on rho(|W|)."""
        rows = self.comparable
        return rows[names.RHO_BOUND].notna() if names.RHO_BOUND in rows else pd.Series(False, rows.index)

    @cached_property
    def comparable(self) -> pd.DataFrame:
        """The rows of `own` that can be compared, best first."""
        return self.own[~is_incomparable(self.own)]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Each finished network, those of the best row first: label, model, method, seed, evaluation_dir, result,
        metrics."""
        rows = self.own[["label", "model", "method"]]
        trials = rows.join(self.finished.sort_values("seed").set_index("row"), how="inner").reset_index(drop=True)
        return trials.join(pd.DataFrame([result.metrics for result in trials["result"]], trials.index))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The rows as text; settings that all rows share are left out."""
        rows, own = self.rows, self.rows["source"].isna()
        ranked = own & rows[names.CERTIFIED_ERROR].notna()
        columns = {"#": ranked.cumsum().where(ranked)} | {name: rows[name] for name in [*LABEL, "width"]}
        settings = [name for name in self.differing if name != "width"]
        columns |= {name: rows[name].where(rows[name].notna() | ~own, missing_text(name)) for name in settings}
        numbers = {
            column.title: pd.Series(column.cells(rows), rows.index, dtype=object)
            for column in COLUMNS
            if column.is_required or (column.name in rows and rows[column.name].notna().any())
        }
        columns |= {column.title: numbers.pop(column.title) for column in ERRORS if column.title in numbers}
        columns |= {name: rows[name] for name in REPORTED if name in rows and rows[name].notna().any()}
        seeds = rows["seeds"].map(str)
        seeds = seeds.where(rows["seeds"] == rows["seeds_started"], seeds + " of " + rows["seeds_started"].map(str))
        columns |= {"seeds": seeds.where(own), "source": rows["source"]}
        if CHOSEN in rows and rows[CHOSEN].notna().any():
            columns[CHOSEN] = rows[CHOSEN]
        return pd.DataFrame(columns | numbers).map(as_text)

    @cached_property
    def labels(self) -> list[str]:
        """Each row's name: the label of its entry, else network, method, options, and settings in which rows differ.

        A paper's row has its source, too. Digests of plugins stand where rows would be equal, and the settings after a
        label that several rows have.
        """
        rows, settings = self.cells.to_dict("records"), [name for name in self.differing if name != "plugins"]
        names = [row_label(row, settings) for row in rows]
        names = _distinct(names, [row_label(row, self.differing) for row in rows])
        if ENTRY_LABEL not in self.rows:
            return names
        labels = self.rows[ENTRY_LABEL].fillna("")
        longer = [f"{label}: {name}" if label else name for label, name in zip(labels, names, strict=True)]
        return _distinct([label or name for label, name in zip(labels, names, strict=True)], longer)

    @property
    def named_rows(self) -> pd.DataFrame:
        """The rows with their label and section, as CSV and JSON have them."""
        rows = self.rows.drop(columns=ENTRY_LABEL, errors="ignore")
        rows.insert(rows.columns.get_loc("eps") + 1, EPS_VALUE, float(self.eps))
        first = {"row": self.labels, "section": self.heading, "is_main": self.is_main, "is_paper": self.is_literature}
        for number, (name, value) in enumerate(first.items()):
            rows.insert(number, name, value)
        return rows

    @cached_property
    def stages(self) -> pd.DataFrame:
        """What each stage decided and took: rows of text, one column per stage."""
        means = self.trials.groupby("label", sort=False).mean(numeric_only=True)
        cells = {
            stage: [_stage_cell(row, stage) for row in means.to_dict("records")]
            for stage in (names.CLEAN, names.ATTACK, *STAGES)
        }
        table = pd.DataFrame({"row": means.index} | {stage: texts for stage, texts in cells.items() if any(texts)})
        return table[table.drop(columns="row").any(axis=1)]

    @property
    def stages_legend(self) -> str:
        """What stands above `stages`. Answers that come from other evaluations took no time in this one."""
        legend = (
            "For each stage: images that it decided, of the images that reached it, and seconds; means over the seeds."
        )
        taken_over = sum(sum(result.taken_over.values()) for result in self.trials["result"])
        if not taken_over:
            return legend
        answers = with_plural(taken_over, "answer")
        return f"{legend} Seconds are without those of {answers} that other evaluations of these networks gave."

    @property
    def warnings(self) -> list[str]:
        """A line for each warning of each row."""
        rows = zip(self.own["label"], self.own["warnings"], strict=True)
        return [f"{label}: {warning}" for label, warnings in rows for warning in warnings]


def is_incomparable(rows: pd.DataFrame) -> pd.Series:
    """Return which rows have no certified error, or too few seeds for a test where others have enough.

    Rows of the literature name no seeds.
    """
    seeds, unknown = pd.to_numeric(rows["seeds"]), rows[names.CERTIFIED_ERROR].isna()
    return unknown | ((seeds < FEWEST_SEEDS) & (seeds[~unknown].max() >= FEWEST_SEEDS))


def as_text(value: Any) -> str:
    """Return a cell's text; empty for what is missing."""
    return "" if pd.isna(value) else value_text(value)


def row_label(row: dict[str, Any], settings: list[str]) -> str:
    """Return the label of a table's row, as text by column: network, method, options, a paper's source, settings."""
    options = " ".join(filter(None, [row["options"], row.get("source")]))
    return row_name(row["model"], row["method"], options, {name: row[name] for name in settings})


def _distinct(names: list[str], longer: list[str]) -> list[str]:
    """Return the names; of those that are equal, the longer ones."""
    counts = Counter(names)
    return [more if counts[name] > 1 else name for name, more in zip(names, longer, strict=True)]


def _stage_cell(metrics: dict[Any, float], stage: str) -> str:
    """Return '50 of 90, 1.2 s'; empty for a stage that did not run."""
    decided, examples = metrics.get(names.decided_by(stage)), metrics.get(names.examples_at(stage))
    seconds = metrics.get(names.seconds_of(stage), math.nan)
    if pd.isna(decided) or pd.isna(examples):
        return ""
    duration = "" if math.isnan(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
    return f"{decided:,.0f} of {examples:,.0f}{duration}"
