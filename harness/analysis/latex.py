"""A leaderboard as LaTeX tables (booktabs): errors, what each stage decides, costs, differences to the best row."""

import math
import re
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS
from harness.analysis.leaderboard import Table
from harness.analysis.section import Section
from harness.analysis.stages import stages_table
from harness.analysis.summary import Summary

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_MAIN = ("certified error", "attack error", "standard error", "open", "seeds")
_COST = ("parameters", "train seconds", "evaluation seconds an image")
_TIED = r"$^{\sim}$"
_FIRST, _SMALL = "0.25\\linewidth", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
_SHRUNK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}"
_SHRUNK_END = "\\end{tabular}}"
_MEANT = (
    "Mean ± sample deviation over seeds; bold: best; ~: not told from the best by a paired test; italics: published"
)


def escaped(text: str) -> str:
    """Text with nothing in it that TeX would take for a command."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex(table: Table, said: dict[str, Summary]) -> str:
    """All tables of today's sections. said: of each section, by its heading, what it says."""
    parts = [f"% The leaderboard of {table.sweep}; needs \\usepackage{{booktabs,graphicx}}.\n"]
    for number, section in enumerate(section for section in table.sections if not section.stale):
        mine = said[section.heading]
        kept = [_main(section, mine), stages_table(table, section).map(escaped), _cost(section), _paired(mine)]
        titles = ("Errors in percent", "What each stage decides", "Costs", "Differences to the best row, in points")
        for name, title, frame in zip(("main", "stages", "cost", "paired"), titles, kept, strict=True):
            if len(frame):
                caption = f"{title}: {section.heading}."
                if name == "paired":
                    caption = f"{title}, {mine.differences['other'].iloc[0]}: {section.heading}."
                if name == "main":
                    caption += f" {_MEANT}{'' if section.whole else ', and not comparable with these'}."
                text = _floating(frame, caption, f"tab:{re.sub(r'[^A-Za-z0-9.:-]', '-', table.sweep)}-{number}-{name}")
                parts.append(_ruled(text) if name == "main" and not section.whole else text)
    return "\n".join(parts)


def _floating(frame: pd.DataFrame, caption: str, label: str) -> str:
    """frame: cells as TeX, titles as text; small, with a first column that breaks, no wider than a line."""
    style = frame.rename(columns=escaped).style.hide(axis="index")
    columns = rf"@{{}}p{{{_FIRST}}}" + "r" * (frame.shape[1] - 1) + "@{}"
    text = style.to_latex(
        hrules=True, column_format=columns, caption=escaped(caption), label=label, position_float="centering"
    )
    for plain, ours in (("\\centering\n", _SMALL), ("\\begin{tabular}", _SHRUNK), ("\\end{tabular}", _SHRUNK_END)):
        text = text.replace(plain, ours, 1)
    return text


def _ruled(text: str) -> str:
    """A rule before the published rows, which are in italics and stand last."""
    lines = text.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if line.startswith(r"\textit{")), None)
    return text if first is None else "".join([*lines[:first], "\\midrule\n", *lines[first:]])


def _main(section: Section, said: Summary) -> pd.DataFrame:
    """Errors with the best of each column in bold, ties with the best marked, published rows in italics."""
    shown = section.shown
    titles = [title for title in _MAIN if title in shown]
    frame = shown[titles].map(escaped)
    frame.insert(0, "network", _labels(section, said))
    for column in (column for column in COLUMNS if column.title in titles):
        best = section.own[column.name].min()
        for place in section.own.index[section.own[column.name] == best]:
            frame.loc[place, column.title] = rf"\textbf{{{frame.loc[place, column.title]}}}"
    published = section.rows.index[section.published]
    frame.loc[published] = frame.loc[published].map(lambda cell: rf"\textit{{{cell}}}" if cell else "")
    return frame


def _labels(section: Section, said: Summary) -> list[str]:
    return [escaped(label) + _TIED * (label in said.tied) for label in section.labels]


def _cost(section: Section) -> pd.DataFrame:
    shown = section.shown.assign(row=section.labels).loc[section.own.index]
    return shown[["row", *(title for title in _COST if title in shown)]].map(escaped)


def _paired(said: Summary) -> pd.DataFrame:
    """Certified error of each row minus the best one's on the same images and seeds."""
    return pd.DataFrame(list(map(_difference, said.differences.to_dict("records"))))


def _difference(line: dict[str, Any]) -> dict[str, str]:
    spread = "" if math.isnan(line["difference_std"]) else f" ± {line['difference_std']:.2f}"
    return {
        "row": escaped(line["row"]),
        "difference": escaped(f"{line['difference']:+.2f}{spread}"),
        "images right alone": f"{line['row_alone']} / {line['other_alone']}",
        "p (t test, Holm)": "" if math.isnan(line["t_holm"]) else f"{line['t_holm']:.2g}",
    }
