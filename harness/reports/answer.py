"""Is CerDEQ better here, by how much, and how sure is that? In sentences."""

import math

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
    gap = mine[names.CERTIFIED_ERROR] - other[names.CERTIFIED_ERROR]
    word = "below" if gap < 0 else "above"
    how = f"{abs(gap):.2f} points {word}" if gap else "the same as"
    said = (
        f"{mine['label']} has a certified error of {mine[names.CERTIFIED_ERROR]:.2f} %, {how} the best other network, "
        f"{other['label']} ({other[names.CERTIFIED_ERROR]:.2f} %)"
    )
    verdict, reason = _certainty(table, section, mine["label"], other["label"], gap)
    return f"{verdict}: {said}; {reason}."


def _certainty(table: Table, section: Section, mine: str, other: str, gap: float) -> tuple[str, str]:
    """What can be said of the difference, and why."""
    try:
        compared, _ = compare(table.directory, baseline=other, heading=section.heading, table=table)
    except InputError as error:
        return "Not known", f"the two cannot be compared image by image ({error})"
    lines = compared[(compared["row"] == mine) & (compared["seed"] == ALL)]
    if lines.empty:
        return "Not known", "the two share no seed"
    line, seeds = lines.iloc[0], int(((compared["row"] == mine) & (compared["seed"] != ALL)).sum())
    if seeds < _FEWEST:
        image_by_image = f"image by image McNemar's p is {line['mcnemar_p']:.2g} for these two trained networks"
        return "Not known", f"one seed says nothing of training anew; {image_by_image}"
    test = f"over {seeds} seeds, paired t test p = {line['t_p']:.2g}"
    if math.isnan(line["t_p"]) or line["t_p"] >= _LEVEL:
        return "Not told apart", test
    return (
        "Yes" if gap < 0 else "No"
    ), f"{test} (the best rows were chosen on the same images: p is a little too small)"
