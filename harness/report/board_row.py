"""A row of the board, in one form for own studies, entries and numbers of papers, and the groups that compare."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from baselines.datasets import DATASETS
from harness.common import names
from harness.common.radius import Radius
from harness.common.terminal import printable
from harness.leaderboard.literature import COMPLETE, IBP, LINEAR, NOT_STATED

OURS, ENTRY, PAPER = "ours", "entry", "paper"
ALL_IMAGES = "all test images"
PROVED, NOT_CHECKED, UNREADABLE = "proved here", "not checked", "unreadable"
UNCONFIRMED, UNRANKED = "unconfirmed", ("refused", "refuted", UNREADABLE)
NOT_NAMED = "not named"  # a verifier: it may be any
VERIFIERS = (COMPLETE, LINEAR, IBP, "Lipschitz", "sampling")
"""The kinds of verifiers, the strongest first."""
_KINDS = {
    "equilibrium": r"deq|monotone|equilibri",
    "Lipschitz": r"lipschitz|sortnet|dist",
    "residual": r"res|dense",
    "plain CNN": r"cnn|conv|tied|relu",
}
RELU_KINDS = ("plain CNN", "residual")
"""The kinds of networks whose only activations are ReLUs."""
SHOWN = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE]
"""The columns of verdicts that the board shows."""


@dataclass(frozen=True)
class Number:
    """A percentage: the mean over seeds, and the sample standard deviation of several."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Group:
    """What rows must share so that they compare.

    eps: None where it is no radius. images: which ones are evaluated. extra_data: what is trained on besides the data
    set, empty for nothing.
    """

    dataset: str
    eps: Radius | None
    verifier: str
    images: str
    extra_data: str = ""

    @property
    def order(self) -> tuple[Any, ...]:
        """The sort key: MNIST first, then by radius, the strongest verifier first, all test images before some."""
        datasets = ["mnist", "fashion-mnist", "svhn", *DATASETS]
        number = datasets.index(self.dataset) if self.dataset in datasets else len(datasets)
        strength = VERIFIERS.index(self.verifier) if self.verifier in VERIFIERS else len(VERIFIERS)
        images = self.images != ALL_IMAGES, self.images
        return number, self.dataset, self.eps or 0, *images, strength, self.verifier, self.extra_data


@dataclass(frozen=True)
class Row:
    """A network of the board. Texts may be others' words: the page escapes them.

    source: the study, paper or authors. note: settings. seeds: their number, or which run a paper reports.
    reported, checked: certified errors, in which undecided images count as errors. undecided: their share.
    verdicts: of all seeds. fingerprint, held_out: which images these are of. report: the study's page. tuned_on: the
    images that its settings were chosen on.
    """

    group: Group
    origin: str
    name: str
    source: str
    note: str
    kind: str
    relu: str
    seeds: str
    check: str
    standard: Number | None = None
    reported: Number | None = None
    checked: Number | None = None
    undecided: Number | None = None
    details: dict[str, str] = field(default_factory=dict)
    url: str = ""
    commands: str = ""
    verdicts: pd.DataFrame | None = None
    fingerprint: str | None = None
    held_out: int = 0
    report: Path | None = None
    tuned_on: str = NOT_STATED

    @property
    def certified(self) -> Number | None:
        """The certified error that ranks the row within its group: the checked one, or that of a paper."""
        return self.checked or (self.reported if self.origin == PAPER else None)

    @property
    def is_ranked(self) -> bool:
        """Whether it can be the best of its group."""
        is_comparable = self.group.images == ALL_IMAGES and self.group.verifier != NOT_NAMED
        return self.certified is not None and self.check not in UNRANKED and is_comparable

    @property
    def bracket(self) -> tuple[float, float] | None:
        """The certified error if undecided images counted as certified, and as it is; None if none is undecided."""
        if self.certified is None or self.undecided is None or not self.undecided.mean:
            return None
        return max(0.0, self.certified.mean - self.undecided.mean), self.certified.mean


def kind_of(model: str) -> str:
    """Return the kind of a network by its name, "other" for a name that says none."""
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, model, re.IGNORECASE)), "other")


def mean_of(values: Iterable[float | None]) -> Number | None:
    """Return mean and deviation; None if there is no value, or one is missing."""
    numbers = list(values)
    if not numbers or any(pd.isna(number) for number in numbers):
        return None
    percentages = [float(number) for number in numbers if number is not None]
    return Number(mean(percentages), stdev(percentages) if len(percentages) > 1 else None)


def extra_data_of(text: str) -> str:
    """Return what a network is trained on besides the data set, nothing for "no"."""
    return "" if text == "no" else text


def cell_text(value: Any) -> str:
    """Return a value of a table as text: nothing for a missing one, no decimals for a whole number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return ""
    return printable(f"{value:g}" if isinstance(value, float) else str(value))


def web_address(text: str | None) -> str:
    """Return an address of the web, nothing for another text: a page must not run `javascript:`."""
    return text if text and text.isascii() and re.fullmatch(r"https?://[^\s\"'<>]+", text) else ""
