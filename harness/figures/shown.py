"""What the figures of a section are drawn from: its rows and the trials behind them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.section import Section
from harness.figures.style import COLOURS, MARKERS
from harness.storage import certification, folder, names

OTHERS = {"color": "#8a929b", "marker": "."}


@dataclass(frozen=True)
class Shown:
    """A section of a leaderboard with its trials, for figures.

    data_dir: where the data set's images are looked for, if a figure shows some.
    """

    table: Table
    section: Section
    data_dir: str | None = None

    @property
    def rows(self) -> pd.DataFrame:
        """The section's own rows, best first, each with its `label`."""
        return self.section.own

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Colour and marker of each row, by its label, in all figures of a page: those of as many as there are colours,
        the best ones; the others are grey."""
        best = zip(COLOURS, MARKERS, strict=True)
        return {label: next(({"color": c, "marker": m} for c, m in best), OTHERS) for label in self.rows["label"]}

    @property
    def others(self) -> bool:
        """Whether there are more rows than colours."""
        return len(self.looks) > len(COLOURS)

    @property
    def published(self) -> pd.DataFrame:
        """Published rows that stand beside the section's."""
        return self.section.rows[self.section.published]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a finished trial, or certification: label, model, method, seed, folder, every final metric, and the
        list of its `layers`, first to last, which columns of several networks have in no order."""
        return pd.DataFrame([self._trial(row, *place) for row, place in self._places()])

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row an epoch of each trial, from epoch 0, the untrained network: label, seed and what the trial wrote."""
        rows = [
            _told(row) | {"seed": seed} | each
            for row, (seed, place) in self._places()
            for each in folder.read_epochs(place)
        ]
        return pd.DataFrame(rows)

    @property
    def of_trials(self) -> bool:
        """Whether the section is of trials as they were judged at their ends, not certified further."""
        return not any((place / certification.CERTIFICATION).exists() for _, (_, place) in self._places())

    def _places(self) -> list[tuple[dict[str, Any], tuple[int, Path]]]:
        rows = self.rows.rename_axis("row").reset_index().to_dict("records")
        return [(row, place) for row in rows for place in sorted(self.table.folders[row["row"]].items())]

    def _trial(self, row: dict[str, Any], seed: int, place: Path) -> dict[str, Any]:
        metrics = self.table.results[place].metrics
        return _told(row) | {"seed": seed, "folder": place, "layers": names.layers(metrics)} | metrics


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("row", "label", "model", "method")}
