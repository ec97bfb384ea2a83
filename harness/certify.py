"""Certify finished trials further, without training: other stages, branch and bound, more images.

Writes certified/<name>/ into each trial's folder: verdicts, seconds and a result, as a trial has them, which the
leaderboard shows in a section of their own. Images are judged in shards, side by side where there is more than one
processor; a command that was killed goes on with the shards that are missing, to the very same verdicts but for those
that end by the clock. Trials of a sweep that are unfinished are left out.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for
from harness.config.settings import BAB, STAGES, STAGES_BY_SETTING
from harness.config.trial import RECIPE_VERSION, TrialConfig, labels
from harness.data import Data, data_directory, load
from harness.errors import InputError, SettingError, require
from harness.evaluation.certification import certification_of, certify_shard, evaluation_images, finish
from harness.evaluation.ledger import SoundnessError
from harness.launch.watched import Counts
from harness.masking import masked
from harness.storage import certification, folder, names
from harness.storage.lease import locked
from harness.terminal import new_console, one_line

# harness.launch.ray_tasks is imported late: Ray takes seconds, and bad input is told first.
_SECONDS = 60.0
Piece = tuple[Path, int, str]


@dataclass(frozen=True)
class Job:
    """A trial to certify: its folder, its name for people, its data, the config to judge it by, and where that goes."""

    trial: Path
    label: str
    data: Data
    config: TrialConfig
    directory: Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="TRIAL_OR_SWEEP", help="folders of trials or of sweeps")
    stages = ",".join(stage for stage in STAGES if stage != "crown")
    parser.add_argument("--stages", default=stages, help=f"the verifier's, in this order; default: {stages}")
    seconds = f"of branch and bound for an image; default: {_SECONDS:g}, or no limit where --branches is given"
    parser.add_argument("--seconds", type=float, help=seconds)
    parser.add_argument("--branches", type=int, help="of branch and bound for an image; default: no limit")
    kept = "keep what checks the proofs of crown, alpha-crown and bab, for harness.recheck"
    parser.add_argument("--certificates", action="store_true", help=kept)
    parser.add_argument("--images", type=int, help="the first so many; default: those the trial was judged on")
    parser.add_argument("--workers", type=int, help="how many work side by side; default: one a GPU, else one a CPU")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError before anything is started."""
    _check(options)
    console = new_console()
    jobs = _jobs(_finished_trials(options.paths, console), options)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(locked(job.directory))
            trial, wanted = certification_of(job.trial, job.config, job.data)
            if told := certification.claim(job.directory, trial, wanted):
                console.print(f"{job.label} -> {job.directory}: {told}", markup=False, soft_wrap=True)
        waiting = [job for job in jobs if folder.read_result(job.directory) is None]
        try:
            failed = _certify(waiting, options, console)
        except SoundnessError as error:
            print(f"failed: a bound is wrong, and nothing here can be trusted: {error}", file=sys.stderr)
            return FAILED
        for job in jobs:
            _tell(job, failed, console)
    _write_reports(jobs, options.data_dir, console)
    return FAILED if failed else OK


def _check(options: argparse.Namespace) -> None:
    """Raise SettingError for numbers that cannot be, and for what the stages do not use."""
    seconds = options.seconds
    require("--seconds", seconds, seconds is None or 0 < seconds < math.inf, "above 0 and finite")
    for name in ("branches", "images", "workers"):
        value = getattr(options, name)
        require(f"--{name}", value, value is None or value >= 1, "an integer of at least 1")
    stages = set(options.stages.split(","))
    for setting, users in STAGES_BY_SETTING.items():
        name = setting.removeprefix("bab_")
        value = getattr(options, name)
        require(f"--{name}", value, not value or not stages.isdisjoint(users), f"nothing without {' or '.join(users)}")


def _finished_trials(paths: list[Path], console: Console) -> list[Path]:
    """The folders of the finished trials that are meant. Raises InputError where one is named that is not finished."""
    found = []
    for path in paths:
        if (path / folder.TRIAL).exists():
            _require_finished(path)
            found.append(path)
            continue
        inside = folder.trial_folders(path)
        require("trial or sweep", str(path), bool(inside), f"a folder with {folder.TRIAL}, or with trials/")
        finished = [place for place in inside if not folder.is_stale(place) and folder.read_result(place) is not None]
        if len(finished) < len(inside):
            left = len(inside) - len(finished)
            told = f"{path}: {left} of {len(inside)} trials are unfinished or of another recipe version: left out"
            console.print(told, markup=False, soft_wrap=True)
        if not finished:
            raise InputError(f"{path} holds no finished trial of recipe version {RECIPE_VERSION}")
        found += finished
    return list(dict.fromkeys(place.resolve() for place in found))


def _require_finished(place: Path) -> None:
    if folder.is_stale(place):
        raise InputError(f"{place} is of another recipe version than today's, {RECIPE_VERSION}: train it again")
    if folder.read_result(place) is None:
        raise InputError(f"{place} is not finished: there is no {folder.RESULT}; finish it first")


def _jobs(places: list[Path], options: argparse.Namespace) -> list[Job]:
    """What is to be done. Raises InputError where settings, data or weights do not fit."""
    trials = [folder.read_trial(place / folder.TRIAL) for place in places]
    for trial in trials:
        load_for(trial.config)
    wanted = [_judged_by(trial.config, options) for trial in trials]
    data = {config.dataset: load(config.dataset, options.data_dir) for config in wanted}
    jobs = []
    words = labels([trial.config for trial in trials])
    for place, trial, label, config in zip(places, trials, words, wanted, strict=True):
        own = data[config.dataset]
        found, expected = own.fingerprint, trial.fingerprint
        require("data", found, found == expected, f"the data that {label} was trained on, {expected}")
        evaluation_images(own, config)
        try:
            check_buildable(config)
        except (TypeError, ValueError) as error:
            raise SettingError(str(place), label, f"what this code has: {error}") from None
        if not (place / folder.WEIGHTS).exists():
            raise InputError(f"{place} has no {folder.WEIGHTS}")
        jobs.append(Job(place, label, own, config, certification.place(place, config.evaluation)))
    return jobs


def _judged_by(config: TrialConfig, options: argparse.Namespace) -> TrialConfig:
    """A trial's config with the stages, budget and images that are asked for. Raises SettingError."""
    given, before = tuple(options.stages.split(",")), config.evaluation
    seconds = _SECONDS if options.seconds is None and options.branches is None else options.seconds
    budget = {"bab_seconds": seconds, "bab_branches": options.branches} if BAB in given else {}
    images = (None if config.validation_images else before.test_images) if options.images is None else options.images
    budget["certificates"] = options.certificates
    return replace(config, evaluation=replace(before, stages=given, test_images=images, **budget))


def _certify(jobs: list[Job], options: argparse.Namespace, console: Console) -> dict[Path, str]:
    """Do the missing shards of these jobs and finish them; the first error of each that has shards missing still."""
    data_dir = str(data_directory(options.data_dir).absolute())  # workers run elsewhere
    pieces = [(job.directory, shard, data_dir) for job in jobs for shard in certification.missing(job.directory)]
    failed: dict[Path, str] = {}
    sizes = {job.directory: certification.read_certification(job.directory) for job in jobs}
    left = Counter(directory for directory, *_ in pieces)
    for job in jobs:
        if not left[job.directory]:
            finish(job.directory, job.data)
    data = {job.directory: job.data for job in jobs}
    with Counts(sum(_images(sizes, piece) for piece in pieces), console) as counts:
        for piece, outcome in _done(pieces, options.workers):
            if isinstance(outcome, SoundnessError):
                raise outcome
            if isinstance(outcome, Exception):
                failed.setdefault(piece[0], masked(" ".join(f"{type(outcome).__name__}: {outcome}".split())))
                continue
            counts.add(outcome)
            left[piece[0]] -= 1
            if not left[piece[0]]:
                finish(piece[0], data[piece[0]])
    return failed


def _images(sizes: dict[Path, certification.Certification], piece: Piece) -> int:
    first, stop = sizes[piece[0]].images_of(piece[1])
    return stop - first


def _done(pieces: list[Piece], workers: int | None) -> Iterator[tuple[Any, Any]]:
    """Each piece with the verdicts it has, or the exception that it raised, as they end."""
    gpus = torch.cuda.device_count()
    most = min(len(pieces), workers or gpus or len(os.sched_getaffinity(0)))
    if most > 1:
        from harness.launch.ray_tasks import run_tasks

        yield from run_tasks(certify_shard, pieces, most, min(1.0, gpus / most))
        return
    for piece in pieces:
        try:
            outcome: Any = certify_shard(*piece)
        except Exception as error:  # others are still to be tried
            outcome = error
        yield piece, outcome


def _tell(job: Job, failed: dict[Path, str], console: Console) -> None:
    """What came of a trial, in a line or two."""
    result = folder.read_result(job.directory)
    if result is None:
        told = [f"failed: {failed[job.directory]}; what is done is kept"]
    else:
        numbers = {name: float(value or 0) for name, value in result.metrics.items()}
        open_ = {kind: numbers[names.share_of(kind)] for kind in names.OPEN}
        kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in open_.items() if share)
        told = [
            f"certified error {numbers[names.CERTIFIED_ERROR]:.2f} %, at least {numbers[names.ATTACK_ERROR]:.2f}"
            + (f" (open: {kinds})" if kinds else "")
        ]
        told += [one_line(f"warning: {warning}") for warning in result.warnings]
    for line in told:
        console.print(f"{job.label} -> {job.directory}: {line}", markup=False, soft_wrap=True)


def _write_reports(jobs: list[Job], data_dir: str | None, console: Console) -> None:
    """Write the pages of the sweeps that the trials lie in, and show their leaderboards."""
    from harness.analysis.table_files import print_leaderboard
    from harness.reports import sweep_page

    for sweep in dict.fromkeys(job.trial.parent.parent for job in jobs if job.trial.parent.name == "trials"):
        print_leaderboard(*sweep_page.write_sweep(sweep, data_dir), console)
        console.print(sweep / sweep_page.REPORT, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(command_line.main("certify"))
