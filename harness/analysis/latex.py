"""A leaderboard as LaTeX tables (booktabs, graphicx): errors, what each stage decides, costs, differences."""

import math
import re
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS
from harness.analysis.leaderboard import Leaderboard, Section, stages_table
from harness.analysis.summary import FEWEST_SEEDS, Summary

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_MAIN = ("certified error", "attack error", "standard error", "undecided", "seeds")
_COST = ("parameters", "train seconds", "evaluation seconds an image")
_REPLACED = (  # small, no wider than a line
    ("\\centering\n", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"),
    ("\\begin{tabular}", "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}"),
    ("\\end{tabular}", "\\end{tabular}}"),
)
_LEGEND = (
    "Mean ± sample deviation over seeds; bold: best; ~: no significant difference from the best row; italics: published"
)


def escape(text: str) -> str:
    """Return text with nothing in it that TeX would take for a command."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex(leaderboard: Leaderboard, summaries: dict[str, Summary]) -> str:
    """Return all tables of sections of the current recipe. summaries: by the sections' headings."""
    parts = [f"% The leaderboard of {leaderboard.sweep}; needs \\usepackage{{booktabs,graphicx}}.\n"]
    sweep = re.sub(r"[^A-Za-z0-9.:-]", "-", leaderboard.sweep)
    for number, section in enumerate(section for section in leaderboard.sections if not section.is_stale):
        differences = summaries[section.heading].differences
        baseline = f", {differences['other'].iloc[0]}" if len(differences) else ""
        incomparable = "" if section.is_full_size else ", and not comparable with these"
        tables = {
            "main": ("Errors in percent", _main(section, summaries[section.heading]), f" {_LEGEND}{incomparable}."),
            "stages": ("What each stage decides", stages_table(leaderboard, section).map(escape), ""),
            "cost": ("Costs", _cost(section), ""),
            "paired": (f"Differences to the best row, in points{baseline}", _differences(differences), ""),
        }
        for name, (title, frame, legend) in tables.items():
            if len(frame):
                text = _table(frame, f"{title}: {section.heading}.{legend}", f"tab:{sweep}-{number}-{name}")
                parts.append(_rule_above_published(text) if name == "main" and not section.is_full_size else text)
    return "\n".join(parts)


def _table(frame: pd.DataFrame, caption: str, label: str) -> str:
    """Return a floating table. frame: cells as TeX, titles as text; the first column breaks lines."""
    columns = r"@{}p{0.25\linewidth}" + "r" * (frame.shape[1] - 1) + "@{}"
    text = (
        frame.rename(columns=escape)
        .style.hide(axis="index")
        .to_latex(hrules=True, column_format=columns, caption=escape(caption), label=label, position_float="centering")
    )
    for plain, ours in _REPLACED:
        text = text.replace(plain, ours, 1)
    return text


def _rule_above_published(text: str) -> str:
    """Return the table with a rule above the published rows, which are in italics and stand last."""
    lines = text.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if line.startswith(r"\textit{")), None)
    return text if first is None else "".join([*lines[:first], "\\midrule\n", *lines[first:]])


def _main(section: Section, summary: Summary) -> pd.DataFrame:
    """Return errors: the best of each column in bold, ties with the best marked, published rows in italics."""
    titles = [title for title in _MAIN if title in section.cells]
    frame = section.cells[titles].map(escape)
    labels = [escape(label) + r"$^{\sim}$" * (label in summary.tied) for label in section.labels]
    frame.insert(0, "network", labels)
    for column in (column for column in COLUMNS if column.title in titles):
        best = section.own[column.name].min()
        for row in section.own.index[section.own[column.name] == best]:
            frame.loc[row, column.title] = rf"\textbf{{{frame.loc[row, column.title]}}}"
    published = section.rows.index[section.published]
    frame.loc[published] = frame.loc[published].map(lambda cell: rf"\textit{{{cell}}}" if cell else "")
    return frame


def _cost(section: Section) -> pd.DataFrame:
    cells = section.cells.assign(row=section.labels).loc[section.own.index]
    return cells[["row", *(title for title in _COST if title in cells)]].map(escape)


def _differences(lines: pd.DataFrame) -> pd.DataFrame:
    """Return certified error of each row minus the best one's on the same images and seeds."""
    return pd.DataFrame([_difference(line) for line in lines.to_dict("records")])


def _difference(line: dict[str, Any]) -> dict[str, str]:
    spread = "" if math.isnan(line["difference_std"]) else f" ± {line['difference_std']:.2f}"
    tested = line["seeds"] >= FEWEST_SEEDS and not math.isnan(line["t_holm"])
    return {
        "row": escape(line["row"]),
        "difference": escape(f"{line['difference']:+.2f}{spread}"),
        "images right alone": f"{line['row_alone']} / {line['other_alone']}",
        "p (t test, Holm)": f"{line['t_holm']:.2g}" if tested else "",
    }
