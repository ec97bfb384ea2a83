"""What the figures of a section are drawn from: its rows and the networks behind them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.leaderboard.section import Section
from harness.report.figures.style import COLOURS, GREY, MARKERS
from harness.storage import folder, training_progress

_LOOKS = [{"color": colour, "marker": marker} for colour, marker in zip(COLOURS, MARKERS, strict=True)]
OTHERS = {"color": GREY, "marker": "."}  # of rows for which there is no colour


def assign_looks(sections: Sequence[Section]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each row of a page by its label: the same in all figures and sections.

    Two rows of a section share none. Rows after the best eight are grey.
    """
    looks: dict[str, dict[str, Any]] = {}
    for section in sections:
        labels = list(section.own["label"])
        for label in labels:
            used = [looks[other] for other in labels if other in looks]
            looks.setdefault(label, next((look for look in _LOOKS if look not in used), OTHERS))
    return looks


@dataclass(frozen=True)
class SectionData:
    """A section of a leaderboard with finished evaluations, and what else figures read of them.

    sections: all of the page. data_dir: where the data set's images are looked for, if a figure shows some.
    """

    section: Section
    sections: Sequence[Section]
    data_dir: str | None = None

    @property
    def sweep_dir(self) -> Path:
        """The directory of the first network's sweep."""
        evaluation_dir: Path = self.trials["evaluation_dir"].iloc[0]
        return folder.sweep_dir_of(folder.network_of(evaluation_dir))

    @property
    def trials(self) -> pd.DataFrame:
        """The section's networks, as `Section.trials` has them."""
        return self.section.trials

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Colour and marker of each row of the page by its label, as `assign_looks` has them."""
        return assign_looks(self.sections)

    def legend(self, labels: Iterable[str], **changes: Any) -> dict[str, dict[str, Any]]:
        """Return a legend's entries for rows, those in grey as one. changes: of all looks."""
        shown = {label: self.looks[label] for label in labels}
        named = {label: look | changes for label, look in shown.items() if look is not OTHERS}
        return named if len(named) == len(shown) else named | {"other rows": OTHERS | changes}

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each network, with its label, model and seed; epoch 0 is the untrained network."""
        networks = self.trials[["label", "model", "seed", "evaluation_dir"]].to_dict("records")
        return pd.DataFrame(
            [
                network | epoch
                for network in networks
                for epoch in training_progress.read_epochs(folder.network_of(network["evaluation_dir"]))
            ]
        )

    @cached_property
    def untrained(self) -> pd.DataFrame:
        """Epoch 0 of each network, by the names of final metrics."""
        before = self.epochs[self.epochs[names.EPOCH] == 0]
        return before.rename(columns=lambda name: name.removeprefix(names.in_training("")))

    @property
    def is_main(self) -> bool:
        """Whether it is the section of the study's main evaluation."""
        return self.section.is_main
