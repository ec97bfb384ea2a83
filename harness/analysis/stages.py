"""What each stage of judging was asked, decided and took, row by row."""

import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.section import Section
from harness.config.settings import STAGES
from harness.storage import names
from harness.storage.folder import TrialResult

STAGES_LEGEND = "What each stage decided, of the examples that came to it, and its seconds; means over the seeds."
_ORDER = ("clean", "attack", *STAGES)


def stages_table(table: Table, section: Section) -> pd.DataFrame:
    """A row of text for each of the section's rows that has such numbers, a column for each stage that was asked."""
    own = section.own["label"].items()
    rows = {label: _cells([table.results[place] for place in table.folders[row].values()]) for row, label in own}
    shown = pd.DataFrame([{"row": label, **cells} for label, cells in rows.items() if cells])
    return shown[[name for name in ("row", *_ORDER) if name in shown]].fillna("")


def _cells(results: list[TrialResult]) -> dict[str, str]:
    """A cell a stage: means over these trials, or certifications."""
    metrics = pd.DataFrame([result.metrics for result in results]).mean()
    cells = {}
    for stage in _ORDER:
        found = [metrics.get(name(stage)) for name in (names.decided_by, names.examples_at, names.seconds_of)]
        if not pd.isna(found[:2]).any():
            decided, examples, seconds = found
            took = "" if pd.isna(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
            cells[stage] = f"{decided:,.0f} of {examples:,.0f}{took}"
    return cells
