"""`python -m harness.report results/<sweep>`: a sweep as one page that opens offline, with figures, and its tables.

It writes report.html, leaderboard.md, .tex, .csv and .json, and figures/ with each figure as SVG and PDF. Of several
sweeps (`python -m harness.report results/*`) it writes each one's, and index.html beside them, which leads to all; what
holds no trials is left out.
"""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.section import Section, absent, as_text
from harness.analysis.stages import STAGES_LEGEND, stages_table
from harness.analysis.summary import Summary
from harness.analysis.tables import FAILURES, LEGEND, marked
from harness.analysis.tables import write as write_tables
from harness.command_line import OK, add_data_dir, add_sweep_directories
from harness.config.settings import BAB
from harness.errors import InputError
from harness.figures import style
from harness.figures.catalogue import Kind, figures_of
from harness.figures.shown import Shown
from harness.reports import overview
from harness.reports.answer import answer
from harness.reports.page import render
from harness.storage import certification, folder
from harness.storage.files import write_text

REPORT, FIGURES = "report.html", "figures"
_MATTER = (
    "#", "row", "certified error", "attack error", "standard error", "open", "bound width", "parameters",
    "train seconds", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure on the page. path: of its files, without their kinds, from the page's directory. missing: why it is not
    there, where it is not."""

    kind: Kind
    path: str
    markup: str
    missing: str = ""


@dataclass(frozen=True)
class Part:
    """A section on the page.

    answers: whether CerDEQ is better, in sentences.
    rows: as text, with `row`, its label; more: the columns behind the switch.
    shared: settings that all rows have alike. environments: what the trials ran on.
    commands: how each row is made again.
    """

    section: Section
    said: Summary
    answers: list[str]
    rows: pd.DataFrame
    more: list[str]
    stages: pd.DataFrame
    pictures: list[Picture]
    shared: dict[str, str]
    environments: dict[str, str]
    commands: dict[str, str]


def write(directory: Path, data_dir: str | None = None) -> tuple[Table, dict[str, Summary]]:
    """Write the sweep's tables, figures and page; returns the leaderboard and what its sections say.

    data_dir: where the images of its data set are looked for; those that are not there are not shown.
    Raises InputError where no table can be made.
    """
    table, said = write_tables(directory)
    write_page(table, said, data_dir)
    return table, said


def write_page(table: Table, said: dict[str, Summary], data_dir: str | None = None) -> Path:
    """Write the page of a leaderboard, and its figures; returns where the page is."""
    shown = [Shown(table, section, data_dir) for section in table.sections]
    parts = [_part(each, said[each.section.heading], number) for number, each in enumerate(shown)]
    told = {
        "recheck": _recheck(table.directory),
        "parts": parts,
        "legend": LEGEND,
        "failures": FAILURES,
        "stages_legend": STAGES_LEGEND,
    }
    path = table.directory / REPORT
    write_text(path, render("report.html.jinja", table=table, **told))
    return path


def _part(shown: Shown, said: Summary, number: int) -> Part:
    section, trials = shown.section, shown.trials
    rows = marked(section, said)
    rows.insert(1, "row", section.labels)
    rows = rows.drop(columns="source")  # a published row's label has it
    first = [name for name in _MATTER if name in rows]
    more = [name for name in rows if name not in _MATTER]
    drawn = [] if section.stale or trials.empty else _pictures(shown, number)
    alike = [name for name in section.settings if name not in section.differing]
    own = shown.rows
    return Part(
        section=section,
        said=said,
        answers=[] if section.stale else answer(shown.table, section),
        rows=rows[first + more],
        more=more,
        stages=stages_table(shown.table, section),
        pictures=drawn,
        shared={name: as_text(own[name].iloc[0]) or absent(name) for name in alike} if len(own) else {},
        environments=_environments(shown.table, [] if trials.empty else trials["folder"]),
        commands={label: _again(list(part["folder"])) for label, part in trials.groupby("label", sort=False)}
        if len(trials)
        else {},
    )


def _pictures(shown: Shown, number: int) -> list[Picture]:
    pictures = []
    for kind, figure in figures_of(shown):
        if isinstance(figure, str):
            pictures.append(Picture(kind, "", "", f"{kind.title} cannot be drawn: {figure}"))
            continue
        name = f"{number}-{kind.name}"
        drawn = style.write(figure, shown.table.directory / FIGURES / name)
        pictures.append(Picture(kind, f"{FIGURES}/{name}", style.inline(drawn, name, f"{kind.title}. {kind.caption}")))
    return pictures


def _environments(table: Table, places: list[Path]) -> dict[str, str]:
    """What the trials in these folders ran on: each value that any of them has."""
    found = pd.DataFrame([table.results[place].environment for place in places])
    return {str(name): ", ".join(map(str, found[name].dropna().unique())) for name in found}


def _again(places: list[Path]) -> str:
    """The commands that train, and where that was done certify further, the trials in these folders."""
    certified = [place for place in places if (place / certification.CERTIFICATION).exists()]
    trials = [certification.trial_of(place) if place in certified else place for place in places]
    files = [str(_from_here(trial / folder.TRIAL, 5)) for trial in trials]
    lines = [shlex.join(["uv", "run", "python", "-m", "harness.trial", *files, "--results-dir", "again"])]
    if certified:
        told = folder.read_judged(certified[0] / certification.CERTIFICATION).config.evaluation
        options = ["--stages", ",".join(told.stages)]
        options += ["--seconds", f"{told.bab_seconds:g}"] if BAB in told.stages and told.bab_seconds else []
        options += ["--branches", str(told.bab_branches)] if BAB in told.stages and told.bab_branches else []
        options += ["--images", str(told.test_images)] if told.test_images else []
        options += ["--certificates"] if told.certificates else []
        sweep, keys = trials[0].parents[1].name, [trial.name for trial in trials]
        again = [f"again/{sweep}/trials/{key}" for key in keys]
        lines.append(shlex.join(["uv", "run", "python", "-m", "harness.certify", *again, *options]))
    return "\n".join(lines)


def _recheck(sweep: Path) -> str:
    """The command that proves verdicts again, of those trials whose weights are there; empty where none are."""
    finished = [trial for trial in folder.trial_folders(sweep) if (trial / folder.RESULT).exists()]
    proved = [trial.name for trial in finished if (trial / folder.WEIGHTS).exists()]
    only = [] if len(proved) == len(finished) else [word for key in proved for word in ("--only", key)]
    words = ["uv", "run", "python", "-m", "harness.recheck", str(_from_here(sweep, 2)), *only]
    return shlex.join(words) if proved else ""


def _from_here(path: Path, parts: int) -> Path:
    """A path as commands in the working directory take it; its last `parts` where it lies elsewhere."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-parts:])


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directories(parser, "of several, a page over all is written too")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where no page can be made."""
    if len(options.directories) == 1:
        write(options.directories[0], options.data_dir)
        print(options.directories[0] / REPORT)
        return OK
    sweeps = [directory for directory in options.directories if folder.trial_folders(directory)]
    if not sweeps:
        raise InputError(f"none of {', '.join(map(str, options.directories))} holds trials: give results/<sweep>")
    written = [write(directory, options.data_dir) for directory in sweeps]
    for directory in sweeps:
        print(directory / REPORT)
    print(overview.write(sweeps[0].parent, written))
    return OK
