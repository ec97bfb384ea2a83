"""What each stage of judging was asked, decided and took, row by row."""

from pathlib import Path

import pandas as pd

from harness.analysis.leaderboard import Section, Table
from harness.config.settings import STAGES
from harness.storage import folder, names

STAGES_LEGEND = "What each stage decided, of the examples that came to it, and its seconds; means over the seeds."
_ORDER = ("clean", "attack", *STAGES)


def stages_table(table: Table, section: Section) -> pd.DataFrame:
    """A row of text for each of the section's rows that has such numbers, a column for each stage that was asked."""
    rows = {label: _cells(list(table.folders[index].values())) for index, label in section.own["label"].items()}
    shown = pd.DataFrame([{"row": label, **cells} for label, cells in rows.items() if cells])
    return shown[[name for name in ("row", *_ORDER) if name in shown]].fillna("")


def _cells(places: list[Path]) -> dict[str, str]:
    """A cell a stage: means over the trials, or certifications, in these folders."""
    results = [folder.read_result(place) for place in places]
    metrics = pd.DataFrame([result.metrics for result in results if result is not None]).mean()
    cells = {}
    for stage in _ORDER:
        found = [metrics.get(name(stage)) for name in (names.decided_by, names.examples_at, names.seconds_of)]
        if not pd.isna(found[:2]).any():
            decided, examples, seconds = found
            took = "" if pd.isna(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
            cells[stage] = f"{decided:,.0f} of {examples:,.0f}{took}"
    return cells
