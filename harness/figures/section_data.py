"""What the figures of a section are drawn from: its rows and the trials behind them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.leaderboard import Leaderboard, Section
from harness.figures.style import COLOURS, MARKERS
from harness.storage import certification, folder, names

OTHERS = {"color": "#8a929b", "marker": "."}  # of rows for which there is no colour


@dataclass(frozen=True)
class SectionData:
    """A section of a leaderboard with its trials.

    data_dir: where the data set's images are looked for, if a figure shows some.
    """

    leaderboard: Leaderboard
    section: Section
    data_dir: str | None = None

    @property
    def rows(self) -> pd.DataFrame:
        """The section's own rows, best first, each with its `label`."""
        return self.section.own

    @property
    def published(self) -> pd.DataFrame:
        """Published rows that stand beside the section's."""
        return self.section.rows[self.section.published]

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Colour and marker of each row by its label, the same in all figures; rows after the best eight are grey."""
        best = zip(COLOURS, MARKERS, strict=True)
        return {label: next(({"color": c, "marker": m} for c, m in best), OTHERS) for label in self.rows["label"]}

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row for each finished trial: label, model, method, seed, trial_dir, every final metric, and `layers`.

        layers: the network's pre-activations, first to last; the columns of several networks are in no order.
        """
        return pd.DataFrame([self._trial(*place) for place in self._places()])

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each trial, with its label and seed; epoch 0 is the untrained network."""
        rows = [row | epoch for row, trial_dir in self._places() for epoch in folder.read_epochs(trial_dir)]
        return pd.DataFrame(rows)

    @cached_property
    def untrained(self) -> pd.DataFrame:
        """Epoch 0 of each trial, by the names of final metrics."""
        before = self.epochs[self.epochs[names.EPOCH] == 0]
        return before.rename(columns=lambda name: name.removeprefix(names.in_training("")))

    @property
    def is_of_trials(self) -> bool:
        """Whether the section holds trials as they were evaluated after training, not certifications."""
        return not any((trial_dir / certification.CERTIFICATION).exists() for _, trial_dir in self._places())

    def _places(self) -> list[tuple[dict[str, Any], Path]]:
        """Return each trial's label, model, method and seed, and its folder."""
        return [
            (dict(zip(("label", "model", "method", "seed"), (*words, seed), strict=True)), trial_dir)
            for row, *words in self.rows[["label", "model", "method"]].itertuples(name=None)
            for seed, trial_dir in sorted(self.leaderboard.trial_dirs[row].items())
        ]

    def _trial(self, row: dict[str, Any], trial_dir: Path) -> dict[str, Any]:
        metrics = self.leaderboard.results[trial_dir].metrics
        return row | {"trial_dir": trial_dir, "layers": names.layers(metrics)} | metrics
