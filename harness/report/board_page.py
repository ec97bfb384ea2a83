"""The board as one page that opens offline: the best of each comparison first, then all rows."""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from baselines.datasets import DATASETS
from harness.common import names
from harness.leaderboard.literature import tuning_split
from harness.report.board_figures import HEIGHT, UNDECIDED, WIDTH, Pictures, histogram
from harness.report.board_row import OURS, UNCONFIRMED, UNRANKED, Group, Number, Row
from harness.report.board_rows import read_rows
from harness.report.sweep_page import render
from harness.storage.files import write_text

INDEX = "index.html"


def write_board(results_dir: Path, output: Path, data_dir: str | None = None) -> int:
    """Write the page of all results below a directory; return the number of its rows.

    data_dir: where the images of data sets are looked for; without them no pictures are shown. Raises InputError.
    """
    rows = sorted(read_rows(results_dir), key=sort_key)
    pictures = Pictures(data_dir)
    shown = [_shown(number, row, pictures) for number, row in enumerate(rows)]
    groups = [(group, list(its)) for group, its in groupby(shown, key=lambda row: row["row"].group)]
    blocks = [(heading, list(its)) for heading, its in groupby(answers(rows), key=lambda part: _heading(part[0]))]
    numbers = {id(row): number for number, row in enumerate(rows)}
    page = render(
        "board_page.html.jinja",
        blocks=blocks,
        groups=groups,
        filters=_filters(rows),
        row_number=lambda row: numbers[id(row)],
        pictures=pictures.urls,
        title=_title,
        eps=_eps,
        link=lambda report: Path(os.path.relpath(report, output.parent)).as_posix(),
        number=_number,
        size=(WIDTH, HEIGHT),
    )
    write_text(output, page)
    return len(rows)


def answers(rows: Sequence[Row]) -> list[tuple[Group, list[tuple[str, Row]]]]:
    """Return the best row of each group, of its ReLU networks, of those tuned on a validation split, and of ours.

    Each row is there once, with what it is the best of.

    Only rows on all test images count whose verifier is named. Rows of different groups are never compared.
    """
    ranked = sorted((row for row in rows if row.is_ranked), key=sort_key)
    groups = []
    for group, grouped in groupby(ranked, key=lambda row: row.group):
        its = list(grouped)
        candidates = {
            "all": its,
            "ReLU": [r for r in its if r.relu == "yes"],
            "validation": [r for r in its if r.tuned_on == tuning_split("validation")],
            "ours": [r for r in its if r.origin == OURS],
        }
        best: dict[int, tuple[Row, list[str]]] = {}
        for what, fitting in candidates.items():
            for row in fitting[:1]:
                best.setdefault(id(row), (row, []))[1].append(what)
        groups.append((group, [(", ".join(whats), row) for row, whats in best.values()]))
    return groups


def sort_key(row: Row) -> tuple[Any, ...]:
    """Return the sort key of a row: its group's, then its certified error.

    Rows without one are last; unconfirmed entries are above these, below all others.
    """
    value = row.certified.mean if row.certified else np.inf
    kind = row.check in UNRANKED, row.certified is None, row.check == UNCONFIRMED
    return *row.group.order, *kind, value, row.name, row.note


def _heading(group: Group) -> str:
    return f"{_title(group.dataset)}, eps {_eps(group)}"


def _eps(group: Group) -> str:
    """Return a radius as it is written where it is used: 8/255, 0.3."""
    if group.eps is None:
        return "unknown"
    return f"{float(group.eps):g}" if 100 % group.eps.denominator == 0 else str(group.eps)


def _title(dataset: str) -> str:
    return DATASETS[dataset].title if dataset in DATASETS else dataset.replace("imagenet", "ImageNet")


def _number(number: Number | None) -> str:
    if number is None:
        return ""
    return f"{number.mean:.2f}" + ("" if number.deviation is None else f" ± {number.deviation:.2f}")


def _filters(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the values of each filter, as the page shows them."""
    return {
        "data set": list(dict.fromkeys(_title(row.group.dataset) for row in rows)),
        "eps": list(dict.fromkeys(_eps(row.group) for row in sorted(rows, key=lambda row: row.group.eps or 0))),
        "network": sorted({row.kind for row in rows}),
        "verifier": sorted({row.group.verifier for row in rows}),
        "made by": sorted({row.origin for row in rows}),
    }


def _shown(number: int, row: Row, pictures: Pictures) -> dict[str, Any]:
    """Return a row as the template takes it. values: those of the filters."""
    group = row.group
    shown: dict[str, Any] = {"row": row, "number": number}
    shown["values"] = [_title(group.dataset), _eps(group), row.kind, group.verifier, row.origin]
    if row.verdicts is not None:
        outcome = row.verdicts[names.VERDICT].replace(dict.fromkeys(names.UNDECIDED, UNDECIDED))
        undecided = row.verdicts[outcome == UNDECIDED]
        shown["counts"] = {str(kind): int(count) for kind, count in outcome.value_counts().items()}
        shown["histogram"] = histogram(row.verdicts, outcome)
        shown["pictures"] = pictures.add(group.dataset, row.fingerprint, row.held_out, undecided)
    return shown
