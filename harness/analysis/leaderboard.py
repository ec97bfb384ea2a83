"""The leaderboard of a sweep as rows, from its trial folders.

A row is one config over its seeds: trials that differ in anything but the seed, or in their data or recipe version,
are never averaged. Rows of one data set, eps, profile, recipe version, verifier and number of images make a section;
sections of today's recipe stand beside published numbers, others are marked stale. What `harness.certify` found of a
trial is a row like any other, in the section that it belongs to.
"""

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS, Column, of_group, whole
from harness.analysis.judged import judged_by
from harness.config.radius import Radius
from harness.config.trial import FULL_PROFILE, RECIPE_VERSION, flat_settings, to_dict
from harness.errors import InputError
from harness.storage import certification, folder, names
from harness.storage.folder import TrialResult

LABEL = ["model", "method", "options"]
CHOSEN = "chosen by"  # a column where any trial's settings were
FEWEST_SEEDS = 2
"""That a test over seeds needs."""
FAILED, UNFINISHED, NOT_COUNTED = "failed", "unfinished", "not counted"  # states of trials without usable numbers


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
        """Those of `own` that comparisons are of, best first: with a certified error, and with two seeds or more where
        any row has so many."""
        rows = self.own.dropna(subset=names.CERTIFIED_ERROR)
        return rows[rows["seeds"] >= min(FEWEST_SEEDS, rows["seeds"].max())] if len(rows) else rows

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


@dataclass(frozen=True)
class Table:
    """A sweep's leaderboard.

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


def without_numbers(state: str, reason: str) -> dict[str, Any]:
    """What stands for the numbers of a trial that has none."""
    return {"state": state, "problem": f"{state}: {reason}"}


def _outcome(path: Path, key: str, epochs: int) -> dict[str, Any]:
    """Numbers and warnings of a finished trial or certification; of any other the `state` and the `problem`."""
    result, failure = folder.read_result(path), folder.read_failure(path)
    if result is None and failure is not None:
        return without_numbers(FAILED, str(failure.get("error")))
    if result is None:
        return without_numbers(UNFINISHED, _done(path, epochs))
    if result.key != key:
        return without_numbers(NOT_COUNTED, f"{folder.RESULT} belongs to another trial, {result.key}")
    values = {column.name: column.value(result) for column in COLUMNS}
    numbers = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return without_numbers(NOT_COUNTED, f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.everywhere or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def _done(path: Path, epochs: int) -> str:
    """How far an unfinished trial, or certification, has come."""
    if (path / certification.CERTIFICATION).exists():
        shards = certification.read_certification(path).shards
        return f"{shards - len(certification.missing(path))} of {shards} shards of {path.name}"
    return f"{max((row[names.EPOCH] for row in folder.read_epochs(path)), default=0)} of {epochs} epochs"


def _trial(path: Path, file: str = folder.TRIAL) -> dict[str, Any]:
    """One trial folder, flat. `row` names the table row it belongs to: its config but for the seed, data and recipe.

    file: where its config is: of a certification, in its own file.
    """
    certified = file == certification.CERTIFICATION
    trial: dict[str, Any] = {"row": path.name, "folder": path, "model": path.name, "warnings": []}
    trial |= {"certified": certified, "judged": "", "result": None}
    trial |= {"state": None, "problem": None} | {column.name: None for column in COLUMNS if column.everywhere}
    try:
        read = folder.read_trial(path / file)
        trial["judged"] = judged_by(read.config, certified)
        version = {"recipe_version": read.recipe_version, "fingerprint": read.fingerprint}
        config = to_dict(read.config)
        trial["seed"] = config.pop("seed")
        trial["row"] = json.dumps([config, version, trial["judged"]], sort_keys=True)
        options = config["options"] | config["method_options"]
        trial |= {"model": config["model"], "method": config["method"]}
        trial["options"] = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
        flat = flat_settings(read.config) | version
        trial |= {name: str(value) if isinstance(value, list) else value for name, value in flat.items()}
        chosen = folder.read_chosen(certification.trial_of(path) if certified else path)
        trial |= {CHOSEN: chosen["text"]} if chosen else {}
        return trial | _outcome(path, read.key, read.config.train.epochs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return trial | without_numbers(NOT_COUNTED, f"cannot be read: {type(error).__name__}: {error}")


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """The columns of `trials_of` that are settings, in the config's order; data and recipe version last."""
    others = {"row", "folder", "certified", "judged", "result", *LABEL, "seed", "state", "problem", "warnings", CHOSEN}
    others |= {column.name for column in COLUMNS}
    return [name for name in trials if name not in others]


def trials_of(directory: Path) -> pd.DataFrame:
    """All trials of a sweep, those that count first, with a `problem` where a trial has no usable numbers.

    `row` is the same for trials that differ in their seeds alone. Raises InputError where there are no trials, or
    none can be read.
    """
    return _counted([_trial(path) for path in _trial_folders(directory)], directory)


def _trials_and_certifications(directory: Path) -> pd.DataFrame:
    """`trials_of`, with what `harness.certify` found of them as further rows."""
    places = _trial_folders(directory)
    further = [_trial(path, certification.CERTIFICATION) for place in places for path in certification.folders(place)]
    return _counted([_trial(path) for path in places] + further, directory)


def _trial_folders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (folders := folder.trial_folders(directory)):
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    return folders


def _counted(read: list[dict[str, Any]], directory: Path) -> pd.DataFrame:
    trials = pd.DataFrame(read, dtype=object)
    if "profile" not in trials:
        first = trials["folder"][0]
        raise InputError(f"{directory} holds no trial that can be read, such as {first}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = without_numbers(NOT_COUNTED, "another folder holds the same trial")
    trials.loc[trials.duplicated(["row", "seed"]), list(twice)] = list(twice.values())
    return trials.astype({column.name: float for column in COLUMNS if column.name in trials})


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

    images, tests, held_out = trials["train_images"], trials["evaluation.test_images"], trials["validation_images"]
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
    return rows.sort_values([names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL], kind="stable")


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


def build(directory: Path) -> Table:
    """The leaderboard of the sweep whose results lie in `directory`.

    Raises InputError where there are no trials, none can be read, or published.csv is faulty.
    """
    directory = Path(directory)
    trials, published = _trials_and_certifications(directory), _published(directory)
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
