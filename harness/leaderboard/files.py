"""A sweep's leaderboard as Markdown, LaTeX, CSV and JSON, and printed.

Markdown also shows notes, warnings and failures.
"""

import json
import re
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.common.terminal import one_line, print_table
from harness.leaderboard.evaluations import LABEL
from harness.leaderboard.latex import latex_tables
from harness.leaderboard.section import row_label
from harness.leaderboard.sentences import SUMMARY_LEGEND
from harness.leaderboard.table import Leaderboard, build_leaderboard
from harness.storage.files import read_text, write_text

LEGEND = (
    "Errors in percent; mean ± sample standard deviation over the seeds; best certified error first, but rows of one "
    "or two seeds after those of more. The robust error lies between the attack error and the certified error. "
    f"~: no significant difference from the first row. {SUMMARY_LEGEND} "
    "Rows in italics, with a source, are numbers from papers."
)
_NOT_IN_LABELS = (*LABEL, "profile", "recipe_version", "seed", "network", "problem")  # of what is not counted
UNCOUNTED = "Networks that the tables do not count"
_MARKDOWN = re.compile(r"[\\|*]|(?<![A-Za-z0-9])_|~(?=\S)|\](?=[(\[:])")
"""Characters of markup, where they are some: `_` in a word, `~` before a space and lists such as [7, 9] are none."""
LATEX_TABLE = "leaderboard.tex"
_FORMULA = ("=", "+", "-", "@")


def leaderboard_files(directory: Path) -> list[Path]:
    """Return where a sweep's leaderboard is written; its table in LaTeX only where a user asked for it."""
    return [directory / name for name in ("leaderboard.md", LATEX_TABLE, "leaderboard.csv", "leaderboard.json")]


def write_leaderboard(directory: Path, latex: bool = False) -> Leaderboard:
    """Return the leaderboard of a sweep's `directory`, after writing leaderboard.md, .csv and .json there.

    latex: also write leaderboard.tex, which is written anew in any case where it exists.
    """
    leaderboard = build_leaderboard(directory)
    for path, text in zip(leaderboard_files(directory), leaderboard_texts(leaderboard), strict=True):
        is_wanted = path.name != LATEX_TABLE or latex or path.exists()
        if is_wanted and not (path.exists() and read_text(path) == text):
            write_text(path, text)
    return leaderboard


def leaderboard_texts(leaderboard: Leaderboard) -> list[str]:
    """Return the content of each of `leaderboard_files`."""
    rows = leaderboard.rows.assign(warnings=leaderboard.rows["warnings"].map("; ".join, na_action="ignore"))
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    records = [{name: value for name, value in row.items() if name != "source" or value} for row in records]
    return [
        _markdown(leaderboard),
        latex_tables(leaderboard),
        csv_text(rows),
        json.dumps(records, indent=1, allow_nan=False) + "\n",
    ]


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV, in which a spreadsheet finds no formula: `'` stands before texts that would be one."""
    is_formula = frame.map(lambda cell: isinstance(cell, str) and cell.startswith(_FORMULA))
    return frame.mask(is_formula, "'" + frame.astype(str)).to_csv(index=False, lineterminator="\n")


def _markdown(leaderboard: Leaderboard) -> str:
    parts = [f"# Leaderboard of the sweep {markdown_text(leaderboard.sweep)}\n"]
    for section in leaderboard.sections:
        parts += [f"## {markdown_text(section.heading)}\n"]
        parts += [f"**{markdown_text(note)}**\n" for note in section.notes]
        parts += [markdown_table(section.short_table, section.is_literature)]
        parts += [f"{markdown_text(line)}\n" for line in section.sentences]
        parts += [f"- Warning: {markdown_text(warning)}\n" for warning in section.warnings]
        if len(stages := section.stages):
            parts += [f"{section.stages_legend}\n", markdown_table(stages)]
    parts += [f"{markdown_text(leaderboard.left_out)}\n"] if leaderboard.left_out else []
    if len(leaderboard.uncounted):
        parts += [f"## {UNCOUNTED}\n", markdown_table(leaderboard.uncounted)]
    return "\n".join([*parts, f"{LEGEND}\n"])


def markdown_text(text: str) -> str:
    """Return one line of text, with nothing in it that Markdown would take for markup."""
    return " ".join(_MARKDOWN.sub(r"\\\g<0>", text).replace("<", "&lt;").split())


def markdown_table(frame: pd.DataFrame, in_italics: list[bool] | None = None) -> str:
    """Return an aligned GitHub table of text. in_italics: which rows are."""
    cells = frame.map(markdown_text)
    if in_italics:
        cells[in_italics] = cells[in_italics].map(lambda cell: f"*{cell}*" if cell else "")
    lines = [[markdown_text(title) for title in frame], *cells.to_numpy().tolist()]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def print_leaderboard(leaderboard: Leaderboard, console: Console) -> None:
    """Print the sections and where the files are."""
    print_sections(leaderboard, console)
    console.print("", *filter(Path.exists, leaderboard_files(leaderboard.directory)), sep="\n")


def print_sections(leaderboard: Leaderboard, console: Console) -> None:
    """Print the errors, each section's summary, warnings and failures: in a pipe whole."""
    for section in leaderboard.sections:
        table = section.short_table
        console.print(f"\n{leaderboard.sweep}: {section.heading}", style="bold")
        for note in section.notes:
            console.print(note, style="yellow")
        styles = ["italic" if is_literature else "" for is_literature in section.is_literature]
        print_table(console, list(table), table.to_numpy(), styles)
        for line in section.sentences:
            console.print(line)
        for warning in section.warnings:
            console.print(one_line(f"Warning: {warning}"))
    if leaderboard.left_out:
        console.print(f"\n{leaderboard.left_out}")
    if len(leaderboard.uncounted):
        console.print(f"\n{UNCOUNTED}", style="bold")
    for row in leaderboard.uncounted.to_dict("records"):
        own = row_label(row, [name for name in row if name not in _NOT_IN_LABELS])
        line = f"{own} seed {row['seed']} ({row['network']}): {row['problem']}"
        console.print(one_line(line) if console.is_terminal else " ".join(line.split()))
