"""Is CerDEQ better here, by how much, and how sure is that? In sentences."""

import math
from typing import Any

import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.paired import compared
from harness.analysis.section import FEWEST_SEEDS, Section
from harness.storage import names

_CERDEQ = ("cerdeq", "deqlate", "deq7")
_TWIN = "recurrent=False"  # an explicit network, what CerDEQ is without its recurrence
_LEVEL = 0.05


def answer(table: Table, section: Section) -> list[str]:
    """For all methods together, then for each that has both: the best CerDEQ row against the best other one.

    One sentence that says what is missing where the section has not both.
    """
    rows = section.comparable
    if missing := _missing(section.own, rows):
        return [missing]
    lines = [_compared(table, section, rows)]
    if rows["method"].nunique() > 1:
        parts = [(method, part) for method, part in rows.groupby("method", sort=False) if not _missing(part, part)]
        lines += [f"By {method}: {_compared(table, section, part)}" for method, part in parts]
    return lines


def _is_cerdeq(rows: pd.DataFrame) -> pd.Series:
    twin = rows["options"].map(lambda options: _TWIN in options.split()).astype(bool)
    return rows["model"].isin(_CERDEQ) & ~twin


def _missing(own: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Why there is nothing to compare; empty where there is. own: all rows; rows: those that comparisons are of."""
    for kind, has, started in (
        ("CerDEQ", _is_cerdeq(rows), _is_cerdeq(own)),
        ("other network", ~_is_cerdeq(rows), ~_is_cerdeq(own)),
    ):
        if not has.any():
            return f"Not known: no {kind} has {'as many seeds as others' if started.any() else 'a result'} here."
    return ""


def _compared(table: Table, section: Section, rows: pd.DataFrame) -> str:
    """rows: best first, of both kinds."""
    is_cerdeq = _is_cerdeq(rows)
    mine, other = rows[is_cerdeq].iloc[0], rows[~is_cerdeq].iloc[0]
    line, seeds, reason = _paired(table, section, mine, other)
    gap = mine[names.CERTIFIED_ERROR] - other[names.CERTIFIED_ERROR] if line is None else line["difference"]
    how = f"{abs(gap):.2f} points {'below' if gap < 0 else 'above'}" if gap else "the same as"
    apart = line is not None and {mine["seeds"], other["seeds"]} != {seeds}
    shared = f", by the seeds that both have ({seeds})" if apart else ""
    said = (
        f"{mine['label']} has a certified error of {mine[names.CERTIFIED_ERROR]:.2f} %, {how} the best other network, "
        f"{other['label']} ({other[names.CERTIFIED_ERROR]:.2f} %){shared}"
    )
    if line is None:
        return f"Not known: {said}; {reason}."
    if seeds < FEWEST_SEEDS:
        image_by_image = f"image by image McNemar's p is {line['mcnemar_p']:.2g} for these two trained networks"
        return f"Not known: {said}; one seed says nothing of training anew; {image_by_image}."
    if math.isnan(line["t_p"]):
        return f"Not known: {said}; the same at each of {seeds} seeds, of which a t test can say nothing."
    told = line["t_p"] < _LEVEL
    verdict = ("Yes" if gap < 0 else "No") if told else "Not told apart"
    chosen = " (the best rows were chosen on the same images: p is a little too small)" if told else ""
    return f"{verdict}: {said}; over {seeds} seeds, paired t test p = {line['t_p']:.2g}{chosen}."


def _paired(
    table: Table, section: Section, mine: pd.Series, other: pd.Series
) -> tuple[dict[str, Any] | None, int, str]:
    """What `paired` says of the two over all seeds that both have, how many those are, or why there is nothing."""
    shared = table.folders[mine.name].keys() & table.folders[other.name].keys()
    if not shared:
        return None, 0, "the two share no seed"
    labels = mine["label"], other["label"]
    lines, notes = compared(table, section, [labels])
    if lines.empty:
        pair = " against ".join(labels)
        why = "; ".join(note.removeprefix(pair).lstrip(",: ") for note in notes)
        return None, 0, f"the two cannot be compared image by image: {why}"
    return lines.to_dict("records")[0], len(shared), ""
