"""Is CerDEQ better here, by how much, and how sure is that? In sentences."""

import math
from typing import Any

import pandas as pd

from harness.analysis.leaderboard import Section, Table
from harness.analysis.paired import ALL, compare
from harness.errors import InputError
from harness.storage import names

CERDEQ = "cerdeq"
_LEVEL = 0.05
_FEWEST = 2  # seeds that a test over them needs


def answer(table: Table, section: Section) -> list[str]:
    """For all methods together, then for each that has both: the best CerDEQ row against the best other one.

    Empty where the section has not both.
    """
    own = section.own.dropna(subset=names.CERTIFIED_ERROR)
    parts = [("", own), *((f"By {method}: ", part) for method, part in own.groupby("method", sort=False))]
    if own["method"].nunique() == 1:
        parts = parts[:1]
    lines = [(start, _compared(table, section, part)) for start, part in parts]
    return [f"{start}{line}" for start, line in lines if line]


def _compared(table: Table, section: Section, rows: pd.DataFrame) -> str | None:
    """rows: best first."""
    is_cerdeq = rows["model"] == CERDEQ
    if not is_cerdeq.any() or is_cerdeq.all():
        return None
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
    if seeds < _FEWEST:
        image_by_image = f"image by image McNemar's p is {line['mcnemar_p']:.2g} for these two trained networks"
        return f"Not known: {said}; one seed says nothing of training anew; {image_by_image}."
    told = math.isfinite(line["t_p"]) and line["t_p"] < _LEVEL
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
    try:
        lines, _ = compare(table.directory, baseline=other["label"], heading=section.heading, table=table)
    except InputError as error:
        return None, 0, f"the two cannot be compared image by image: {error}"
    found = lines[(lines["row"] == mine["label"]) & (lines["seed"] == ALL)].to_dict("records")
    return (found[0], len(shared), "") if found else (None, 0, "the two are not judged alike")
