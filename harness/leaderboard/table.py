"""The leaderboard of a sweep as rows, from its networks' folders.

A row is one training over its seeds, under one evaluation: networks that differ in anything but the seed, or in their
data or recipe version, are never averaged. Rows of one data set, evaluation and profile make a section, beside numbers
from papers. What is of another version is not counted.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import require
from harness.common.radius import Radius
from harness.common.terminal import printable
from harness.config.training import FULL_PROFILE, is_of_training, missing_text, row_name, value_text
from harness.leaderboard.columns import COLUMNS, ERRORS, REPORTED, TABLES, titles_of
from harness.leaderboard.comparisons import FEWEST_SEEDS
from harness.leaderboard.fronts import FRONT, NETWORK, front_sentences
from harness.leaderboard.literature import COMPLETE, IBP, LINEAR, best_sentences, read_literature
from harness.leaderboard.notes import section_notes
from harness.leaderboard.rows import CHOSEN, LABEL, describe_images, read_rows, setting_columns
from harness.leaderboard.sentences import Summary, summarise
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import STAGES, Evaluation
from harness.storage.folder import network_of


@dataclass(frozen=True)
class Section:
    """Rows of one data set and profile under one evaluation.

    evaluation: its settings. held_out: how many images are held out of training for it, 0 for test images.
    is_full_size: whether its numbers compare with published ones: the full profile, width and data.
    notes: what to know before comparing the numbers.
    rows: best first, those of the literature among them (with a `source`).
    settings: the columns of `rows` that decide a row's numbers, beside its label and width.
    finished: row, training, seed, evaluation_dir, result and published of each finished network, as `read_rows` says.
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
        """Each row's network, method, options, and the settings in which rows differ; a paper's row also its source."""
        return [row_label(row, self.differing) for row in self.cells.to_dict("records")]

    @cached_property
    def summary(self) -> Summary:
        """What the comparisons of the rows say."""
        return summarise(self)

    @property
    def sentences(self) -> list[str]:
        """What stands below the table: on the comparisons, on fronts of searches, and on papers."""
        return [*self.summary.lines, *front_sentences(self.trials), *self.papers]

    @property
    def marked_table(self) -> pd.DataFrame:
        """The cells with `row`, the label, marked if it has warnings; `~` marks ranks of rows tied with the best."""
        tied = self.summary.tied
        ranks = zip(self.cells["#"], self.labels, strict=True)
        table = self.cells.assign(**{"#": [f"{rank} ~" if label in tied else rank for rank, label in ranks]})
        rows = zip(self.labels, self.rows["warnings"], self.is_literature, strict=True)
        marks = [" (see warning)" if not is_paper and warnings else "" for _, warnings, is_paper in rows]
        table.insert(1, "row", [label + mark for label, mark in zip(self.labels, marks, strict=True)])
        return table

    @property
    def short_table(self) -> pd.DataFrame:
        """The columns that stand in all tables, as text."""
        table = self.marked_table
        return table[[title for title in titles_of(TABLES) if title in table]]

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
    def warnings(self) -> list[str]:
        """A line for each warning of each row."""
        rows = zip(self.own["label"], self.own["warnings"], strict=True)
        return [f"{label}: {warning}" for label, warnings in rows for warning in warnings]


@dataclass(frozen=True)
class Leaderboard:
    """A sweep's leaderboard, or that of several together.

    directory: the sweep's, or the first one's.
    uncounted: a row of text for each network without usable numbers, the reason in `problem`.
    table: a row for each network under each evaluation, as `read_rows` returns them.
    """

    directory: Path
    sections: list[Section]
    uncounted: pd.DataFrame
    table: pd.DataFrame

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return printable(self.directory.resolve().name)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows with all columns, section after section; those of the literature once."""
        rows = pd.concat([section.rows for section in self.sections])
        return rows[~rows.index.duplicated()]


def build_leaderboard(directory: Path, *others: Path, eps: Collection[Radius] = ()) -> Leaderboard:
    """Return the leaderboard of the sweep whose results lie in `directory`, with those of other sweeps.

    eps: only sections at these radii; default: all. Raises InputError where a directory has no networks, none can be
    read, none has this radius, or published.csv is faulty.
    """
    directory = Path(directory)
    table, literature = read_rows(directory, *others), read_literature(directory)
    exact = table["eps"].map(Radius, na_action="ignore")
    if eps:
        found = ", ".join(map(str, sorted(exact.dropna().unique())))
        for radius in eps:
            require("--eps", str(radius), radius in set(exact), f"a radius of the results: {found}")
        table, exact = table[exact.isin(list(eps))], exact[exact.isin(list(eps))]
    rows = _rows(table)
    keys = [table["dataset"], exact, table["profile"], table["evaluation"], table["held_out"]]
    parts = sorted(table.groupby(keys), key=_order)
    headings = _headings(parts)
    sections = [
        _section(key, part, heading, rows, literature) for (key, part), heading in zip(parts, headings, strict=True)
    ]
    return Leaderboard(directory, sections, _uncounted(table), table)


def _headings(parts: list[tuple[Any, pd.DataFrame]]) -> list[str]:
    """Return the headings of sections; what else their evaluations differ in is added to those that would be equal."""
    headings = [f"{part[0]}, profile {part[2]}, {_describe_evaluation(rows)}" for part, rows in parts]
    settings = [rows["evaluation_settings"].iloc[0].model_dump(mode="json") for _, rows in parts]
    for heading in {heading for heading in headings if headings.count(heading) > 1}:
        numbers = [number for number, text in enumerate(headings) if text == heading]
        first, *others = (settings[number] for number in numbers)
        differing = [name for name in first if any(other[name] != first[name] for other in others)]
        for number in numbers:
            headings[number] = ", ".join([heading, *(f"{name} {settings[number][name]}" for name in differing)])
    return headings


def _describe_evaluation(rows: pd.DataFrame) -> str:
    """Return radius, stages and images of a section's evaluation. rows: of `read_rows`."""
    evaluation, held_out = rows[["evaluation_settings", "held_out"]].iloc[0]
    return f"eps {evaluation.eps}, {evaluation.verifier}, {describe_images(evaluation, held_out)}"


def _uncounted(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text for each network with a problem: label, settings in which rows differ, folder, problem."""
    shown = [*LABEL, "width", "profile", "recipe_version"]
    settings = [name for name in setting_columns(table) if name not in shown and table[name].nunique() > 1]
    settings = [name for name in settings if not name.startswith("evaluation.")]
    failed = table.assign(network=[network_of(path).name for path in table["evaluation_dir"]])[table["problem"].notna()]
    failed = failed[[*shown, *settings, "seed", "network", "problem"]].drop_duplicates()
    return failed.sort_values([*LABEL, "seed"], ignore_index=True).map(as_text)


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
    """Return the sort key of a section: full profile first, the main evaluation before the others."""
    (dataset, eps, profile, evaluation, _), rows = part
    text = _describe_evaluation(rows)
    return dataset, profile != FULL_PROFILE, profile, not rows["is_main"].any(), eps, text, evaluation


def _section(
    key: tuple[Any, ...], trials: pd.DataFrame, heading: str, rows: pd.DataFrame, literature: pd.DataFrame
) -> Section:
    dataset, eps, profile, _, held_out = key
    evaluation = trials["evaluation_settings"].iloc[0]
    limits = trials["train_images"].notna().any() or (trials["validation_images"] > 0).any()
    is_whole = not limits and evaluation.test_images is None
    is_full_size = profile == FULL_PROFILE and bool((trials["width"] >= 1).all()) and is_whole
    is_published = (literature["dataset"] == dataset) & (literature["exact"] == eps)
    listed = literature[is_published & (not trials["is_own_data"].any())]
    verifier = _kind_of_verifier(evaluation.stages)
    papers = best_sentences(listed, verifier, is_full_size)
    own = rows[rows.index.isin(trials["row"])]
    listed = listed.reindex(columns=rows.columns)
    parts = [_best_first(pd.concat([own, listed]))] if is_full_size else [_best_first(own), _best_first(listed)]
    own_columns = ["row", "training", "seed", "evaluation_dir", "result", "published"]
    own_columns += [name for name in (FRONT, NETWORK) if name in trials]
    return Section(
        heading=heading,
        evaluation=evaluation,
        held_out=held_out,
        profile=profile,
        is_main=bool(trials["is_main"].any()),
        dataset=dataset,
        eps=eps,
        is_full_size=is_full_size,
        notes=section_notes(profile, trials, is_full_size),
        rows=pd.concat(parts).reindex(columns=rows.columns),
        settings=setting_columns(trials),
        finished=trials.loc[trials["problem"].isna(), own_columns],
        verifier=verifier,
        papers=papers,
    )


def _kind_of_verifier(stages: tuple[str, ...]) -> str:
    """Return what kind of verifier these stages are, as `read_literature` has it."""
    if names.BAB in stages:
        return COMPLETE
    return IBP if stages == (names.IBP,) else LINEAR


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


def as_text(value: Any) -> str:
    """Return a cell's text; empty for what is missing."""
    return "" if pd.isna(value) else value_text(value)


def row_label(row: dict[str, Any], settings: list[str]) -> str:
    """Return the label of a table's row, as text by column: network, method, options, a paper's source, settings."""
    options = " ".join(filter(None, [row["options"], row.get("source")]))
    return row_name(row["model"], row["method"], options, {name: row[name] for name in settings})


def _stage_cell(metrics: dict[Any, float], stage: str) -> str:
    """Return '50 of 90, 1.2 s'; empty for a stage that did not run."""
    decided, examples = metrics.get(names.decided_by(stage)), metrics.get(names.examples_at(stage))
    seconds = metrics.get(names.seconds_of(stage), math.nan)
    if pd.isna(decided) or pd.isna(examples):
        return ""
    duration = "" if math.isnan(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
    return f"{decided:,.0f} of {examples:,.0f}{duration}"
