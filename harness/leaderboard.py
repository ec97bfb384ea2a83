"""The leaderboard of a sweep as rows, from its trial folders.

A row is one config over its seeds: trials that differ in anything but the seed, or in their data or recipe version,
are never averaged. Rows of one data set, eps, profile and recipe version make a section; sections of today's recipe
stand beside published numbers, others are marked stale.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from harness import folder, names
from harness.settings import FULL_PROFILE, RECIPE_VERSION, parse_eps, to_dict

LABEL = ["model", "method", "options"]


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


_percent, _whole = "{:.2f}".format, "{:,.0f}".format

# Metric: its title and how it is written. Finished trials have the first seven, equilibria some of the others as well.
METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    names.CERTIFIED_ERROR: ("certified error", _percent),
    names.ATTACK_ERROR: ("attack error", _percent),
    names.STANDARD_ERROR: ("standard error", _percent),
    names.BOUND_WIDTH: ("bound width", _digits),
    names.BOUND_WIDTH_RELATIVE: ("relative width", _digits),
    names.PARAMETERS: ("parameters", _whole),
    names.TRAIN_SECONDS: ("train seconds", _whole),
    **{names.certified_by(method): (f"certified error by {method}", _percent) for method in names.BOUNDS},
    names.GAIN: ("gain", _digits),
    names.MARGIN: ("margin", _digits),
    names.RHO_BOUND: ("rho bound", _digits),
    names.ITERATIONS: ("iterations", _digits),
    names.STANDARD_ERROR_W0: ("standard error, W = 0", _percent),
    names.CERTIFIED_ERROR_W0: ("certified error by ibp, W = 0", _percent),
}
MAIN = list(METRICS)[:7]


@dataclass(frozen=True)
class Section:
    """Rows of one data set, eps, profile and recipe version; beside them published ones, unless the recipe is stale.

    notes: what to know before comparing the numbers.
    """

    heading: str
    stale: bool
    notes: list[str]
    rows: pd.DataFrame

    @property
    def shown(self) -> pd.DataFrame:
        """The rows as text, as people see them; settings that all rows share are left out."""
        rows, own = self.rows, self.rows["source"].isna()
        ranked = own & rows[names.CERTIFIED_ERROR].notna()
        columns = {"#": ranked.cumsum().where(ranked)} | {name: rows[name] for name in [*LABEL, "width"]}
        for name in rows.loc[:, "seeds_started":"warnings"].columns[1:-1]:
            if rows.loc[own, name].nunique(dropna=False) > 1:
                columns[name] = rows[name].where(rows[name].notna() | ~own, absent(name))
        numbers = {}
        for name, (title, text) in METRICS.items():
            if name in MAIN or (name in rows and rows[name].notna().any()):
                cells = [_mean_std(*pair, text) for pair in zip(rows[name], rows[f"{name}_std"], strict=True)]
                numbers[title] = pd.Series(cells, rows.index, dtype=object)
        errors = dict(list(numbers.items())[:3])
        seeds = rows["seeds"].map(str)
        seeds = seeds.where(rows["seeds"] == rows["seeds_started"], seeds + " of " + rows["seeds_started"].map(str))
        columns |= {**errors, "seeds": seeds.where(own), "source": rows["source"]}
        return pd.DataFrame({**columns, **numbers}).map(as_text)

    @property
    def labels(self) -> list[str]:
        """Each row in words: model, method, options, settings and the source of a published one."""
        settings = self.shown.loc[:, "width":"certified error"].columns[:-1]
        records = self.shown.to_dict("records")
        return [row_label(row) + "".join(f" {name}={row[name]}" for name in settings if row[name]) for row in records]

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

    rows: today's recipe with all columns, best certified error first; published rows are those with a `source`.
    failures: a row of text for each trial without usable numbers, the reason in `problem`. folders: where the trials
    of each row lie, by the row's index and the seed.
    """

    directory: Path
    rows: pd.DataFrame
    sections: list[Section]
    failures: pd.DataFrame
    folders: dict[str, dict[int, Path]]

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return self.directory.resolve().name

    @property
    def files(self) -> list[Path]:
        """Where harness.tables puts it."""
        return [self.directory / f"leaderboard.{kind}" for kind in ("md", "csv", "json", "html")]


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


def _mean_std(mean: float, std: float, text: Callable[[float], str]) -> str:
    if math.isnan(mean):
        return ""
    return text(mean) if math.isnan(std) or (text is _whole and std == 0) else f"{text(mean)} ± {text(std)}"


def _outcome(path: Path, key: str, epochs: int) -> dict[str, Any]:
    """Metrics and warnings of a finished trial; of any other the `problem`."""
    result, failure = folder.read_result(path), folder.read_failure(path)
    if result is None and failure is not None:
        return {"problem": f"failed: {failure.get('error')}"}
    if result is None:
        done = max((row[names.EPOCH] for row in folder.read_epochs(path)), default=0)
        return {"problem": f"unfinished: {done} of {epochs} epochs"}
    if result.key != key:
        return {"problem": f"not counted: {folder.RESULT} belongs to another trial, {result.key}"}
    found = {name: result.metrics.get(name) for name in METRICS if name in MAIN or name in result.metrics}
    metrics = {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
    missing = [f"{name} is missing or not finite" for name in found if name not in metrics]
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(metrics[name], 9) for name in order if name in metrics]
    if errors != sorted(errors):
        return {"problem": f"not counted: standard <= attack <= certified error does not hold: {errors}"}
    return {**metrics, "warnings": [*result.warnings, *missing]}


def _trial(path: Path) -> dict[str, Any]:
    """One trial folder, flat. `row` names the table row it belongs to: its config but for the seed, data and recipe."""
    trial: dict[str, Any] = {"row": path.name, "folder": path, "model": path.name, "warnings": [], "problem": None}
    trial |= dict.fromkeys(MAIN)
    try:
        read = folder.read_trial(path / folder.TRIAL)
        config = to_dict(read.config)
        version = {"recipe_version": read.recipe_version, "fingerprint": read.fingerprint}
        trial["seed"] = config.pop("seed")
        trial["row"] = json.dumps([config, version], sort_keys=True)
        options = config.pop("options") | config.pop("method_options")
        trial["options"] = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
        settings = pd.json_normalize(config).to_dict("records")[0] | version
        trial |= {name: str(value) if isinstance(value, list) else value for name, value in settings.items()}
        return trial | _outcome(path, read.key, read.config.train.epochs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return trial | {"problem": f"not counted: cannot be read: {type(error).__name__}: {error}"}


def trials_of(directory: Path) -> pd.DataFrame:
    """All trials of a sweep, those that count first, with a `problem` where a trial has no usable numbers.

    `row` is the same for trials that differ in their seeds alone. Raises FileNotFoundError where there are no trials,
    ValueError where none can be read.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (folders := folder.trial_folders(directory)):
        raise FileNotFoundError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    trials = pd.DataFrame([_trial(path) for path in folders], dtype=object)
    if "profile" not in trials:
        raise ValueError(f"{directory} holds no trial that can be read, such as {folders[0]}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    trials.loc[trials.duplicated(["row", "seed"]), "problem"] = "not counted: another folder holds the same trial"
    return trials.astype({name: float for name in METRICS if name in trials})


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
    metrics = [name for name in METRICS if name in trials]
    complete = groups[metrics].count().eq(groups.size(), axis=0)
    means, deviations = groups[metrics].mean().where(complete), groups[metrics].std().where(complete)
    rows = (
        finished.drop_duplicates("row")
        .set_index("row")
        .drop(columns=[*metrics, "seed", "folder", "problem", "warnings"])
    )
    rows = rows.join([means, deviations.add_suffix("_std")])
    rows["seeds"] = groups.size().astype(object)
    rows["seeds_started"] = trials.groupby("row")["seed"].nunique().reindex(rows.index).astype(object)
    rows["warnings"] = _warnings(finished).reindex(rows.index).fillna("")
    rows["source"] = pd.Series(None, rows.index, dtype=object)
    numbers = [column for name in metrics for column in (name, f"{name}_std")]
    first = [*LABEL, "width", *numbers, "seeds", "seeds_started"]
    return rows[[*first, *rows.columns.difference(first, sort=False)]]


def _published(directory: Path) -> pd.DataFrame:
    """Published numbers, `exact` being eps: from published.csv beside the sweep's directory, else the project's."""
    columns = ["dataset", "eps", "model", "method", names.STANDARD_ERROR, names.CERTIFIED_ERROR, "source"]
    own = Path(__file__).resolve().parents[1] / "results"
    found = [parent / "published.csv" for parent in (directory.resolve().parent, own)]
    if not (found := [path for path in found if path.exists()]):
        return pd.DataFrame(columns=[*columns, "exact"], dtype=object)
    published = pd.read_csv(found[0], dtype=dict.fromkeys(["dataset", "eps", *LABEL, "source"], str))
    if missing := [name for name in columns if name not in published]:
        raise ValueError(f"{found[0]}: there is no column {', '.join(missing)}")
    published["source"] = published["source"].fillna("source unknown")
    try:
        published["exact"] = published["eps"].map(parse_eps)
    except ValueError as error:
        raise ValueError(f"{found[0]}: {error}") from None
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
            profile != FULL_PROFILE
        ),
        f"Trained on {span(images)} of the training images.": images.notna().any(),
        f"Errors are measured on {span(tests)} of the test images, the first ones.": tests.notna().any(),
        f"{which} errors are measured on {span(held_out[held_out > 0])} validation images held out of training, "
        "not on test images.": (held_out > 0).any(),
        "No trial has finished yet.": trials["problem"].notna().all(),
    }
    return [note for note, holds in notes.items() if holds]


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values([names.CERTIFIED_ERROR, names.STANDARD_ERROR, *LABEL], kind="stable")


def build(directory: Path) -> Table:
    """The leaderboard of the sweep whose results lie in `directory`.

    Raises FileNotFoundError where there are no trials, ValueError where none can be read or published.csv is faulty.
    """
    directory = Path(directory)
    trials, published = trials_of(directory), _published(directory)
    rows = _rows(trials)

    def section(key: tuple[int, str, Fraction, str], part: pd.DataFrame) -> Section:
        recipe, dataset, eps, profile = key
        own = rows[rows.index.isin(part["row"])]
        alike = (published["dataset"] == dataset) & (published["exact"] == eps) & (recipe == RECIPE_VERSION)
        return Section(
            heading=f"{dataset}, eps {part['eps'].iloc[0]}, profile {profile}, recipe version {recipe}",
            stale=recipe != RECIPE_VERSION,
            notes=_notes(recipe, profile, part),
            rows=_best_first(pd.concat([own, published[alike]]).reindex(columns=rows.columns)),
        )

    exact = trials["eps"].map(parse_eps, na_action="ignore")
    parts = trials.groupby([trials["recipe_version"], trials["dataset"], exact, trials["profile"]])
    order = sorted(parts, key=lambda part: (-part[0][0], *part[0][1:3], part[0][3] != FULL_PROFILE, part[0][3]))
    sections = sorted((section(*part) for part in order), key=lambda section: section.stale)
    current = pd.concat([rows.iloc[:0], *(section.rows for section in sections if not section.stale)])
    failed = trials.loc[trials["problem"].notna(), [*LABEL, "width", "profile", "recipe_version", "seed", "problem"]]
    finished = trials[trials["problem"].isna()].groupby("row")
    folders = {row: dict(zip(part["seed"], part["folder"], strict=True)) for row, part in finished}
    return Table(directory, _best_first(current[~current.index.duplicated()]), sections, failed.map(as_text), folders)
