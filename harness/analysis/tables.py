"""A sweep's leaderboard, written as Markdown, LaTeX, CSV and JSON, and printed.

LaTeX, CSV and JSON hold today's recipe and published numbers; Markdown shows stale sections and failures too.
"""

import json
from functools import partial
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from harness.analysis.columns import of_group
from harness.analysis.latex import latex
from harness.analysis.leaderboard import Table, build
from harness.analysis.section import Section, row_label
from harness.analysis.stages import STAGES_LEGEND, stages_table
from harness.analysis.summary import Summary, summaries
from harness.storage.files import write_text

LEGEND = (
    "Errors in percent; mean ± sample standard deviation over the seeds; best certified error first, but rows of one "
    "seed after those of more. "
    "The robust error lies between the attack error, were every open example robust, and the certified error, were "
    "none. ~: not told from the first by a paired test over the seeds. "
    "Rows in italics, with a source, are published numbers."
)
FAILURES = "Trials without a result"


def markdown_text(text: str) -> str:
    """One line of text, with nothing in it that Markdown would take for markup."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").split())


def markdown_table(shown: pd.DataFrame, published: list[bool]) -> str:
    """An aligned GitHub table of text, published rows in italics."""
    lines = [[markdown_text(cell) for cell in line] for line in (shown.columns, *shown.to_numpy())]
    for line, italic in zip(lines[1:], published, strict=True):
        line[:] = [f"*{cell}*" if italic and cell else cell for cell in line]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _markdown(table: Table, said: dict[str, Summary]) -> str:
    parts = [f"# Leaderboard of the sweep {markdown_text(table.sweep)}\n"]
    for section in table.sections:
        parts += [f"## {markdown_text(section.heading)}\n"]
        parts += [f"**{markdown_text(note)}**\n" for note in section.notes]
        parts += [markdown_table(marked(section, said[section.heading]), section.published)]
        parts += [f"- Warning: {markdown_text(warning)}\n" for warning in section.warnings]
        if len(own := stages_table(table, section)):
            parts += [f"{STAGES_LEGEND}\n", markdown_table(own, [False] * len(own))]
    if len(table.failures):
        parts += [f"## {FAILURES}\n", markdown_table(table.failures, [False] * len(table.failures))]
    return "\n".join([*parts, f"{LEGEND}\n"])


def marked(section: Section, said: Summary) -> pd.DataFrame:
    """The section's rows as text, those that are not told from the best with a mark at their rank."""
    shown, tied = section.shown, [label in said.tied for label in section.labels]
    return shown.assign(**{"#": [f"{rank} ~" if alike else rank for rank, alike in zip(shown["#"], tied, strict=True)]})


def write(directory: Path) -> tuple[Table, dict[str, Summary]]:
    """Build the leaderboard of `directory` and write leaderboard.md, .tex, .csv and .json there.

    Returns it, and what each section says, by its heading.
    """
    table = build(directory)
    said = summaries(table)
    plain = table.rows.astype(object).where(table.rows.notna(), None).to_dict("records")
    objects = [{name: value for name, value in row.items() if name != "source" or value} for row in plain]
    as_json = json.dumps(objects, indent=1, allow_nan=False) + "\n"
    texts = [_markdown(table, said), latex(table, said), table.rows.to_csv(index=False, lineterminator="\n"), as_json]
    for path, text in zip(table.files, texts, strict=True):
        write_text(path, text)
    return table, said


def show(table: Table, said: dict[str, Summary], console: Console) -> None:
    """Print the leaderboard's main columns, as many as fit, with all notes and failures, and where its files are."""
    say = partial(console.print, markup=False, highlight=False)
    fitting = of_group("error", "open", "width") if console.width >= 110 else of_group("error")
    for section in table.sections:
        titles = [column.title for column in fitting if column.title in section.shown] + ["seeds"]
        say(f"\n{table.sweep}: {section.heading}", style="bold")
        for note in section.notes:
            say(note, style="yellow")
        grid = RichTable(Column("row", overflow="fold"), *titles, box=box.SIMPLE_HEAD, show_edge=False)
        numbers, mine = section.shown[titles].to_numpy(), said[section.heading]
        for label, cells, published in zip(section.labels, numbers, section.published, strict=True):
            marked = f"~ {label}" if label in mine.tied else label
            grid.add_row(*map(Text, [marked, *cells]), style="italic" if published else None)
        console.print(grid)
        for warning in section.warnings:
            say(f"Warning: {warning}")
        for line in mine.lines:
            say(line, soft_wrap=True)
    if len(table.failures):
        say(f"\n{FAILURES}", style="bold")
    for trial in table.failures.to_dict("records"):
        say(f"{row_label(trial)} seed {trial['seed']}: {trial['problem']}")
    say("", *table.files, sep="\n", soft_wrap=True)
