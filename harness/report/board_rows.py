"""The rows of the board: own studies, entries and numbers of papers, in one form, grouped so that they compare."""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from baselines.datasets import DATASETS
from harness.common import names
from harness.common.errors import error_line
from harness.common.radius import Radius
from harness.common.terminal import printable
from harness.config.training import Training, describe_settings
from harness.leaderboard.columns import REPORTED
from harness.leaderboard.evaluations import describe_images
from harness.leaderboard.literature import COMPLETE, IBP, LINEAR, NOT_STATED, read_literature, tuning_split
from harness.leaderboard.section import Section
from harness.leaderboard.table import build_leaderboard
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.report.sweep_page import commands, recheck_command
from harness.settings import STAGES
from harness.storage import artefacts, entry_check, folder, parquet, study_tables
from harness.storage.files import DamagedFileError

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
_RELU = ("plain CNN", "residual")
_OF_AN_ENTRY = ("licence", "extra_data", "training_commit", "hours", "hardware", "level", "checker", "date", "nonce")
_MOST_VERIFIERS = 5  # of an entry, by name
_SHOWN = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE]


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


def read_rows(results_dir: Path) -> list[Row]:
    """Return all rows below a directory of results. Raises InputError if a study or published.csv cannot be read.

    An entry whose files cannot be read is a row that says so.
    """
    published = results_dir / "published"
    studies = sorted(
        path for parent in (published, results_dir) for path in parent.glob("*/") if study_tables.is_study(path)
    )
    studies.sort(key=lambda path: path.parent != published)  # a network that lies twice is shown as published
    rows: list[Row] = []
    seen: set[str] = set()
    for study in studies:
        files = _StudyFiles(study)
        for section in files.leaderboard.sections:
            rows += _own_rows(files, section, seen)
    entries = [_entry_row(path) for path in entry_check.find_checks(results_dir)]
    papers = [_paper_row(row) for row in read_literature(published).to_dict("records")]
    return [*rows, *entries, *papers]


def _first_match(patterns: dict[str, str], text: str, default: str) -> str:
    return next((name for name, pattern in patterns.items() if re.search(pattern, text, re.IGNORECASE)), default)


class _StudyFiles:
    """What the rows of a study are made of, each file read once."""

    def __init__(self, study: Path):
        self.study = study
        self.leaderboard = build_leaderboard(study)

    @cached_property
    def _configs(self) -> dict[Path, Training]:
        states = study_tables.read_stored_states(self.study)
        return {path: state.training.config for path, state in states.items() if state.training is not None}

    def verdicts(self, paths: list[Path]) -> pd.DataFrame:
        """Return the verdicts of evaluations, with the best `margin` of the stages if it is stored."""
        return pd.concat([self._read(path) for path in paths], ignore_index=True)

    def commands(self, paths: list[Path]) -> str:
        """Return the commands that make a row again, from git's history where its networks' folders are missing."""
        commit = None if paths[0].exists() else artefacts.commit_of(self.study)
        lines = [f"git archive {commit} {shlex.quote(str(self.study))} | tar x"] if commit else []
        return "\n".join(
            [*lines, commands(paths, self._configs), recheck_command(self.study, list(map(folder.network_of, paths)))]
        )

    def _read(self, path: Path) -> pd.DataFrame:
        if not (path / folder.VERDICTS).exists():
            return study_tables.read_stored_verdicts(path, _SHOWN)
        table = parquet.read_verdicts(path)
        margins = [name for stage in STAGES if (name := names.margin_column(stage)) in table]
        return table[_SHOWN].assign(margin=table[margins].max(axis=1))


def _own_rows(files: _StudyFiles, section: Section, seen: set[str]) -> Iterator[Row]:
    """Yield the rows of a section. seen: folders of evaluations that need not be shown again; this adds to them."""
    study, evaluation = files.study, section.evaluation
    is_on_all = evaluation.split == "test" and evaluation.test_images is None
    images = ALL_IMAGES if is_on_all else describe_images(evaluation, section.held_out)
    for index, row in section.own.iterrows():
        finished = section.finished[section.finished["row"] == index]
        paths = list(finished["evaluation_dir"])
        keys = {path.relative_to(study).as_posix() for path in paths}
        if keys <= seen:
            continue
        seen |= keys
        is_equilibrium = bool(pd.notna(row.get(names.RHO_BOUND))) or row["model"].startswith("mon")  # others: W = 0
        kind = "equilibrium" if is_equilibrium else _first_match(_KINDS, row["model"].replace("deq", "cnn"), "other")
        published = finished["published"].iloc[0] if row["method"] == TRAINED_ELSEWHERE else None
        cells = section.cells.loc[index]
        words = describe_settings(row["method"], cells["options"], cells[section.differing].to_dict())
        details = {"study": study.name, "settings": words, "verifier": evaluation.verifier, "images": images}
        details |= {"profile": row["profile"], "parameters": f"{row[names.PARAMETERS]:,.0f}"}
        for stage in STAGES:
            if pd.notna(error := row.get(names.certified_error_after(stage))):
                details[f"certified error by {stage}"] = f"{error:.2f} %"
        yield Row(
            group=Group(section.dataset, section.eps, section.verifier, images),
            origin=PAPER if published else OURS,
            name=f"{row['model']}, {printable(published.method) if published else row['method']}",
            source=printable(published.paper) if published else study.name,
            note="" if published else words,
            kind=kind,
            relu="yes" if kind in _RELU or row["model"] == "fc" else "no" if is_equilibrium else "unknown",
            seeds=str(row["seeds"]),
            check=PROVED,
            standard=_of_row(row, names.STANDARD_ERROR),
            reported=_mean([row.get(REPORTED[0])]),
            checked=_of_row(row, names.CERTIFIED_ERROR),
            undecided=_of_row(row, names.UNDECIDED_ERROR),
            details=details,
            commands=files.commands(paths),
            verdicts=files.verdicts(paths),
            fingerprint=row["fingerprint"],
            held_out=section.held_out,
            report=study / folder.REPORT if (study / folder.REPORT).exists() else None,
        )


def _entry_row(path: Path) -> Row:
    try:
        check, verdicts = entry_check.read_check(path), entry_check.read_checked_verdicts(path)
        if verdicts is not None and (problems := parquet.check_columns(verdicts[[*_SHOWN, "margin"]])):
            raise DamagedFileError(f"{path / entry_check.VERDICTS}: {'; '.join(problems)}")
        return _checked_row(check, verdicts)
    except Exception as error:  # hostile files may raise anything
        group, words = Group("unknown", None, NOT_NAMED, NOT_NAMED), printable(error_line(error))
        return Row(group, ENTRY, printable(path.name), "", words, "other", "unknown", "", UNREADABLE)


def _checked_row(check: entry_check.EntryCheck, verdicts: pd.DataFrame | None) -> Row:
    reported = [network.reported for network in check.networks if network.reported is not None]
    checked = [network.checked for network in check.networks]
    verifiers = [] if verdicts is None else sorted(set(verdicts["verifier"].dropna()) - {""})
    verifier = printable(", ".join(verifiers[:_MOST_VERIFIERS])) or NOT_NAMED
    kind = {"relu": "ReLU network", "lipschitz": "Lipschitz"}.get(check.network_kind, check.network_kind)
    certified = _mean(network.certified_error for network in checked)
    details = {name.replace("_", " "): _words(getattr(check, name)) for name in _OF_AN_ENTRY}
    details |= {"authors": ", ".join(check.authors), "verifier": verifier}
    for step in check.steps:
        passed = {True: "passed", False: "failed", None: "undecided"}[step.passed]
        details[f"step {step.name}"] = f"{passed}: {step.message}" if step.message else passed
    for network in check.networks:
        details[f"seed {network.seed}"] = (
            f"{network.claimed:,} images claimed, {network.refuted:,} of them refuted; of {network.sample:,} drawn, "
            f"{network.confirmed_by_certificate:,} confirmed by certificate, {network.confirmed_by_verifier:,} by our "
            f"verifier, {network.unconfirmed:,} not"
        )
    return Row(
        group=Group(
            printable(check.dataset) or "unknown",
            Radius(check.eps) if check.eps else None,
            check.verifier_kind or NOT_NAMED,
            _images(check, verdicts),
            _extra_data(check.extra_data),
        ),
        origin=ENTRY,
        name=printable(check.title or check.name),
        source=printable(", ".join(check.authors)),
        note="",
        kind=kind,
        relu={"relu": "yes", "other": "unknown"}.get(check.network_kind, "no"),
        seeds=str(len(check.networks)),
        check=check.status,
        standard=_mean(network.standard_error for network in checked) or _mean(n.standard_error for n in reported),
        reported=_mean(network.certified_error for network in reported),
        checked=certified,
        undecided=_mean(network.undecided for network in (reported if certified is None else checked)),
        details={printable(name): printable(text) for name, text in details.items()},
        url=_address(check.paper),
        commands=shlex.join(["uv", "run", "python", "-m", "harness.board", "check", printable(check.name)]),
        verdicts=verdicts,
    )


def _images(check: entry_check.EntryCheck, verdicts: pd.DataFrame | None) -> str:
    """Return which images an entry is about, so that entries on other images do not compare."""
    size = DATASETS[check.dataset].test_size if check.dataset in DATASETS else 0
    if check.split == "test" and check.images == size:
        return ALL_IMAGES
    indices = [] if verdicts is None else sorted(verdicts[names.INDEX].unique())
    is_first = check.split == "test" and len(indices) == check.images and indices == list(range(len(indices)))
    return f"first {check.images:,} test images" if is_first else f"{check.images:,} images of entry {check.name}"


def _of_row(row: pd.Series, name: str) -> Number | None:
    """Return mean and deviation of a metric as a leaderboard's row has them; None if a seed lacks it."""
    if pd.isna(row.get(name)):
        return None
    deviation = row[f"{name}_std"]
    return Number(float(row[name]), None if pd.isna(deviation) else float(deviation))


def _mean(values: Iterable[float | None]) -> Number | None:
    """Return mean and deviation; None if there is no value, or one is missing."""
    numbers = list(values)
    if not numbers or any(pd.isna(number) for number in numbers):
        return None
    percentages = [float(number) for number in numbers if number is not None]
    return Number(mean(percentages), stdev(percentages) if len(percentages) > 1 else None)


def _paper_row(row: dict[Any, Any]) -> Row:
    """Return a row of published.csv as a row of the board; columns that it lacks are unknown."""
    texts = {name: _words(value) for name, value in row.items()}
    verifier = texts.get("verifier") or NOT_NAMED
    kind = _first_match(_KINDS, texts["model"], "other")
    listed = ("year", "run", "guarantee", "extra_data")
    return Row(
        group=Group(texts["dataset"], row["exact"], verifier, ALL_IMAGES, _extra_data(texts.get("extra_data", ""))),
        origin=PAPER,
        name=", ".join(filter(None, [texts["model"], texts["method"]])) or "network not named",
        source=texts["publication"],
        note="",
        kind=kind,
        relu=texts.get("relu") or ("yes" if kind in _RELU else "unknown" if kind == "other" else "no"),
        seeds=texts.get("run", ""),
        check=NOT_CHECKED,
        standard=_mean([row[names.STANDARD_ERROR]]),
        reported=_mean([row[names.CERTIFIED_ERROR]]),
        undecided=_mean([row.get(names.UNDECIDED_ERROR)]),
        details={"verifier": verifier, **{name.replace("_", " "): texts.get(name, "") for name in listed}},
        url=_address(texts.get("url")),
        tuned_on=tuning_split(row["tuned_on"]),
    )


def _extra_data(text: str) -> str:
    return "" if text == "no" else text


def _words(value: Any) -> str:
    """Return a value of a table as text: nothing for a missing one, no decimals for a whole number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return ""
    return printable(f"{value:g}" if isinstance(value, float) else str(value))


def _address(text: str | None) -> str:
    """Return an address of the web, nothing for another text: a page must not run `javascript:`."""
    return text if text and text.isascii() and re.fullmatch(r"https?://[^\s\"'<>]+", text) else ""
