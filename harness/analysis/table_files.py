"""A sweep's leaderboard as Markdown, LaTeX, CSV and JSON, and printed.

LaTeX, CSV and JSON hold the current recipe and published numbers; Markdown also shows stale sections and failures.
"""

import json
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.analysis.columns import columns_of
from harness.analysis.latex import latex
from harness.analysis.leaderboard import (
    STAGES_LEGEND,
    Leaderboard,
    Section,
    build_leaderboard,
    row_label,
    stages_table,
)
from harness.analysis.summary import SUMMARY_LEGEND, Summary, summaries_of
from harness.storage.files import write_text
from harness.terminal import one_line, print_table

LEGEND = (
    "Errors in percent; mean ± sample standard deviation over the seeds; best certified error first, but rows of one "
    "seed after those of more. The robust error lies between the attack error and the certified error. "
    f"~: no significant difference from the first row. {SUMMARY_LEGEND} "
    "Rows in italics, with a source, are published numbers."
)
FAILURES = "Trials without a result"
_WIDE = 110  # characters a line that show all main columns


def leaderboard_files(directory: Path) -> list[Path]:
    """Return where a sweep's leaderboard is written."""
    return [directory / f"leaderboard.{kind}" for kind in ("md", "tex", "csv", "json")]


def write_leaderboard(directory: Path) -> tuple[Leaderboard, dict[str, Summary]]:
    """Build the leaderboard of `directory` and write leaderboard.md, .tex, .csv and .json there.

    Returns it, and each section's summary by its heading.
    """
    leaderboard = build_leaderboard(directory)
    summaries = summaries_of(leaderboard)
    rows = leaderboard.rows.assign(warnings=leaderboard.rows["warnings"].map("; ".join, na_action="ignore"))
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    records = [{name: value for name, value in row.items() if name != "source" or value} for row in records]
    texts = [
        _markdown(leaderboard, summaries),
        latex(leaderboard, summaries),
        rows.to_csv(index=False, lineterminator="\n"),
        json.dumps(records, indent=1, allow_nan=False) + "\n",
    ]
    for path, text in zip(leaderboard_files(directory), texts, strict=True):
        write_text(path, text)
    return leaderboard, summaries


def _markdown(leaderboard: Leaderboard, summaries: dict[str, Summary]) -> str:
    parts = [f"# Leaderboard of the sweep {markdown_text(leaderboard.sweep)}\n"]
    for section in leaderboard.sections:
        summary = summaries[section.heading]
        parts += [f"## {markdown_text(section.heading)}\n"]
        parts += [f"**{markdown_text(note)}**\n" for note in section.notes]
        parts += [markdown_table(marked_cells(section, summary), section.published)]
        parts += [f"{markdown_text(line)}\n" for line in summary.lines]
        parts += [f"- Warning: {markdown_text(warning)}\n" for warning in section.warnings]
        if len(stages := stages_table(leaderboard, section)):
            parts += [f"{STAGES_LEGEND}\n", markdown_table(stages, [False] * len(stages))]
    if len(failures := leaderboard.failures):
        parts += [f"## {FAILURES}\n", markdown_table(failures, [False] * len(failures))]
    return "\n".join([*parts, f"{LEGEND}\n"])


def marked_cells(section: Section, summary: Summary) -> pd.DataFrame:
    """Return the section's cells with `~` at the ranks of rows that differ insignificantly from the best one."""
    ranks = zip(section.cells["#"], section.labels, strict=True)
    return section.cells.assign(**{"#": [f"{rank} ~" if label in summary.tied else rank for rank, label in ranks]})


def markdown_text(text: str) -> str:
    """Return one line of text, with nothing in it that Markdown would take for markup."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").split())


def markdown_table(frame: pd.DataFrame, published: list[bool]) -> str:
    """Return an aligned GitHub table of text, published rows in italics."""
    lines = [[markdown_text(cell) for cell in line] for line in (frame.columns, *frame.to_numpy())]
    for line, italic in zip(lines[1:], published, strict=True):
        line[:] = [f"*{cell}*" if italic and cell else cell for cell in line]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def print_leaderboard(leaderboard: Leaderboard, summaries: dict[str, Summary], console: Console) -> None:
    """Print the main columns, as many as fit, each section's summary, warnings, failures, and where the files are."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    columns = columns_of("error", "undecided", "width") if console.width >= _WIDE else columns_of("error")
    for section in leaderboard.sections:
        summary = summaries[section.heading]
        titles = [column.title for column in columns if column.title in section.cells] + ["seeds"]
        say(f"\n{leaderboard.sweep}: {section.heading}", style="bold")
        for note in section.notes:
            say(note, style="yellow")
        labels = [f"~ {label}" if label in summary.tied else label for label in section.labels]
        rows = [[label, *cells] for label, cells in zip(labels, section.cells[titles].to_numpy(), strict=True)]
        print_table(console, ["row", *titles], rows, ["italic" if own else "" for own in section.published])
        for warning in section.warnings:
            say(one_line(f"Warning: {warning}"))
        for line in summary.lines:
            say(line)
    if len(leaderboard.failures):
        say(f"\n{FAILURES}", style="bold")
    for trial in leaderboard.failures.to_dict("records"):
        say(one_line(f"{row_label(trial)} seed {trial['seed']}: {trial['problem']}"))
    say("", *leaderboard_files(leaderboard.directory), sep="\n")
