"""A sweep as one page that opens offline: report.html, with its figures; for LaTeX, also figures/ as PDF."""

import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness.config.file import CHANGED
from harness.config.training import missing_text
from harness.leaderboard.columns import COLUMNS, PAGE, PERCENT, TABLES, titles_of
from harness.leaderboard.files import LATEX_TABLE, LEGEND, UNCOUNTED, write_leaderboard
from harness.leaderboard.section import as_text
from harness.leaderboard.table import Leaderboard, SectionTable
from harness.report.figures import style
from harness.report.figures.catalogue import figures_of
from harness.report.figures.section_data import SectionData
from harness.storage import folder
from harness.storage.files import write_text
from harness.storage.sweep_file import SWEEP

_CODE = re.compile("`([^`]+)`")
_MAIN = titles_of(TABLES, PAGE)
_PERCENT = {column.title: f"{column.title}, %" for column in COLUMNS if column.format == PERCENT}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters["code"] = lambda text: Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def render(template: str, **values: Any) -> str:
    """Return a page made from a template of this folder."""
    return _TEMPLATES.get_template(template).render(**values) + "\n"


def write_sweep(directory: Path, data_dir: str | None = None, latex: bool = False) -> Leaderboard:
    """Write the sweep's tables and page, and return the leaderboard.

    data_dir: where the images of the data set are looked for; without them one figure is missing.
    latex: also write leaderboard.tex and the figures as PDF; where leaderboard.tex exists, they are always written.
    Raises InputError where no table can be made.
    """
    leaderboard = write_leaderboard(directory, latex)
    write_page(leaderboard, data_dir)
    return leaderboard


def write_page(leaderboard: Leaderboard, data_dir: str | None = None) -> None:
    """Write the page of a leaderboard and, where leaderboard.tex exists, its figures as PDF."""
    figures = leaderboard.directory / folder.FIGURES if (leaderboard.directory / LATEX_TABLE).exists() else None
    parts, listed = [], set[tuple[Path, ...]]()
    for number, section in enumerate(leaderboard.sections):
        part = _part(section, listed)
        if len(section.trials):
            part["pictures"] = _pictures(SectionData(section, leaderboard.sections, data_dir), figures, f"{number}-")
        parts.append(part)
    page = render(
        "sweep_page.html.jinja",
        leaderboard=leaderboard,
        parts=parts,
        recheck=_recheck_command(leaderboard.directory),
        legend=LEGEND,
        uncounted=UNCOUNTED,
    )
    write_text(leaderboard.directory / folder.REPORT, page)


def _part(section: SectionTable, listed: set[tuple[Path, ...]]) -> dict[str, Any]:
    """Return what the page shows of a section, but for its figures.

    listed: the networks of rows whose commands stand on the page already, in other sections; this adds to them.
    """
    cells = section.marked_table.drop(columns="source")  # the label of a row of a paper has it
    main, hidden = [name for name in _MAIN if name in cells], [name for name in cells if name not in _MAIN]
    shared = [name for name in section.settings if name not in section.differing] if len(section.own) else []
    environments = pd.DataFrame([result.environment for result in section.trials["result"]])
    rows = {label: [*paths] for label, paths in section.trials.groupby("label", sort=False)["evaluation_dir"]}
    networks = {label: tuple(map(folder.network_of, paths)) for label, paths in rows.items()}
    new = [label for label in rows if networks[label] not in listed]
    listed |= set(networks.values())
    return {
        "section": section,
        "cells": cells[main + hidden].rename(columns=_PERCENT),
        "hidden": [_PERCENT.get(name, name) for name in hidden],
        "stages": section.stages,
        "shared": {name: as_text(section.own[name].iloc[0]) or missing_text(name) for name in shared},
        "environments": {name: ", ".join(map(str, its.dropna().unique())) for name, its in environments.items()},
        "commands": {label: _commands(rows[label], section.profile) for label in new},
    }


def _pictures(data: SectionData, directory: Path | None, prefix: str) -> list[dict[str, str | bool]]:
    """Return each figure of a section as it stands on the page, or why it cannot be drawn.

    directory: where they are also written as PDF.
    """
    pictures: list[dict[str, str | bool]] = []
    for kind, figure in figures_of(data):
        if isinstance(figure, str):
            pictures.append({"missing": f"{kind.title} cannot be drawn: {figure}"})
            continue
        name, caption = f"{prefix}{kind.name}", f"{kind.caption} {figure.get_label()}".strip()
        markup = style.svg(figure, name, f"{kind.title}. {caption}")
        pictures.append({"title": kind.title, "caption": caption, "markup": markup, "broad": kind.broad})
        if directory is not None:
            style.write_pdf(figure, directory / f"{name}.pdf")
    return pictures


def _commands(evaluation_dirs: list[Path], profile: str) -> str:
    """Return the command that trains and evaluates the networks of a row again; of a search, all of its study.

    profile: of the row, such as 'cpu --set train.epochs=5'.
    """
    network_dirs = [folder.network_of(path) for path in evaluation_dirs]
    sweep_dir = folder.sweep_dir_of(network_dirs[0])
    file, options = _relative(sweep_dir / SWEEP, 3), list[str]()
    if not (sweep_dir / SWEEP).exists():  # of published results
        name, *changes = profile.split(CHANGED)
        beside = sweep_dir / f"{sweep_dir.name}.yaml"
        file = _relative(beside, 4) if beside.exists() else Path("sweeps", beside.name)
        options = ["--profile", name]
        options += [word for change in changes for word in ("--set", change)]
    if not any((path / folder.CHOSEN).exists() for path in network_dirs):
        options += [word for path in network_dirs for word in ("--only", path.name)]
    return _command("run", str(file), "--here", *options, "--results-dir", "again")


def _recheck_command(sweep_dir: Path) -> str:
    """Return the command that proves verdicts again, of networks whose weights are there; empty where none are."""
    finished = [path for path in folder.network_folders(sweep_dir) if any(path.glob(f"*/*/{folder.RESULT}"))]
    proved = [path for path in finished if (path / folder.WEIGHTS).exists()]
    only = [word for path in proved for word in ("--only", path.name)] if len(proved) < len(finished) else []
    return _command("recheck", str(_relative(sweep_dir, 2)), *only) if proved else ""


def _command(name: str, *arguments: str) -> str:
    return shlex.join(["uv", "run", "python", "-m", f"harness.{name}", *arguments])


def _relative(path: Path, parts: int) -> Path:
    """Return a path from the working directory; its last `parts` where it lies elsewhere."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-parts:])
