"""`python -m harness.depth results/depth`: how widths of bounds grow with depth, and what becomes of them in training.

A line a family of networks, initialisation and depth (and whatever else sets the sweep's trials apart): means over the
seeds. Widths before training are those of epoch 0 in each trial's epochs.jsonl, also of trials that failed later; the
others are of the final network. Trials of older recipe versions are left out.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from harness.analysis.leaderboard import Table
from harness.analysis.section import absent, as_text
from harness.analysis.tables import markdown_table, markdown_text
from harness.analysis.trials import NOT_COUNTED, setting_columns, trials_of, without_numbers
from harness.command_line import OK, add_sweep_directory
from harness.config.trial import RECIPE_VERSION
from harness.errors import InputError
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, write_text

FAMILIES = ("cnn", "resnet", "tied")  # networks with an option `depth`, first in the table
HEADING = ["dataset", "eps", "profile", "method"]
KEYS = ["family", "initialisation", "depth", "options"]
INITIAL = {
    "initial_width": "initial width",
    "initial_width_relative": "initial relative width",
    "initial_growth": "initial growth",
}
FINAL = {
    "final_width": "final width",
    "final_width_relative": "final relative width",
    "final_growth": "final growth",
}
SEM = f"{names.CERTIFIED_ERROR}_sem"
FILES = ("depth.md", "depth.csv")
LEGEND = """\
width: mean over images and other classes of upper minus lower margin, by IBP at the sweep's eps, in logits
relative: that over the standard deviation of the clean margins
growth: of the mean width from one pre-activation to the next, the geometric mean; 1 neither grows nor shrinks
initial: before the first step, on training images with their statistics in batch norm
final: after training, on the images that are judged
certified error: percent, mean ± standard error over the seeds
depth: convolutions and linear layers, each step of an unrolled recurrence one; equilibria have none
inf: not finite"""
_WIDTHS = (names.BOUND_WIDTH, names.BOUND_WIDTH_RELATIVE)
_MEASURED = (
    *HEADING, "seeds", "seeds_started", *INITIAL, *FINAL, names.CERTIFIED_ERROR, SEM, "states", "problem",
)  # fmt: skip
_TITLES = ("seeds", *INITIAL.values(), *FINAL.values(), "certified error")
_TOLD = (*HEADING, "train.initialisation", "sweep", "recipe_version")  # settings that every table tells, or has alike


def growth(widths: list[float | None]) -> float:
    """The geometric mean of the ratios of each width to the one before; None stands for one that is not finite.

    NaN where there are fewer than two, or the first is 0.
    """
    if None in widths:
        return math.inf
    first, last = (float(width or 0) for width in (widths[0], widths[-1])) if widths else (0.0, 0.0)
    return (last / first) ** (1 / (len(widths) - 1)) if first > 0 and len(widths) > 1 else math.nan


def depth_table(directory: Path, leaderboard: Table | None = None) -> pd.DataFrame:
    """A row for each config of the sweep in `directory`, whether or not any of its trials finished.

    leaderboard: the sweep's, where it is known.
    Raises InputError where there are no trials of today's recipe.
    """
    trials = trials_of(directory) if leaderboard is None else leaderboard.trials
    trials = trials[trials["certified"].eq(False)]
    trials = trials[trials["recipe_version"].isna() | (trials["recipe_version"] == RECIPE_VERSION)]
    if trials["recipe_version"].isna().all():
        raise InputError(f"{directory} holds no trial of today's recipe version, {RECIPE_VERSION}")
    varying = _varying(trials[trials["recipe_version"].notna()])
    trials = pd.DataFrame([trial | _measured(trial) for trial in trials.to_dict("records")])
    trials = trials.reindex(columns=trials.columns.union([*INITIAL, *FINAL], sort=False))  # none may be measured
    trials[HEADING] = trials[HEADING].fillna("unknown")
    rows = [_row(part, varying) for _, part in trials.groupby("row", sort=False)]
    order = {family: place for place, family in enumerate(FAMILIES)}
    table = pd.DataFrame(rows).astype({"depth": "Int64"})
    table["order"] = table["family"].map(order).fillna(len(order))
    table = table.sort_values([*HEADING, "order", "family", "initialisation", "options", "depth"], kind="stable")
    return table.drop(columns="order").reset_index(drop=True)


def _varying(trials: pd.DataFrame) -> list[str]:
    """Settings, other than those that every table has, in which the trials differ."""
    return [name for name in setting_columns(trials) if name not in _TOLD and trials[name].map(str).nunique() > 1]


def _measured(trial: dict[str, Any]) -> dict[str, Any]:
    """Family, depth and widths of one trial."""
    network = {"family": trial["model"], "depth": None, "initialisation": trial.get("train.initialisation")}
    options = str(trial["options"]).split(" ")
    if depths := [option for option in options if option.startswith("depth=")]:
        network["depth"] = int(depths[0].removeprefix("depth="))
        network["options"] = " ".join(option for option in options if option not in depths)
    state = trial["state"]
    try:
        rows = [] if state == NOT_COUNTED else folder.read_epochs(trial["folder"])
    except DamagedFileError as error:
        return network | ({} if state else without_numbers(NOT_COUNTED, str(error)))
    untrained = next((row for row in rows if row[names.EPOCH] == 0), {})
    final = {} if state else trial["result"].metrics
    return {**network, **_widths(names.trained(untrained), INITIAL), **_widths(final, FINAL)}


def _widths(metrics: dict[str, Any], columns: dict[str, str]) -> dict[str, float]:
    """Both widths of the margins and the growth; NaN for what is not among the metrics, infinite for None."""
    values = [math.inf if (value := metrics.get(name, math.nan)) is None else float(value) for name in _WIDTHS]
    return dict(zip(columns, [*values, growth(names.layer_widths(metrics))], strict=True))


def _row(part: pd.DataFrame, varying: list[str]) -> dict[str, Any]:
    """The trials of one config, which differ in their seeds alone."""
    finished = part[part["problem"].isna()]
    failed = part[part["problem"].notna()]
    return {
        **part.iloc[0][[*HEADING, *KEYS, *varying]].to_dict(),
        "seeds": len(finished),
        "seeds_started": part["seed"].nunique(),
        **{name: part[name].mean() for name in INITIAL},
        **{name: finished[name].mean() for name in FINAL},
        names.CERTIFIED_ERROR: finished[names.CERTIFIED_ERROR].mean(),
        SEM: finished[names.CERTIFIED_ERROR].sem(),
        "states": ", ".join(dict.fromkeys(failed["state"])),
        "problem": "; ".join(f"seed {row['seed']}: {row['problem']}" for row in failed.to_dict("records")),
    }


def shown(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows as people see them, by heading. Options stand there where any row has some."""
    parts = {}
    for values, part in table.groupby(HEADING, sort=False):
        settings = [name for name in part if name not in _MEASURED and (name != "options" or part[name].any())]
        columns = {name: _cells(part[name]) for name in settings}
        columns["seeds"] = part["seeds"].map(str) + " of " + part["seeds_started"].map(str)
        columns |= {title: part[name].map(_number) for name, title in (INITIAL | FINAL).items()}
        columns["certified error"] = pd.Series([_error(row) for row in part.to_dict("records")], part.index)
        parts["{}, eps {}, profile {}, method {}".format(*values)] = pd.DataFrame(columns)
    return parts


def _cells(column: pd.Series) -> pd.Series:
    """Settings as the leaderboard writes them."""
    return (column if column.name in KEYS else column.fillna(absent(str(column.name)))).map(as_text)


def _label(settings: dict[str, str]) -> str:
    """A row in words, its settings given as text."""
    bare = ("family", "depth", "options")
    return " ".join(text if name in bare else f"{name}={text}" for name, text in settings.items() if text)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _error(row: dict[str, Any]) -> str:
    """The certified error, or what became of the trials where none of them has any."""
    if row["seeds"] == 0:
        return row["states"]
    spread = "" if math.isnan(row[SEM]) else f" ± {row[SEM]:.2f}"
    return f"{row[names.CERTIFIED_ERROR]:.2f}{spread}"


def problems(table: pd.DataFrame) -> list[str]:
    """A line for each row that has trials without a result."""
    rows = table[table["problem"] != ""]
    labels = [f"{row['method']}, {_label(row[KEYS].map(as_text).to_dict())}" for _, row in rows.iterrows()]
    return [f"{label}: {problem}" for label, problem in zip(labels, rows["problem"], strict=True)]


def write(directory: Path, table: pd.DataFrame) -> list[Path]:
    """Write the table as Markdown and CSV beside the leaderboard, and return where they are."""
    parts = [f"# Depth and widths of bounds: {markdown_text(directory.resolve().name)}\n"]
    for heading, part in shown(table).items():
        parts += [f"## {markdown_text(heading)}\n", markdown_table(part, [False] * len(part))]
    parts += [f"- Without a result: {markdown_text(problem)}\n" for problem in problems(table)]
    parts += ["".join(f"- {markdown_text(line)}\n" for line in LEGEND.splitlines())]
    paths = [directory / name for name in FILES]
    texts = ["\n".join(parts), table.drop(columns="states").to_csv(index=False, lineterminator="\n")]
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return paths


def show(table: pd.DataFrame, console: Console) -> None:
    """Print the rows by heading, without relative widths where they do not fit, then what has no result."""
    say = partial(console.print, markup=False, highlight=False)
    for heading, part in shown(table).items():
        say(f"\n{heading}", style="bold")
        settings = [name for name in part if name not in _TITLES]
        titles = [name for name in _TITLES if "relative" not in name or console.width >= 110]
        grid = RichTable(Column("row", overflow="fold"), box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for title in titles:
            grid.add_column(title.replace(" ", "\n"))
        for _, row in part.iterrows():
            grid.add_row(*map(Text, [_label(row[settings].to_dict()), *row[titles]]))
        console.print(grid)
    say("", *(f"without a result: {problem}" for problem in problems(table)), LEGEND, sep="\n", soft_wrap=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directory(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where there is nothing to show."""
    table = depth_table(options.directory)
    paths = write(options.directory, table)
    show(table, Console())
    print(*paths, sep="\n")
    return OK
