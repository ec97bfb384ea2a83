"""A sweep's leaderboard as Markdown, LaTeX, CSV and JSON, and printed.

Markdown also shows notes, warnings and failures.
"""

import json
import re
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from harness.common import names
from harness.common.terminal import one_line, print_table
from harness.leaderboard.columns import ERRORS
from harness.leaderboard.rows import PUBLISHED
from harness.leaderboard.summary import SUMMARY_LEGEND, Summary, summaries_of
from harness.leaderboard.table import Leaderboard, Section, build_leaderboard, row_label, stages_table
from harness.storage.files import read_text, write_text

LEGEND = (
    "Errors in percent; mean ± sample standard deviation over the seeds; best certified error first, but rows of one "
    "or two seeds after those of more. The robust error lies between the attack error and the certified error. "
    f"~: no significant difference from the first row. {SUMMARY_LEGEND} "
    "Rows in italics, with a source, are published numbers."
)
STAGES_LEGEND = (
    "For each stage: images that it decided, of the images that reached it, and seconds; means over the seeds."
)
_NEVER_LACKING = ("evaluation.stages", "evaluation.test_images")  # what errors are measured with, and on
UNCOUNTED = "Trials that the tables do not count"
_LATEX_LEGEND = (
    "Mean ± sample deviation over seeds; bold: best; ~: no significant difference from the best row; italics: published"
)
_MARKDOWN = re.compile(r"[\\|*]|(?<![A-Za-z0-9])_|~(?=\S)|\](?=[(\[:])")
"""Characters of markup, where they are some: `_` in a word, `~` before a space and lists such as [7, 9] are none."""
_LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


LATEX_TABLE = "leaderboard.tex"
_FORMULA = ("=", "+", "-", "@")


def leaderboard_files(directory: Path) -> list[Path]:
    """Return where a sweep's leaderboard is written; its table in LaTeX only where a user asked for it."""
    return [directory / name for name in ("leaderboard.md", LATEX_TABLE, "leaderboard.csv", "leaderboard.json")]


def write_leaderboard(directory: Path, latex: bool = False) -> tuple[Leaderboard, dict[str, Summary]]:
    """Build the leaderboard of `directory` and write leaderboard.md, .csv and .json there.

    latex: also write leaderboard.tex, which is written anew in any case where it exists.
    Returns the leaderboard, and each section's summary by its heading.
    """
    leaderboard = build_leaderboard(directory)
    summaries = summaries_of(leaderboard)
    for path, text in zip(leaderboard_files(directory), _texts(leaderboard, summaries), strict=True):
        is_wanted = path.name != LATEX_TABLE or latex or path.exists()
        if is_wanted and not (path.exists() and read_text(path) == text):
            write_text(path, text)
    return leaderboard, summaries


def changed_files(directory: Path) -> list[Path]:
    """Return the leaderboard's files in `directory` that say something else than `write_leaderboard` would write.

    Titles may have the name that the sweep was run by, since a directory may be renamed. CSV and JSON may lack columns:
    settings are added. Raises InputError as `write_leaderboard` does.
    """
    paths = leaderboard_files(directory)
    if not any(path.exists() for path in paths):
        return []
    leaderboard = build_leaderboard(directory)
    summaries = summaries_of(leaderboard)
    sweeps = {leaderboard.sweep, *leaderboard.trials["sweep"].dropna()}
    titled = [_texts(replace(leaderboard, directory=directory.parent / sweep), summaries) for sweep in sorted(sweeps)]
    allowed = zip(paths, zip(*titled, strict=True), strict=True)
    return [path for path, texts in allowed if path.exists() and not any(_is_part(path, text) for text in texts)]


def _is_part(path: Path, text: str) -> bool:
    """Return whether a file is this text, or a table in CSV or JSON without some settings of training or evaluation.

    Its rows must not differ in these.
    """
    recorded = read_text(path)
    if recorded == text or path.suffix not in (".csv", ".json"):
        return recorded == text
    try:
        if path.suffix == ".csv":
            part, whole = (pd.read_csv(StringIO(each), dtype=str, keep_default_na=False) for each in (recorded, text))
            may_lack = _may_lack(set(whole) - set(part), whole.to_dict("records"))
            return may_lack and part.equals(whole.reindex(columns=part.columns))
        records, wholes = json.loads(recorded), json.loads(text)
        has_all = all(row.items() <= whole.items() for row, whole in zip(records, wholes, strict=True))
        lacking = {name for row, whole in zip(records, wholes, strict=True) for name in whole.keys() - row.keys()}
        return has_all and _may_lack(lacking, wholes) and _json(records) == recorded  # a key may stand twice
    except (ValueError, TypeError, AttributeError, RecursionError):  # no table
        return False


def _may_lack(columns: set[str], rows: list[dict[str, Any]]) -> bool:
    """Return whether these columns are settings that may be younger than the file, with one value in all rows."""
    younger = {name for name in columns if name.startswith(("train.", "evaluation.")) and name not in _NEVER_LACKING}
    return younger == columns and all(len({str(row.get(name)) for row in rows}) == 1 for name in columns)


def _texts(leaderboard: Leaderboard, summaries: dict[str, Summary]) -> list[str]:
    """Return the content of each of `leaderboard_files`."""
    rows = leaderboard.rows.assign(warnings=leaderboard.rows["warnings"].map("; ".join, na_action="ignore"))
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    records = [{name: value for name, value in row.items() if name != "source" or value} for row in records]
    return [
        _markdown(leaderboard, summaries),
        _latex(leaderboard, summaries),
        csv_text(rows),
        _json(records),
    ]


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV, in which a spreadsheet finds no formula: `'` stands before texts that would be one."""
    is_formula = frame.map(lambda cell: isinstance(cell, str) and cell.startswith(_FORMULA))
    return frame.mask(is_formula, "'" + frame.astype(str)).to_csv(index=False, lineterminator="\n")


def _json(records: list[dict[str, Any]]) -> str:
    return json.dumps(records, indent=1, allow_nan=False) + "\n"


def full_table(section: Section, summary: Summary) -> pd.DataFrame:
    """Return a section's cells with `row`, the label, and `~` at the ranks of rows as good as the best one."""
    ranks = zip(section.cells["#"], section.labels, strict=True)
    table = section.cells.assign(**{"#": [f"{rank} ~" if label in summary.tied else rank for rank, label in ranks]})
    table.insert(1, "row", section.labels)
    return table


def short_table(section: Section, summary: Summary) -> pd.DataFrame:
    """Return a section's ranks, labels, errors, published errors of networks trained elsewhere, and seeds as text."""
    table = full_table(section, summary)
    published = [name for name in PUBLISHED if name in table and name.endswith("error")]
    return table[["#", "row", *(column.title for column in ERRORS if column.title in table), *published, "seeds"]]


def _markdown(leaderboard: Leaderboard, summaries: dict[str, Summary]) -> str:
    parts = [f"# Leaderboard of the sweep {markdown_text(leaderboard.sweep)}\n"]
    for section in leaderboard.sections:
        summary = summaries[section.heading]
        parts += [f"## {markdown_text(section.heading)}\n"]
        parts += [f"**{markdown_text(note)}**\n" for note in section.notes]
        parts += [markdown_table(full_table(section, summary).drop(columns="row"), section.is_published)]
        parts += [f"{markdown_text(line)}\n" for line in summary.lines]
        parts += [f"- Warning: {markdown_text(warning)}\n" for warning in section.warnings]
        if len(stages := stages_table(section)):
            parts += [f"{STAGES_LEGEND}\n", markdown_table(stages)]
    if len(leaderboard.uncounted):
        parts += [f"## {UNCOUNTED}\n", markdown_table(leaderboard.uncounted)]
    return "\n".join([*parts, f"{LEGEND}\n"])


def markdown_text(text: str) -> str:
    """Return one line of text, with nothing in it that Markdown would take for markup."""
    return " ".join(_MARKDOWN.sub(r"\\\g<0>", text).replace("<", "&lt;").split())


def markdown_table(frame: pd.DataFrame, published: list[bool] | None = None) -> str:
    """Return an aligned GitHub table of text, published rows in italics."""
    cells = frame.map(markdown_text)
    if published:
        cells[published] = cells[published].map(lambda cell: f"*{cell}*" if cell else "")
    lines = [[markdown_text(title) for title in frame], *cells.to_numpy().tolist()]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _latex(leaderboard: Leaderboard, summaries: dict[str, Summary]) -> str:
    """Return a table of errors for each section; needs the packages booktabs and graphicx."""
    sweep = re.sub(r"[^A-Za-z0-9.:-]", "-", leaderboard.sweep)
    tables = [
        _latex_table(section, summaries[section.heading], f"tab:{sweep}-{number}")
        for number, section in enumerate(leaderboard.sections)
    ]
    return "".join([f"% The leaderboard of {leaderboard.sweep}; needs \\usepackage{{booktabs,graphicx}}.\n", *tables])


def _latex_table(section: Section, summary: Summary, label: str) -> str:
    """Return the short table, the best of each column in bold, published rows in italics, and what to know of it.

    Few undecided images are no merit: a network that predicts one class for all images has none.
    """
    table = short_table(section, summary).drop(columns="#").map(_escape)
    table["row"] += [r"$^{\sim}$" if label in summary.tied else "" for label in section.labels]
    rows = section.comparable
    for column in (column for column in ERRORS if column.title in table and column.name != names.UNDECIDED_ERROR):
        best = rows.index[rows[column.name] == rows[column.name].min()]
        table.loc[best, column.title] = table.loc[best, column.title].map(r"\textbf{{{}}}".format)
    table[section.is_published] = table[section.is_published].map(lambda cell: rf"\textit{{{cell}}}" if cell else "")
    lines = [" & ".join(cells) + r" \\" for cells in (table.columns, *table.to_numpy())]
    lines.insert(1, r"\midrule")
    if not section.is_full_size and any(section.is_published):
        lines.insert(-sum(section.is_published), r"\midrule")
    warnings = [f"Warning: {one_line(warning)}" for warning in section.warnings]
    comparable = "" if section.is_full_size else ", and not comparable with these"
    caption = f"Errors in percent: {section.heading}. {_LATEX_LEGEND}{comparable}."
    frame = [
        "",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escape(caption)}}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # no wider than a line
        rf"\begin{{tabular}}{{@{{}}p{{0.25\linewidth}}{'r' * (table.shape[1] - 1)}@{{}}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"\par\raggedright {_escape(line)}" for line in [*section.notes, *warnings]),
        r"\end{table}",
        "",
    ]
    return "\n".join(frame)


def _escape(text: str) -> str:
    """Return text with nothing in it that TeX would take for a command."""
    return "".join(_LATEX_CHARACTERS.get(character, character) for character in text)


def print_leaderboard(leaderboard: Leaderboard, summaries: dict[str, Summary], console: Console) -> None:
    """Print the errors, each section's summary, warnings, failures, and where the files are."""
    say = partial(console.print, soft_wrap=True)
    for section in leaderboard.sections:
        summary = summaries[section.heading]
        table = short_table(section, summary)
        say(f"\n{leaderboard.sweep}: {section.heading}", style="bold")
        for note in section.notes:
            say(note, style="yellow")
        styles = ["italic" if is_published else "" for is_published in section.is_published]
        print_table(console, list(table), table.to_numpy(), styles)
        for warning in section.warnings:
            say(one_line(f"Warning: {warning}"))
        for line in summary.lines:
            say(line)
    if len(leaderboard.uncounted):
        say(f"\n{UNCOUNTED}", style="bold")
    for trial in leaderboard.uncounted.to_dict("records"):
        say(one_line(f"{row_label(trial)} seed {trial['seed']}: {trial['problem']}"))
    say("", *filter(Path.exists, leaderboard_files(leaderboard.directory)), sep="\n")
