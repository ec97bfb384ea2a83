"""A leaderboard as LaTeX: a table of errors for each section; comparisons of its rows, too."""

import re
from collections.abc import Sequence

import pandas as pd

from harness.common import names
from harness.common.terminal import one_line
from harness.leaderboard.columns import ERRORS
from harness.leaderboard.comparisons import ALL, SIGNIFICANCE
from harness.leaderboard.section import FEWEST_SEEDS
from harness.leaderboard.table import Leaderboard, SectionTable

_LEGEND = (
    "Mean ± sample deviation over seeds; bold: best{}; ~: no significant difference from the best row; "
    "italics: from papers"
)
_CHARACTERS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


_COMPARISON_LEGEND = (
    "the row's error minus the other's, in points, mean ± sample deviation over common seeds; p: paired t test over "
    "seeds, of one seed McNemar's test over images; corrected: by Holm for all pairs; bold: significant"
)


def latex_tables(leaderboard: Leaderboard, name: str | None = None) -> str:
    """Return a table of errors for each section; needs the packages booktabs and graphicx.

    name: in the tables' labels; default: the sweep's.
    """
    title = "The rows of all directories that were compared" if name else f"The leaderboard of {leaderboard.sweep}"
    name = re.sub(r"[^A-Za-z0-9.:-]", "-", name or leaderboard.sweep)
    tables = [_latex_table(section, f"tab:{name}-{number}") for number, section in enumerate(leaderboard.sections)]
    return "".join([f"% {title}; needs \\usepackage{{booktabs,graphicx}}.\n", *tables])


def latex_comparisons(lines: pd.DataFrame, name: str) -> str:
    """Return a table of the pairs of rows that were compared, for each section.

    lines: of `compare`. name: in the tables' labels.
    """
    tables = []
    for number, (heading, part) in enumerate(lines.groupby("section", sort=False)):
        pairs = [_compared(pair) for _, pair in part.groupby(["row", "other"], sort=False)]
        titles = ("row", "against", "difference", "seeds", "p", "corrected")
        caption = f"Differences of the {part['metric'].iloc[0]} error: {heading}. Difference: {_COMPARISON_LEGEND}."
        lines_of_table = [" & ".join(cells) + r" \\" for cells in (titles, *pairs)]
        lines_of_table.insert(1, r"\midrule")
        tables.append(_framed(lines_of_table, len(titles), caption, f"tab:{name}-pairs-{number}"))
    return "".join(tables)


def _compared(pair: pd.DataFrame) -> list[str]:
    """Return the cells of a pair of rows. pair: its lines of `compare`."""
    together, seeds = pair[pair["seed"] == ALL].iloc[0], pair[pair["seed"] != ALL]
    p, corrected = together["t_p"], together["t_holm"]
    if len(seeds) == 1:
        p, corrected = seeds.iloc[0][["mcnemar_p", "mcnemar_holm"]]
    deviation = "" if pd.isna(together["difference_std"]) else f" ± {together['difference_std']:.2f}"
    p_values = ["" if pd.isna(value) else f"{value:.2g}" for value in (p, corrected)]
    texts = [
        together["row"],
        together["other"],
        f"{together['difference']:+.2f}{deviation}",
        str(len(seeds)),
        *p_values,
    ]
    cells = list(map(_escape, texts))
    return [*cells[:-1], rf"\textbf{{{cells[-1]}}}"] if corrected < SIGNIFICANCE else cells


def _latex_table(section: SectionTable, label: str) -> str:
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
    apart = f", of rows with {FEWEST_SEEDS} seeds or as many as others" if len(rows) < len(section.own) else ""
    caption = f"Errors in percent: {section.heading}. {_LEGEND.format(apart)}{comparable}."
    below = [*section.notes, *warnings]
    return _framed(lines, table.shape[1], caption, label, below)


def _framed(lines: list[str], columns: int, caption: str, label: str, below: Sequence[str] = ()) -> str:
    """Return lines of a table with what LaTeX needs around them. below: sentences."""
    frame = [
        "",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escape(caption)}}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # no wider than a line
        rf"\begin{{tabular}}{{@{{}}p{{0.25\linewidth}}{'r' * (columns - 1)}@{{}}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"\par\raggedright {_escape(line)}" for line in below),
        r"\end{table}",
        "",
    ]
    return "\n".join(frame)


def _escape(text: str) -> str:
    """Return text with nothing in it that TeX would take for a command."""
    return "".join(_CHARACTERS.get(character, character) for character in text)
