"""The leaderboard of a sweep as rows, from its trial folders.

A row is one config over its seeds: trials that differ in anything but the seed, or in their data or recipe version,
are never averaged. Rows of one data set, eps, profile, recipe version, verifier and number of images make a section;
sections of today's recipe stand beside published numbers, others are marked stale. What `harness.certify` found of a
trial is a row like any other, in the section that it belongs to.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS
from harness.analysis.section import Section, as_text, incomparable
from harness.analysis.trials import CHOSEN, LABEL, setting_columns, trials_and_certifications
from harness.config.settings import Radius
from harness.config.trial import FULL_PROFILE, RECIPE_VERSION
from harness.errors import InputError
from harness.storage import names
from harness.storage.folder import TrialResult


@dataclass(frozen=True)
class Table:
    """A sweep's leaderboard, or that of several together.

    directory: the sweep's, or the first one's.
    rows: today's recipe with all columns, section after section as their rows stand there; published rows are those
    with a `source`, each once.
    failures: a row of text for each trial without usable numbers, the reason in `problem`.
    trials: a row a trial, and a certification, with a `problem` where it has no usable numbers.
    """

    directory: Path
    rows: pd.DataFrame
    sections: list[Section]
    failures: pd.DataFrame
    trials: pd.DataFrame

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return self.directory.resolve().name

    @cached_property
    def folders(self) -> dict[str, dict[int, Path]]:
        """Where the finished trials of each row lie, by the row's index and the seed."""
        finished = self.trials[self.trials["problem"].isna()].groupby("row")
        return {row: dict(zip(part["seed"], part["folder"], strict=True)) for row, part in finished}

    @cached_property
    def results(self) -> dict[Path, TrialResult]:
        """What those trials found, by their folders."""
        finished = self.trials[self.trials["problem"].isna()]
        return dict(zip(finished["folder"], finished["result"], strict=True))

    @property
    def files(self) -> list[Path]:
        """Where analysis.tables writes it."""
        return [self.directory / f"leaderboard.{kind}" for kind in ("md", "tex", "csv", "json")]


def _warnings(finished: pd.DataFrame) -> pd.Series:
    """The warnings of each row as one text, every warning with the seeds it came from."""
    each = finished.explode("warnings").dropna(subset="warnings")
    seeds = each.groupby(["row", "warnings"])["seed"].agg(lambda seeds: ", ".join(map(str, sorted(set(seeds)))))
    texts = [f"{text} (seed {numbers})" for (_, text), numbers in seeds.items()]
    return pd.Series(texts, seeds.index.get_level_values("row"), dtype=object).groupby(level=0).agg("; ".join)


def _rows(trials: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample deviation over the finished seeds of a config; a metric that one of them lacks gets neither."""
    finished = trials[trials["problem"].isna()]
    groups = finished.groupby("row", sort=False)
    metrics = [column.name for column in COLUMNS if column.name in trials]
    complete = groups[metrics].count().eq(groups.size(), axis=0)
    means, deviations = groups[metrics].mean().where(complete), groups[metrics].std().where(complete)
    rows = finished.drop_duplicates("row").set_index("row").drop(columns=metrics)
    rows = rows.join([means, deviations.add_suffix("_std")])
    rows["seeds"] = groups.size().astype(object)
    rows["seeds_started"] = trials.groupby("row")["seed"].nunique().reindex(rows.index).astype(object)
    rows["warnings"] = _warnings(finished).reindex(rows.index).fillna("")
    rows["source"] = pd.Series(None, rows.index, dtype=object)
    numbers = [column for name in metrics for column in (name, f"{name}_std")]
    others = [name for name in setting_columns(trials) if name != "width"]
    chosen = [CHOSEN] if CHOSEN in rows else []
    return rows[[*LABEL, "width", *numbers, "seeds", "seeds_started", *others, *chosen, "warnings", "source"]]


def _published(directory: Path) -> pd.DataFrame:
    """Published numbers, `exact` being eps: from published.csv beside the sweep's directory, else the project's."""
    columns = ["dataset", "eps", "model", "method", names.STANDARD_ERROR, names.CERTIFIED_ERROR, "source"]
    own = Path(__file__).resolve().parents[2] / "results"
    places = [parent / "published.csv" for parent in (directory.resolve().parent, own)]
    if not (path := next((place for place in places if place.exists()), None)):
        return pd.DataFrame(columns=[*columns, "exact"], dtype=object)
    published = pd.read_csv(path, dtype=dict.fromkeys(["dataset", "eps", *LABEL, "source"], str))
    if missing := [name for name in columns if name not in published]:
        raise InputError(f"{path}: there is no column {', '.join(missing)}")
    published["source"] = published["source"].fillna("source unknown")
    if "verifier" in published:
        verifiers = (" (" + published["verifier"] + " verifier)").fillna("")
        published["source"] += verifiers
    try:
        published["exact"] = published["eps"].map(Radius)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return published.set_index("published " + published.index.astype(str))


def _notes(recipe: int, profile: str, trials: pd.DataFrame) -> list[str]:
    """What a reader must know before comparing a section's numbers with any others."""

    def span(values: pd.Series) -> str:
        texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
        return " or ".join(texts)

    images, held_out = trials["train_images"], trials["validation_images"]
    tests = trials["evaluation.test_images"][held_out == 0]
    size = f"width {span(trials['width'])}, train images {span(images)}, epochs {span(trials['train.epochs'])}"
    which = "All" if (held_out > 0).all() else "Some"
    notes = {
        f"Stale: these trials are of recipe version {recipe}, today's is {RECIPE_VERSION}.": recipe != RECIPE_VERSION,
        f"These numbers come from the profile {profile} ({size}) and are not comparable with published ones.": (
            not _is_whole(trials, profile)
        ),
        f"Trained on {span(images)} of the training images.": images.notna().any(),
        f"Errors are measured on {span(tests)} of the test images, the first ones.": tests.notna().any(),
        f"{which} errors are measured on {span(held_out[held_out > 0])} validation images held out of training, "
        "not on test images.": (held_out > 0).any(),
        **{note: True for note in _chosen(trials)},
        "No trial has finished yet.": trials["problem"].notna().all(),
    }
    return [note for note, holds in notes.items() if holds]


def _chosen(trials: pd.DataFrame) -> list[str]:
    """What searches chose of a section's rows."""
    if CHOSEN not in trials:
        return []
    rows = trials.drop_duplicates("row")[CHOSEN]
    which = f"{'All' if rows.notna().all() else 'Some'} rows' settings were chosen by a search"
    return [f"{which} ({text}), then trained anew." for text in rows.dropna().unique()]


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that no comparison is of after the others."""
    by = ["incomparable", names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL]
    return rows.assign(incomparable=incomparable(rows)).sort_values(by, kind="stable").drop(columns="incomparable")


def _is_whole(trials: pd.DataFrame, profile: str) -> bool:
    limits = trials[["train_images", "evaluation.test_images"]].notna().to_numpy().any()
    return profile == FULL_PROFILE and bool((trials["width"] >= 1).all()) and not limits


def _ranked(own: pd.DataFrame, published: pd.DataFrame, whole: bool) -> pd.DataFrame:
    """Best rows first; published ones among them only where networks are of their size, else after them."""
    if whole:
        return _best_first(pd.concat([own, published]).reindex(columns=own.columns))
    return pd.concat([_best_first(own), _best_first(published)]).reindex(columns=own.columns)


def _place(part: tuple[Any, pd.DataFrame]) -> tuple[Any, ...]:
    """Where a section stands: the newest recipe first, whole profiles first, trials before certifications."""
    (recipe, dataset, eps, profile, judged), trials = part
    return -recipe, dataset, eps, profile != FULL_PROFILE, profile, bool(trials["certified"].all()), judged


def build(directory: Path, *others: Path) -> Table:
    """The leaderboard of the sweep whose results lie in `directory`, with those of other sweeps.

    Raises InputError where one has no trials, none can be read, or published.csv is faulty.
    """
    directory = Path(directory)
    trials, published = trials_and_certifications(directory, *others), _published(directory)
    rows = _rows(trials)

    def section(key: tuple[int, str, Fraction, str, str], part: pd.DataFrame) -> Section:
        recipe, dataset, eps, profile, judged = key
        stale = f", recipe version {recipe}" if recipe != RECIPE_VERSION else ""
        own = rows[rows.index.isin(part["row"])]
        alike = (published["dataset"] == dataset) & (published["exact"] == eps) & (recipe == RECIPE_VERSION)
        return Section(
            heading=f"{dataset}, eps {part['eps'].iloc[0]}, profile {profile}, {judged}{stale}",
            dataset=dataset,
            eps=eps,
            whole=_is_whole(part, profile),
            stale=bool(stale),
            notes=_notes(recipe, profile, part),
            rows=_ranked(own, published[alike].reindex(columns=rows.columns), _is_whole(part, profile)),
            settings=[name for name in setting_columns(trials) if name != "width"],
        )

    exact = trials["eps"].map(Radius, na_action="ignore")
    parts = trials.groupby([trials["recipe_version"], trials["dataset"], exact, trials["profile"], trials["judged"]])
    sections = sorted((section(*part) for part in sorted(parts, key=_place)), key=lambda section: section.stale)
    current = pd.concat([rows.iloc[:0], *(section.rows for section in sections if not section.stale)])
    failed = trials.loc[trials["problem"].notna(), [*LABEL, "width", "profile", "recipe_version", "seed", "problem"]]
    return Table(directory, current[~current.index.duplicated()], sections, failed.map(as_text), trials)
