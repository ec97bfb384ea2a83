"""The leaderboard of a sweep as rows, from its trials' folders.

A row is one config over its seeds: trials that differ in anything but the seed, or in their data or recipe version,
are never averaged. Rows of one data set, eps, profile, list of stages and set of images make a section, beside
numbers from papers. A certification by `harness.certify` is a row like any other. Trials of another recipe version are
not counted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.terminal import printable
from harness.config.trial import FULL_PROFILE
from harness.leaderboard.columns import COLUMNS, REPORTED
from harness.leaderboard.literature import COMPLETE, IBP, LINEAR, best_sentences, read_literature
from harness.leaderboard.notes import section_notes
from harness.leaderboard.rows import CHOSEN, LABEL, read_trials, setting_columns
from harness.leaderboard.section import Section, as_text, is_incomparable
from harness.settings import Radius


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
    return Leaderboard(directory, sections, _uncounted(trials), trials)


def _uncounted(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text for each trial with a problem: label, settings in which trials differ, folder, problem."""
    shown = [*LABEL, "width", "profile", "recipe_version"]
    settings = [name for name in setting_columns(trials) if name not in shown and trials[name].nunique() > 1]
    failed = trials.assign(trial=[path.name for path in trials["trial_dir"]])[trials["problem"].notna()]
    failed = failed[[*shown, *settings, "seed", "trial", "problem"]].sort_values([*LABEL, "seed"], ignore_index=True)
    return failed.map(as_text)


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
    return dataset, eps, profile != FULL_PROFILE, profile, bool(trials["is_certification"].all()), stages


def _section(
    key: tuple[str, Radius, str, str], trials: pd.DataFrame, rows: pd.DataFrame, literature: pd.DataFrame
) -> Section:
    dataset, eps, profile, stages = key
    limits = trials[["train_images", "evaluation.test_images"]].notna().to_numpy().any()
    limits |= (trials["validation_images"] > 0).any()
    is_full_size = profile == FULL_PROFILE and bool((trials["width"] >= 1).all()) and not limits
    is_published = (literature["dataset"] == dataset) & (literature["exact"] == eps)
    listed = literature[is_published & (not trials["is_own_data"].any())]
    verifier = _kind_of_verifier(trials["evaluation.stages"].iloc[0])
    papers = best_sentences(listed, verifier, is_full_size)
    own = rows[rows.index.isin(trials["row"])]
    listed = listed.reindex(columns=rows.columns)
    parts = [_best_first(pd.concat([own, listed]))] if is_full_size else [_best_first(own), _best_first(listed)]
    return Section(
        heading=f"{dataset}, eps {eps}, profile {profile}, {stages}",
        dataset=dataset,
        eps=eps,
        is_full_size=is_full_size,
        notes=section_notes(profile, trials, is_full_size),
        rows=pd.concat(parts).reindex(columns=rows.columns),
        settings=setting_columns(trials),
        finished=trials.loc[trials["problem"].isna(), ["row", "seed", "trial_dir", "result"]],
        verifier=verifier,
        papers=papers,
    )


def _kind_of_verifier(stages: str) -> str:
    """Return what kind of verifier these stages are, as `read_literature` has it. stages: such as "['ibp', 'bab']"."""
    if repr(names.BAB) in stages:
        return COMPLETE
    return IBP if stages == "['ibp']" else LINEAR


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by their errors, those that cannot be compared last."""
    by = ["incomparable", names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL]
    return rows.assign(incomparable=is_incomparable(rows)).sort_values(by, kind="stable").drop(columns="incomparable")
