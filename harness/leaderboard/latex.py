"""A leaderboard as LaTeX: a table of errors for each section."""

import re

from harness.common import names
from harness.common.terminal import one_line
from harness.leaderboard.columns import ERRORS
from harness.leaderboard.table import Leaderboard, Section

_LEGEND = (
    "Mean ± sample deviation over seeds; bold: best; ~: no significant difference from the best row; "
    "italics: from papers"
)
_CHARACTERS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def latex_tables(leaderboard: Leaderboard) -> str:
    """Return a table of errors for each section; needs the packages booktabs and graphicx."""
    sweep = re.sub(r"[^A-Za-z0-9.:-]", "-", leaderboard.sweep)
    tables = [_latex_table(section, f"tab:{sweep}-{number}") for number, section in enumerate(leaderboard.sections)]
    return "".join([f"% The leaderboard of {leaderboard.sweep}; needs \\usepackage{{booktabs,graphicx}}.\n", *tables])


def _latex_table(section: Section, label: str) -> str:
    """Return the short table, the best of each column in bold, the literature in italics, and what to know of it.

    Few undecided images are no merit: a network that predicts one class for all images has none.
    """
    table = section.short_table.drop(columns="#").map(_escape)
    table["row"] += [r"$^{\sim}$" if label in section.summary.tied else "" for label in section.labels]
    rows = section.comparable
    for column in (column for column in ERRORS if column.title in table and column.name != names.UNDECIDED_ERROR):
        best = rows.index[rows[column.name] == rows[column.name].min()]
        table.loc[best, column.title] = table.loc[best, column.title].map(r"\textbf{{{}}}".format)
    table[section.is_literature] = table[section.is_literature].map(lambda cell: rf"\textit{{{cell}}}" if cell else "")
    lines = [" & ".join(cells) + r" \\" for cells in (table.columns, *table.to_numpy())]
    lines.insert(1, r"\midrule")
    if not section.is_full_size and any(section.is_literature):
        lines.insert(-sum(section.is_literature), r"\midrule")
    warnings = [f"Warning: {one_line(warning)}" for warning in section.warnings]
    comparable = "" if section.is_full_size else ", and not comparable with these"
    caption = f"Errors in percent: {section.heading}. {_LEGEND}{comparable}."
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
    return "".join(_CHARACTERS.get(character, character) for character in text)
