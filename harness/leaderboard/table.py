"""The leaderboard of a sweep as rows, from its trials' folders.

A row is one config over its seeds: trials that differ in anything but the seed, or in their data or recipe version,
are never averaged. Rows of one data set, eps, profile, list of stages and set of images make a section, beside
numbers from papers. A certification by `harness.certify` is a row like any other. Trials of another recipe version are
not counted.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.terminal import printable
from harness.leaderboard.columns import COLUMNS, ERRORS, INTEGER, REPORTED, Column
from harness.leaderboard.literature import read_literature
from harness.leaderboard.rows import CHOSEN, LABEL, read_trials, setting_columns
from harness.settings import STAGES, Radius, describe_weak_attack
from harness.sweep.checkpoint_settings import TRAINED_ELSEWHERE
from harness.sweep.trial_config import FULL_PROFILE, is_of_training, label_settings, missing_text, value_text

FEWEST_SEEDS = 3
"""The smallest number of seeds that ranks two rows."""


@dataclass(frozen=True)
class Section:
    """Rows of one data set, eps and profile, evaluated by the same stages on the same images.

    is_full_size: whether its numbers compare with published ones: the full profile, width and data.
    notes: what to know before comparing the numbers.
    rows: best first, those of the literature among them (with a `source`).
    settings: the columns of `rows` that decide a row's numbers, beside its label and width.
    finished: row, seed, trial_dir and result of each finished trial.
    """

    heading: str
    dataset: str
    eps: Fraction
    is_full_size: bool
    notes: list[str]
    rows: pd.DataFrame
    settings: list[str]
    finished: pd.DataFrame

    @property
    def differing(self) -> list[str]:
        """The settings that not all rows share."""
        return self._differing(self.settings)

    def _differing(self, columns: list[str]) -> list[str]:
        own = self.rows[self.rows["source"].isna()]
        trained = own[own["method"] != TRAINED_ELSEWHERE]

        def differs(name: str) -> bool:
            return (trained if is_of_training(name) else own)[name].nunique(dropna=False) > 1

        return [name for name in columns if differs(name)]

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
        """Each finished trial, those of the best row first: label, model, method, seed, trial_dir, result, metrics."""
        rows = self.own[["label", "model", "method"]]
        trials = rows.join(self.finished.sort_values("seed").set_index("row"), how="inner").reset_index(drop=True)
        return trials.join(pd.DataFrame([result.metrics for result in trials["result"]], trials.index))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The rows as text; settings that all rows share are left out."""
        rows, own = self.rows, self.rows["source"].isna()
        ranked = own & rows[names.CERTIFIED_ERROR].notna()
        columns = {"#": ranked.cumsum().where(ranked)} | {name: rows[name] for name in [*LABEL, "width"]}
        columns |= {name: rows[name].where(rows[name].notna() | ~own, missing_text(name)) for name in self.differing}
        numbers = {
            column.title: pd.Series(_mean_and_std(rows, column), rows.index, dtype=object)
            for column in COLUMNS
            if column.is_required or (column.name in rows and rows[column.name].notna().any())
        }
        columns |= {column.title: numbers[column.title] for column in ERRORS if column.title in numbers}
        columns |= {name: rows[name] for name in REPORTED if name in rows and rows[name].notna().any()}
        seeds = rows["seeds"].map(str)
        seeds = seeds.where(rows["seeds"] == rows["seeds_started"], seeds + " of " + rows["seeds_started"].map(str))
        columns |= {"seeds": seeds.where(own), "source": rows["source"]}
        if CHOSEN in rows and rows[CHOSEN].notna().any():
            columns[CHOSEN] = rows[CHOSEN]
        return pd.DataFrame({**columns, **numbers}).map(as_text)

    @cached_property
    def labels(self) -> list[str]:
        """Each row's network, method, options, and the settings in which rows differ; a paper's row also its source."""
        settings = self._differing(["width", *self.settings])
        return [
            " ".join([row_label(row), *label_settings(row["method"], {name: row[name] for name in settings})])
            for row in self.cells.to_dict("records")
        ]

    @property
    def warnings(self) -> list[str]:
        """A line for each warning of each row."""
        rows = zip(self.own["label"], self.own["warnings"], strict=True)
        return [f"{label}: {warning}" for label, warnings in rows for warning in warnings]


@dataclass(frozen=True)
class Leaderboard:
    """A sweep's leaderboard, or that of several together.

    directory: the sweep's, or the first one's.
    uncounted: a row of text for each trial without usable numbers, the reason in `problem`.
    trials: a row for each trial, and for each certification, as `read_trials` returns them.
    """

    directory: Path
    sections: list[Section]
    uncounted: pd.DataFrame
    trials: pd.DataFrame

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return printable(self.directory.resolve().name)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows with all columns, section after section; those of the literature once."""
        rows = pd.concat([section.rows for section in self.sections])
        return rows[~rows.index.duplicated()]


def build_leaderboard(directory: Path, *others: Path) -> Leaderboard:
    """Return the leaderboard of the sweep whose results lie in `directory`, with those of other sweeps.

    Raises InputError where one has no trials, none can be read, or published.csv is faulty.
    """
    directory = Path(directory)
    trials, literature = read_trials(directory, *others), read_literature(directory)
    rows = _rows(trials)
    exact = trials["eps"].map(Radius, na_action="ignore")
    keys = [trials["dataset"], exact, trials["profile"], trials["evaluated_by"]]
    sections = [_section(key, part, rows, literature) for key, part in sorted(trials.groupby(keys), key=_order)]
    failed = trials.loc[trials["problem"].notna(), [*LABEL, "width", "profile", "recipe_version", "seed", "problem"]]
    failed = failed.sort_values([*LABEL, "seed"], ignore_index=True)
    return Leaderboard(directory, sections, failed.map(as_text), trials)


def _rows(trials: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample deviation over each config's finished seeds; none of a metric that one of them lacks."""
    finished = trials[trials["problem"].isna()]
    groups = finished.groupby("row", sort=False)
    metrics = [column.name for column in COLUMNS if column.name in trials]
    complete = groups[metrics].count().eq(groups.size(), axis=0)
    means, deviations = groups[metrics].mean().where(complete), groups[metrics].std().where(complete)
    rows = finished.drop_duplicates("row").set_index("row").drop(columns=metrics)
    rows = rows.join([means, deviations.add_suffix("_std")]).copy()  # else pandas warns of its many blocks
    rows["seeds"] = groups.size().astype(object)
    rows["seeds_started"] = trials.groupby("row")["seed"].nunique().reindex(rows.index).astype(object)
    rows["warnings"] = pd.Series({row: _warnings(part) for row, part in groups}, rows.index, dtype=object)
    rows["source"] = pd.Series(None, rows.index, dtype=object)
    numbers = [column for name in metrics for column in (name, f"{name}_std")]
    settings, further = setting_columns(trials), [name for name in (CHOSEN, *REPORTED) if name in rows]
    return rows[[*LABEL, "width", *numbers, "seeds", "seeds_started", *settings, *further, "warnings", "source"]]


def _warnings(trials: pd.DataFrame) -> list[str]:
    """Return each warning of a row's trials with the seeds that have it."""
    seeds = trials[["warnings", "seed"]].explode("warnings").dropna().drop_duplicates().groupby("warnings")["seed"]
    return [f"{warning} (seed {', '.join(map(str, sorted(its)))})" for warning, its in seeds]


def _order(part: tuple[Any, pd.DataFrame]) -> tuple[Any, ...]:
    """Return the sort key of a section: full profile first, trials before certifications."""
    (dataset, eps, profile, stages), trials = part
    return dataset, eps, profile != FULL_PROFILE, profile, bool(trials["certified"].all()), stages


def _section(
    key: tuple[str, Fraction, str, str], trials: pd.DataFrame, rows: pd.DataFrame, literature: pd.DataFrame
) -> Section:
    dataset, eps, profile, stages = key
    limits = trials[["train_images", "evaluation.test_images"]].notna().to_numpy().any()
    limits |= (trials["validation_images"] > 0).any()
    is_full_size = profile == FULL_PROFILE and bool((trials["width"] >= 1).all()) and not limits
    listed = literature[(literature["dataset"] == dataset) & (literature["exact"] == eps)]
    own = rows[rows.index.isin(trials["row"])]
    listed = listed.reindex(columns=rows.columns)
    parts = [_best_first(pd.concat([own, listed]))] if is_full_size else [_best_first(own), _best_first(listed)]
    return Section(
        heading=f"{dataset}, eps {trials['eps'].iloc[0]}, profile {profile}, {stages}",
        dataset=dataset,
        eps=eps,
        is_full_size=is_full_size,
        notes=_notes(profile, trials, is_full_size),
        rows=pd.concat(parts).reindex(columns=rows.columns),
        settings=setting_columns(trials),
        finished=trials.loc[trials["problem"].isna(), ["row", "seed", "trial_dir", "result"]],
    )


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by their errors, those that cannot be compared last."""
    by = ["incomparable", names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL]
    return rows.assign(incomparable=is_incomparable(rows)).sort_values(by, kind="stable").drop(columns="incomparable")


def is_incomparable(rows: pd.DataFrame) -> pd.Series:
    """Return which rows have no certified error, or too few seeds for a test and fewer than others.

    Rows of the literature name no seeds.
    """
    seeds, unknown = pd.to_numeric(rows["seeds"]).clip(upper=FEWEST_SEEDS), rows[names.CERTIFIED_ERROR].isna()
    return unknown | (seeds < seeds[~unknown].max())


def _notes(profile: str, trials: pd.DataFrame, is_full_size: bool) -> list[str]:
    """Return what a reader must know before comparing a section's numbers with any others."""
    is_elsewhere, held_out = trials["method"] == TRAINED_ELSEWHERE, trials["validation_images"]
    trained, is_held_out = trials[~is_elsewhere], held_out > 0
    tests = trials.loc[~is_held_out, "evaluation.test_images"]
    notes = {
        f"Profile {profile}, {_size(trials, trained)}: not comparable with published numbers.": not is_full_size,
        f"Trained on {_span(trained['train_images'])} of the training images.": trained["train_images"].notna().any(),
        f"Errors are measured on {_span(tests)} of the test images, the first ones.": tests.notna().any(),
        f"{'All' if is_held_out.all() else 'Some'} errors are measured on {_span(held_out[is_held_out])} validation "
        "images held out of training, not on test images.": is_held_out.any(),
        **dict.fromkeys((*_weak_attack_notes(trials), *_search_notes(trials)), True),
        "Networks trained elsewhere are evaluated here; `reported` columns have their papers' numbers.": (
            is_elsewhere.any()
        ),
        "No trial has finished yet.": trials["problem"].notna().all(),
    }
    return [note for note, holds in notes.items() if holds]


def _span(values: pd.Series) -> str:
    texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
    return " or ".join(texts)


def _size(trials: pd.DataFrame, trained: pd.DataFrame) -> str:
    size = f"width {_span(trials['width'])}"
    if trained.empty:
        return size
    return f"{size}, train images {_span(trained['train_images'])}, epochs {_span(trained['train.epochs'])}"


def _weak_attack_notes(trials: pd.DataFrame) -> list[str]:
    attacks = trials[["evaluation.attack_step", "evaluation.attack_steps"]].drop_duplicates()
    texts = filter(None, starmap(describe_weak_attack, attacks.itertuples(index=False)))
    return [f"In {'all' if len(attacks) == 1 else 'some'} rows, {text}." for text in texts]


def _search_notes(trials: pd.DataFrame) -> list[str]:
    chosen = trials.drop_duplicates("row")[CHOSEN] if CHOSEN in trials else pd.Series(dtype=object)
    which = "All" if chosen.notna().all() else "Some"
    return [
        f"{which} rows' settings were chosen by a search ({text}), then trained anew."
        for text in chosen.dropna().unique()
    ]


def as_text(value: Any) -> str:
    """Return a cell's text; empty for what is missing."""
    return "" if pd.isna(value) else value_text(value)


def row_label(row: dict[str, Any]) -> str:
    """Return a row's model, method, options, and the source of a paper's."""
    return " ".join(row[name] for name in [*LABEL, "source"] if row.get(name))


def _mean_and_std(rows: pd.DataFrame, column: Column) -> list[str]:
    def cell(mean: float, std: float) -> str:
        if math.isnan(mean):
            return ""
        if math.isnan(std) or (column.format == INTEGER and std == 0):
            return column.text(mean)
        return f"{column.text(mean)} ± {column.text(std)}"

    return [cell(*pair) for pair in zip(rows[column.name], rows[f"{column.name}_std"], strict=True)]


def stages_table(section: Section) -> pd.DataFrame:
    """Return what each stage decided and took: rows of text, one column per stage."""
    means = section.trials.groupby("label", sort=False).mean(numeric_only=True)
    cells = {
        stage: [_stage_cell(row, stage) for row in means.to_dict("records")]
        for stage in (names.CLEAN, names.ATTACK, *STAGES)
    }
    table = pd.DataFrame({"row": means.index} | {stage: texts for stage, texts in cells.items() if any(texts)})
    return table[table.drop(columns="row").any(axis=1)]


def _stage_cell(metrics: dict[Any, float], stage: str) -> str:
    """Return '50 of 90, 1.2 s'; empty for a stage that did not run."""
    decided, examples = metrics.get(names.decided_by(stage)), metrics.get(names.examples_at(stage))
    seconds = metrics.get(names.seconds_of(stage), math.nan)
    if pd.isna(decided) or pd.isna(examples):
        return ""
    duration = "" if math.isnan(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
    return f"{decided:,.0f} of {examples:,.0f}{duration}"
