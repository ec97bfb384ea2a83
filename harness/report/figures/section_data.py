"""What the figures of a section are drawn from: its rows and the trials behind them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.leaderboard.table import Section
from harness.report.figures.style import COLOURS, GREY, MARKERS
from harness.storage import certification, folder, training_record

OTHERS = {"color": GREY, "marker": "."}  # of rows for which there is no colour


@dataclass(frozen=True)
class SectionData:
    """A section of a leaderboard with finished trials, and what else figures read of them.

    data_dir: where the data set's images are looked for, if a figure shows some.
    """

    section: Section
    data_dir: str | None = None

    @property
    def sweep_dir(self) -> Path:
        """The directory of the first trial's sweep."""
        trial_dir: Path = self.trials["trial_dir"].iloc[0]
        return next(path.parent for path in trial_dir.parents if path.name == folder.TRIALS)

    @property
    def trials(self) -> pd.DataFrame:
        """The section's trials."""
        return self.section.trials

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Colour and marker of each row by its label, the same in all figures; rows after the best eight are grey."""
        best = zip(COLOURS, MARKERS, strict=True)
        labels = self.section.own["label"]
        return {label: next(({"color": c, "marker": m} for c, m in best), OTHERS) for label in labels}

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each trial, with its label, model and seed; epoch 0 is the untrained network."""
        trials = self.trials[["label", "model", "seed", "trial_dir"]].to_dict("records")
        return pd.DataFrame(
            [trial | epoch for trial in trials for epoch in training_record.read_epochs(trial["trial_dir"])]
        )

    @cached_property
    def untrained(self) -> pd.DataFrame:
        """Epoch 0 of each trial, by the names of final metrics."""
        before = self.epochs[self.epochs[names.EPOCH] == 0]
        return before.rename(columns=lambda name: name.removeprefix(names.in_training("")))

    @property
    def is_of_trials(self) -> bool:
        """Whether the section holds trials as they were evaluated after training, not certifications."""
        return not any((path / certification.CERTIFICATION).exists() for path in self.trials["trial_dir"])
