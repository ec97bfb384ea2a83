"""A sweep as one page that opens offline: report.html, with its figures as SVG and PDF in figures/."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from harness.analysis.leaderboard import STAGES_LEGEND, Leaderboard, Section, absent, as_text, stages_table
from harness.analysis.summary import Summary, is_cerdeq_better
from harness.analysis.table_files import FAILURES, LEGEND, marked_cells, write_leaderboard
from harness.config.settings import BAB
from harness.figures import style
from harness.figures.catalogue import Kind, figures_of
from harness.figures.section_data import SectionData
from harness.storage import certification, folder
from harness.storage.files import write_text

REPORT, FIGURES = "report.html", "figures"
_MAIN = (
    "#", "row", "certified error", "attack error", "standard error", "undecided", "bound width", "parameters",
    "train seconds", "seeds",
)  # fmt: skip
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Picture:
    """A figure on the page, or `missing`: why it could not be drawn.

    path: of its files, without the suffix, from the page's directory.
    """

    kind: Kind
    path: str = ""
    markup: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Part:
    """A section on the page.

    answer: whether CerDEQ is better, one sentence.
    cells: as text, with `row`, its label; hidden: the columns behind the switch.
    shared: settings that all rows have. environments: what the trials ran on. commands: how to train each row again.
    """

    section: Section
    summary: Summary
    answer: str
    cells: pd.DataFrame
    hidden: list[str]
    stages: pd.DataFrame
    pictures: list[Picture]
    shared: dict[str, str]
    environments: dict[str, str]
    commands: dict[str, str]


def render(template: str, **values: Any) -> str:
    """Return a page made from a template of this folder."""
    return _TEMPLATES.get_template(template).render(**values) + "\n"


def write_sweep(directory: Path, data_dir: str | None = None) -> tuple[Leaderboard, dict[str, Summary]]:
    """Write the sweep's tables, figures and page; returns the leaderboard and its sections' summaries by heading.

    data_dir: where the images of the data set are looked for; without them one figure is missing.
    Raises InputError where no table can be made.
    """
    leaderboard, summaries = write_leaderboard(directory)
    write_page(leaderboard, summaries, data_dir)
    return leaderboard, summaries


def write_page(leaderboard: Leaderboard, summaries: dict[str, Summary], data_dir: str | None = None) -> Path:
    """Write the page of a leaderboard, and its figures; returns where the page is."""
    sections = [SectionData(leaderboard, section, data_dir) for section in leaderboard.sections]
    values = {
        "leaderboard": leaderboard,
        "parts": [_part(data, summaries[data.section.heading], number) for number, data in enumerate(sections)],
        "recheck": _recheck_command(leaderboard.directory),
        "legend": LEGEND,
        "failures": FAILURES,
        "stages_legend": STAGES_LEGEND,
    }
    path = leaderboard.directory / REPORT
    write_text(path, render("sweep_page.html.jinja", **values))
    return path


def _part(data: SectionData, summary: Summary, number: int) -> Part:
    section, trials = data.section, data.trials
    cells = marked_cells(section, summary).drop(columns="source")  # a published row's label has it
    cells.insert(1, "row", section.labels)
    first = [name for name in _MAIN if name in cells]
    hidden = [name for name in cells if name not in _MAIN]
    shared = [name for name in section.settings if name not in section.differing] if len(section.own) else []
    rows = list(trials.groupby("label", sort=False)["trial_dir"]) if len(trials) else []
    return Part(
        section=section,
        summary=summary,
        answer="" if section.is_stale else is_cerdeq_better(section, summary),
        cells=cells[first + hidden],
        hidden=hidden,
        stages=stages_table(data.leaderboard, section),
        pictures=[] if section.is_stale or trials.empty else _pictures(data, number),
        shared={name: as_text(section.own[name].iloc[0]) or absent(name) for name in shared},
        environments=_environments(data),
        commands={label: _commands(list(trial_dirs)) for label, trial_dirs in rows},
    )


def _pictures(data: SectionData, number: int) -> list[Picture]:
    pictures = []
    for kind, figure in figures_of(data):
        if isinstance(figure, str):
            pictures.append(Picture(kind, missing=f"{kind.title} cannot be drawn: {figure}"))
            continue
        name = f"{number}-{kind.name}"
        svg = style.write(figure, data.leaderboard.directory / FIGURES / name)
        pictures.append(Picture(kind, f"{FIGURES}/{name}", style.inline(svg, name, f"{kind.title}. {kind.caption}")))
    return pictures


def _environments(data: SectionData) -> dict[str, str]:
    """Return each fact about machines and versions with all values that the trials have."""
    trial_dirs = [] if data.trials.empty else data.trials["trial_dir"]
    facts = pd.DataFrame([data.leaderboard.results[path].environment for path in trial_dirs])
    return {str(name): ", ".join(map(str, facts[name].dropna().unique())) for name in facts}


def _commands(trial_dirs: list[Path]) -> str:
    """Return the commands that train, and where that was done certify further, these trials."""
    certified = [path for path in trial_dirs if (path / certification.CERTIFICATION).exists()]
    trials = [certification.trial_of(path) if path in certified else path for path in trial_dirs]
    files = [str(_relative(trial / folder.TRIAL, 5)) for trial in trials]
    lines = [shlex.join(["uv", "run", "python", "-m", "harness.trial", *files, "--results-dir", "again"])]
    if certified:
        settings = folder.read_certified_trial(certified[0] / certification.CERTIFICATION).config.evaluation
        branches = BAB in settings.stages
        options = ["--stages", ",".join(settings.stages)]
        options += ["--seconds", f"{settings.bab_seconds:g}"] if branches and settings.bab_seconds else []
        options += ["--branches", str(settings.bab_branches)] if branches and settings.bab_branches else []
        options += ["--images", str(settings.test_images)] if settings.test_images else []
        options += ["--certificates"] if settings.certificates else []
        again = [f"again/{trial.parents[1].name}/trials/{trial.name}" for trial in trials]
        lines.append(shlex.join(["uv", "run", "python", "-m", "harness.certify", *again, *options]))
    return "\n".join(lines)


def _recheck_command(sweep_dir: Path) -> str:
    """Return the command that proves verdicts again, of trials whose weights are there; empty where none are."""
    finished = [trial for trial in folder.trial_folders(sweep_dir) if (trial / folder.RESULT).exists()]
    proved = [trial.name for trial in finished if (trial / folder.WEIGHTS).exists()]
    only = [] if len(proved) == len(finished) else [word for key in proved for word in ("--only", key)]
    words = ["uv", "run", "python", "-m", "harness.recheck", str(_relative(sweep_dir, 2)), *only]
    return shlex.join(words) if proved else ""


def _relative(path: Path, parts: int) -> Path:
    """Return a path from the working directory; its last `parts` where it lies elsewhere."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-parts:])
