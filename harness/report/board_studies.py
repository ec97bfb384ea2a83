"""Rows of own studies, and of networks trained elsewhere that were evaluated here."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness.common import names
from harness.common.terminal import printable
from harness.config.training import describe_settings
from harness.leaderboard.columns import REPORTED
from harness.leaderboard.evaluations import describe_images
from harness.leaderboard.section import Section
from harness.leaderboard.table import build_leaderboard
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.report.board_row import (
    ALL_IMAGES,
    OURS,
    PAPER,
    PROVED,
    RELU_KINDS,
    SHOWN,
    Group,
    Number,
    Row,
    kind_of,
    mean_of,
)
from harness.report.sweep_page import commands, recheck_command
from harness.settings import STAGES
from harness.storage import artefacts, folder, parquet, study_tables


class StudyFiles:
    """What the rows of a study are made of, each file read once."""

    def __init__(self, study: Path):
        self.study = study
        self.leaderboard = build_leaderboard(study)

    def verdicts(self, paths: list[Path]) -> pd.DataFrame:
        """Return the verdicts of evaluations, with the best `margin` of the stages if it is stored."""
        return pd.concat([self._read(path) for path in paths], ignore_index=True)

    def commands(self, paths: list[Path], profile: str) -> str:
        """Return the commands that make a row again, from git's history where its networks' folders are missing."""
        commit = None if paths[0].exists() else artefacts.commit_of(self.study)
        lines = [f"git archive {commit} {shlex.quote(str(self.study))} | tar x"] if commit else []
        return "\n".join(
            [*lines, commands(paths, profile), recheck_command(self.study, list(map(folder.network_of, paths)))]
        )

    def _read(self, path: Path) -> pd.DataFrame:
        if not (path / folder.VERDICTS).exists():
            return study_tables.read_stored_verdicts(path, SHOWN)
        table = parquet.read_verdicts(path)
        margins = [name for stage in STAGES if (name := names.margin_column(stage)) in table]
        return table[SHOWN].assign(margin=table[margins].max(axis=1))


def own_rows(files: StudyFiles, section: Section, seen: set[str]) -> Iterator[Row]:
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
        kind = "equilibrium" if is_equilibrium else kind_of(row["model"].replace("deq", "cnn"))
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
            relu="yes" if kind in RELU_KINDS or row["model"] == "fc" else "no" if is_equilibrium else "unknown",
            seeds=str(row["seeds"]),
            check=PROVED,
            standard=_of_row(row, names.STANDARD_ERROR),
            reported=mean_of([row.get(REPORTED[0])]),
            checked=_of_row(row, names.CERTIFIED_ERROR),
            undecided=_of_row(row, names.UNDECIDED_ERROR),
            details=details,
            commands=files.commands(paths, row["profile"]),
            verdicts=files.verdicts(paths),
            fingerprint=row["fingerprint"],
            held_out=section.held_out,
            report=study / folder.REPORT if (study / folder.REPORT).exists() else None,
        )


def _of_row(row: pd.Series, name: str) -> Number | None:
    """Return mean and deviation of a metric as a leaderboard's row has them; None if a seed lacks it."""
    if pd.isna(row.get(name)):
        return None
    deviation = row[f"{name}_std"]
    return Number(float(row[name]), None if pd.isna(deviation) else float(deviation))
