"""What a leaderboard says, in sentences: what is measured, which row won, by how much, and whether that is certain."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.paired import ALL, METRICS, compare, verdicts_of
from harness.analysis.section import FEWEST_SEEDS, Section
from harness.errors import InputError
from harness.storage import names

_LEVEL = 0.05
_MOST_NAMED = 10


@dataclass(frozen=True)
class Summary:
    """Sentences on a section; the best row with those that the paired test over seeds does not tell from it; and how
    each other row compares with it, as `paired.compare` says it."""

    lines: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)


def summaries(table: Table) -> dict[str, Summary]:
    """What each section says, by its heading."""
    return {section.heading: summary(table, section) for section in table.sections}


def summary(table: Table, section: Section) -> Summary:
    """What today's rows of a section say; nothing where there are not two to compare."""
    rows, finished = section.comparable, section.own[names.CERTIFIED_ERROR].dropna()
    if section.stale or len(finished) < 2:
        return Summary()
    best = rows["label"].iloc[0]
    lines = [
        "certified error: the share of images that are misclassified or not proved robust; lower is better",
        f"best: {best}, {rows[names.CERTIFIED_ERROR].iloc[0]:.1f} %" + _but_for(len(finished) - len(rows)),
    ]
    try:
        places = list(table.folders[rows.index[0]].values())
        if len(places) == 1:
            lines.append(_on_other_images(*places))
        compared, notes = compare(table, baseline=best, heading=section.heading)
    except InputError as error:
        return Summary([*lines, f"not compared: {error}"])
    others, seeds = compared[compared["seed"] == ALL], len(set(compared["seed"])) - 1
    tied = others.loc[others["t_holm"] >= _LEVEL, "row"].tolist() if seeds > 1 else []
    left_out = [f"left out: {note}" for note in notes if " against " in note]
    return Summary(lines + _told_apart(others, seeds) + left_out, [best, *tied] if tied else [], others)


def _but_for(fewer: int) -> str:
    """What is said where rows of one seed stand beside rows of several."""
    return f" (of the rows with {FEWEST_SEEDS} seeds or more; {fewer} have one)" if fewer else ""


def _on_other_images(place: Path) -> str:
    """Where the certified error of this very network may lie over all images of the kind (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest  # which takes seconds

    wrong = verdicts_of(place)[names.VERDICT].isin(METRICS["certified"])
    ends = binomtest(int(wrong.sum()), len(wrong)).proportion_ci(method="exact")
    return f"that network on other images: {100 * ends.low:.1f} to {100 * ends.high:.1f} % (exact 95 % interval)"


def _told_apart(others: pd.DataFrame, seeds: int) -> list[str]:
    """Which rows are worse than the best beyond what training anew may change, and which are not told from it."""
    if seeds < 2:
        said = "the others against it, on the seed that both have"
        return [f"{said}: {_named(others)}; one seed says nothing of training anew"]
    test = f"paired t test over {seeds} seeds, p < {_LEVEL:g} after Holm's correction"
    kinds = {
        f"worse for certain ({test})": others["t_holm"] < _LEVEL,
        f"not told from it ({test})": others["t_holm"] >= _LEVEL,
        "without a test (one seed in common, or the same difference at each)": others["t_holm"].isna(),
    }
    return [f"{said}: {_named(others[its])}" for said, its in kinds.items() if its.any()]


def _named(rows: pd.DataFrame) -> str:
    pairs = zip(rows["row"], np.round(rows["difference"], 1), strict=True)
    told = [f"{row} ({difference:+.1f} points)" for row, difference in pairs]
    return ", ".join(told[:_MOST_NAMED]) + (f" and {len(told) - _MOST_NAMED} more" if told[_MOST_NAMED:] else "")
