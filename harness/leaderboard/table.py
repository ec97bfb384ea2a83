"""The leaderboard of a sweep as rows, from its networks' folders.

A row is one training over its seeds, under one evaluation: networks that differ in anything but the seed, or in their
data or recipe version, are never averaged. Rows of one data set, evaluation and profile make a section, beside numbers
from papers. What is of another version is not counted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import require
from harness.common.radius import Radius
from harness.common.terminal import printable, with_plural
from harness.config.training import FULL_PROFILE
from harness.leaderboard.columns import TABLES, titles_of
from harness.leaderboard.comparisons import select_labels
from harness.leaderboard.evaluations import CHOSEN, LABEL, describe_images, read_evaluations, setting_columns
from harness.leaderboard.fronts import FRONTS, front_sentences
from harness.leaderboard.literature import COMPLETE, IBP, LINEAR, best_sentences, read_literature
from harness.leaderboard.rows import mean_rows
from harness.leaderboard.section import Section, as_text, is_incomparable
from harness.leaderboard.sentences import Summary, summarise
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import describe_weak_attack
from harness.storage.folder import network_of

NOT_ASKED = "the last command did not ask for this"


@dataclass(frozen=True)
class SectionTable(Section):
    """A section as tables show it: with what the comparisons of its rows say."""

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


@dataclass(frozen=True)
class Leaderboard:
    """A sweep's leaderboard, or that of several together.

    directory: the sweep's, or the first one's.
    uncounted: a row of text for each network without usable numbers, the reason in `problem`.
    table: a row for each network under each evaluation, as `read_evaluations` returns them.
    left_out: a line on what the last command did not ask for; empty if nothing is left out.
    """

    directory: Path
    sections: list[SectionTable]
    uncounted: pd.DataFrame
    table: pd.DataFrame
    left_out: str = ""

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return printable(self.directory.resolve().name)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows with all columns, section after section; those of papers once, in their first section."""
        no_evaluation_began = pd.DataFrame(columns=["row", "section", "warnings"])
        rows = pd.concat([section.named_rows for section in self.sections] or [no_evaluation_began])
        return rows[~rows.index.duplicated()]


def build_leaderboard(
    directory: Path, *others: Path, eps: Collection[Radius] = (), with_rest: bool = False
) -> Leaderboard:
    """Return the leaderboard of the sweep whose results lie in `directory`, with those of other sweeps.

    It has what the last command in each directory asked for. eps: only sections at these radii; default: all.
    with_rest: also all else that lies there, marked by a warning.
    Raises InputError where a directory has no networks, none can be read, none has this radius, or literature.csv is
    faulty.
    """
    directory = Path(directory)
    table, literature = read_evaluations(directory, *others), read_literature(directory)
    if eps:
        exact = table["eps"].map(Radius, na_action="ignore")
        found = ", ".join(map(str, sorted(exact.dropna().unique())))
        for radius in eps:
            require("--eps", str(radius), radius in set(exact), f"a radius of the results: {found}")
        table = table[exact.isin(list(eps))]
    shown, left_out = _marked(table), ""
    if not with_rest and table["is_asked"].any():  # else nothing has begun that was asked for
        shown, rest = table[table["is_asked"]], table[~table["is_asked"]]
        left_out = _describe_rest(rest) if len(rest) else ""
    rows, exact = mean_rows(shown), shown["eps"].map(Radius, na_action="ignore")
    keys = [shown["dataset"], exact, shown["profile"], shown["evaluation"], shown["held_out"]]
    parts = sorted(shown.groupby(keys), key=_order)
    headings = _headings(parts)
    sections = [
        _section(key, part, heading, rows, literature) for (key, part), heading in zip(parts, headings, strict=True)
    ]
    return Leaderboard(directory, sections, _uncounted(shown), table, left_out)


def _marked(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a warning at each row that the last command did not ask for."""
    rows = zip(table["warnings"], table["is_asked"], strict=True)
    warnings = [[*own, *([] if is_asked else [NOT_ASKED])] for own, is_asked in rows]
    return table.assign(warnings=pd.Series(warnings, table.index, dtype=object))


def select_rows(leaderboard: Leaderboard, patterns: Sequence[str]) -> Leaderboard:
    """Return a leaderboard of the rows whose labels patterns select, without rows of papers.

    Raises InputError for a pattern without a match.
    """
    labels, sections = select_labels("--only", patterns, leaderboard.sections), list[SectionTable]()
    for section in leaderboard.sections:
        rows = section.rows.loc[section.own.index[section.own["label"].isin(labels)]]
        if len(rows):
            sections.append(
                replace(section, rows=rows, finished=section.finished[section.finished["row"].isin(rows.index)])
            )
    return replace(leaderboard, sections=sections, uncounted=leaderboard.uncounted.iloc[:0])


def _describe_rest(rest: pd.DataFrame) -> str:
    """Return a line on what the last command did not ask for. rest: its rows of `read_evaluations`."""
    networks = with_plural(rest["evaluation_dir"].map(network_of).nunique(), "network")
    evaluations = with_plural(len(rest), "evaluation")
    return f"Left out: {evaluations} of {networks}: {NOT_ASKED}. `harness.tables` with `--all` shows them."


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
    """Return radius, stages and images of a section's evaluation. rows: of `read_evaluations`."""
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


def _order(part: tuple[Any, pd.DataFrame]) -> tuple[Any, ...]:
    """Return the sort key of a section: full profile first, the main evaluation before the others."""
    (dataset, eps, profile, evaluation, _), rows = part
    text = _describe_evaluation(rows)
    return dataset, profile != FULL_PROFILE, profile, not rows["is_main"].any(), eps, text, evaluation


def _section(
    key: tuple[Any, ...], trials: pd.DataFrame, heading: str, rows: pd.DataFrame, literature: pd.DataFrame
) -> SectionTable:
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
    own_columns += [FRONTS] if FRONTS in trials else []
    return SectionTable(
        heading=heading,
        evaluation=evaluation,
        held_out=held_out,
        profile=profile,
        is_main=bool(trials["is_main"].any()),
        dataset=dataset,
        eps=eps,
        is_full_size=is_full_size,
        notes=_notes(profile, trials, is_full_size),
        rows=pd.concat(parts).reindex(columns=rows.columns),
        settings=setting_columns(trials),
        finished=trials.loc[trials["problem"].isna(), own_columns],
        verifier=verifier,
        papers=papers,
    )


def _notes(profile: str, trials: pd.DataFrame, is_full_size: bool) -> list[str]:
    """Return what a reader must know before comparing a section's numbers with any others."""
    is_elsewhere = trials["method"] == TRAINED_ELSEWHERE
    trained, first = trials[~is_elsewhere], trials.iloc[0]
    notes = []
    if not is_full_size:
        size = f"width {_span(trials['width'])}"
        if not trained.empty:
            size += f", train images {_span(trained['train_images'])}, epochs {_span(trained['train.epochs'])}"
        notes.append(f"Profile {profile}, {size}: not comparable with published numbers.")
    if trained["train_images"].notna().any():
        notes.append(f"Trained on {_span(trained['train_images'])} of the training images.")
    evaluation = first["evaluation_settings"]
    if evaluation.split == "validation":
        notes.append(f"Errors are measured on {describe_images(evaluation, first['held_out'])}, not on test images.")
    elif evaluation.test_images is not None:
        notes.append(f"Errors are measured on {evaluation.test_images:,} of the test images, the first ones.")
    if weak := describe_weak_attack(evaluation.attack_step, evaluation.attack_steps):
        notes.append(f"{weak[0].upper()}{weak[1:]}.")
    notes += _search_notes(trials)
    if is_elsewhere.any():
        notes.append("Networks trained elsewhere are evaluated here; `reported` columns have their papers' numbers.")
    if trials["problem"].notna().all():
        notes.append("No evaluation has finished yet.")
    return notes


def _span(values: pd.Series) -> str:
    texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
    return " or ".join(texts)


def _search_notes(trials: pd.DataFrame) -> list[str]:
    chosen = trials.drop_duplicates("row")[CHOSEN] if CHOSEN in trials else pd.Series(dtype=object)
    which = "All" if chosen.notna().all() else "Some"
    texts = " or ".join(f"({text})" for text in chosen.dropna().unique())
    return [f"{which} rows' settings were chosen by a search {texts}, then trained anew."] if texts else []


def _kind_of_verifier(stages: tuple[str, ...]) -> str:
    """Return what kind of verifier these stages are, as `read_literature` has it."""
    if names.BAB in stages:
        return COMPLETE
    return IBP if stages == (names.IBP,) else LINEAR


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by their errors, those that cannot be compared last."""
    by = ["incomparable", names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL]
    return rows.assign(incomparable=is_incomparable(rows)).sort_values(by, kind="stable").drop(columns="incomparable")
