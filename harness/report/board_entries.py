"""Rows of entries to the board: of their checks, never of what they claim alone."""

import shlex
from pathlib import Path

import pandas as pd

from baselines.datasets import DATASETS
from harness.common import names
from harness.common.errors import error_line
from harness.common.radius import Radius
from harness.common.terminal import printable
from harness.report.board_row import (
    ALL_IMAGES,
    ENTRY,
    NOT_NAMED,
    SHOWN,
    UNREADABLE,
    Group,
    Row,
    cell_text,
    extra_data_of,
    mean_of,
    web_address,
)
from harness.storage import entry_check, parquet
from harness.storage.files import DamagedFileError

_OF_AN_ENTRY = ("licence", "extra_data", "training_commit", "hours", "hardware", "level", "checker", "date", "nonce")
_MOST_VERIFIERS = 5  # of an entry, by name


def entry_row(path: Path) -> Row:
    """Return the row of an entry by the folder of its check; one that says so if its files cannot be read."""
    try:
        check, verdicts = entry_check.read_check(path), entry_check.read_checked_verdicts(path)
        if verdicts is not None and (problems := parquet.check_columns(verdicts[[*SHOWN, "margin"]])):
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
    certified = mean_of(network.certified_error for network in checked)
    details = {name.replace("_", " "): cell_text(getattr(check, name)) for name in _OF_AN_ENTRY}
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
            extra_data_of(check.extra_data),
        ),
        origin=ENTRY,
        name=printable(check.title or check.name),
        source=printable(", ".join(check.authors)),
        note="",
        kind=kind,
        relu={"relu": "yes", "other": "unknown"}.get(check.network_kind, "no"),
        seeds=str(len(check.networks)),
        check=check.status,
        standard=mean_of(network.standard_error for network in checked) or mean_of(n.standard_error for n in reported),
        reported=mean_of(network.certified_error for network in reported),
        checked=certified,
        undecided=mean_of(network.undecided for network in (reported if certified is None else checked)),
        details={printable(name): printable(text) for name, text in details.items()},
        url=web_address(check.paper),
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
