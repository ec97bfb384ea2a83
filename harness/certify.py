"""Certify finished trials further, without training: other stages, branch and bound, more images.

Writes certified/<name>/ into each trial's folder: verdicts, seconds and a result, which the leaderboard shows in a
section of their own. Images are evaluated in shards, side by side on several processors. After a stop the same
command goes on with the missing shards, to the same verdicts except those that end by the clock. Unfinished trials are
skipped.
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
from harness.device import best_device
from harness.environment import device_title
from harness.errors import InputError, SettingError, require
from harness.evaluation.certification import certification_of, certify_shard, evaluation_images, finish
from harness.evaluation.ledger import SoundnessError
from harness.launch.progress import Counts
from harness.masking import mask_secrets
from harness.storage import certification, folder, names
from harness.storage.lease import lock_directory
from harness.terminal import new_console, one_line

# harness.launch.ray_tasks is imported late: Ray takes seconds, and wrong input is refused first.
_DEFAULT_SECONDS = 60.0
Piece = tuple[Path, int, str]
"""A certification's folder, the number of a shard, and the directory of data."""


@dataclass(frozen=True)
class Job:
    """A trial to certify.

    config: with the stages, budget and images of this certification. directory: the certification's folder.
    """

    trial_dir: Path
    label: str
    data: Data
    config: TrialConfig
    directory: Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="TRIAL_OR_SWEEP", help="folders of trials or of sweeps")
    stages = ",".join(stage for stage in STAGES if stage != "crown")
    parser.add_argument("--stages", default=stages, help=f"stages of the verifier, in this order; default: {stages}")
    seconds = (
        f"limit of branch and bound for an image; default: {_DEFAULT_SECONDS:g}, or no limit where --branches is given"
    )
    parser.add_argument("--seconds", type=float, help=seconds)
    parser.add_argument("--branches", type=int, help="limit of branch and bound for an image; default: no limit")
    certificates = "save certificates of crown, alpha-crown and bab, which harness.recheck checks"
    parser.add_argument("--certificates", action="store_true", help=certificates)
    parser.add_argument(
        "--images", type=int, help="evaluate the first N images; default: as the trial did", metavar="N"
    )
    parser.add_argument(
        "--workers", type=int, help="the most workers at a time; default: one for each GPU, else for each CPU"
    )
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    _check_options(options)
    console = new_console()
    jobs = _make_jobs(_finished_trials(options.paths, console), options)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(lock_directory(job.directory))
            trial, expected = certification_of(job.trial_dir, job.config, job.data)
            if message := certification.claim(job.directory, trial, expected):
                _print_line(job, message, console)
        unfinished = [job for job in jobs if folder.read_result(job.directory) is None]
        if unfinished:
            console.print(f"device: {device_title(best_device())}", markup=False)
        try:
            errors = _certify(unfinished, options, console)
        except SoundnessError as error:
            print(f"failed: a bound is wrong, and nothing here can be trusted: {error}", file=sys.stderr)
            return FAILED
        for job in jobs:
            for line in _describe_outcome(job, errors):
                _print_line(job, line, console)
    _write_reports(jobs, options.data_dir, console)
    return FAILED if errors else OK


def _check_options(options: argparse.Namespace) -> None:
    """Raise SettingError for impossible numbers, and for options that the stages do not use."""
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
    """Return the folders of the finished trials in these paths. Raises InputError for an unfinished trial."""
    trial_dirs: list[Path] = []
    for path in paths:
        if (path / folder.TRIAL).exists():
            _require_finished(path)
            trial_dirs.append(path)
            continue
        inside = folder.trial_folders(path)
        require("trial or sweep", str(path), bool(inside), f"a folder with {folder.TRIAL}, or with trials/")
        finished = [path for path in inside if not folder.is_stale(path) and folder.read_result(path) is not None]
        if len(finished) < len(inside):
            skipped = (
                f"{len(inside) - len(finished)} of {len(inside)} trials are unfinished or of another recipe version"
            )
            console.print(f"{path}: {skipped}: left out", markup=False, soft_wrap=True)
        if not finished:
            raise InputError(f"{path} holds no finished trial of recipe version {RECIPE_VERSION}")
        trial_dirs += finished
    return list(dict.fromkeys(path.resolve() for path in trial_dirs))


def _require_finished(trial_dir: Path) -> None:
    if folder.is_stale(trial_dir):
        raise InputError(f"{trial_dir} is of another recipe version than today's, {RECIPE_VERSION}: train it again")
    if folder.read_result(trial_dir) is None:
        raise InputError(f"{trial_dir} is not finished: there is no {folder.RESULT}; finish it first")


def _make_jobs(trial_dirs: list[Path], options: argparse.Namespace) -> list[Job]:
    """Return a job for each trial. Raises InputError if settings, data or weights do not fit."""
    trials = [folder.read_trial(trial_dir / folder.TRIAL) for trial_dir in trial_dirs]
    for trial in trials:
        load_for(trial.config)
    data_sets = {name: load(name, options.data_dir) for name in {trial.config.dataset for trial in trials}}
    jobs = []
    all_labels = labels([trial.config for trial in trials])
    for trial_dir, trial, label in zip(trial_dirs, trials, all_labels, strict=True):
        config, data = _certification_config(trial.config, options), data_sets[trial.config.dataset]
        allowed = f"the data that {label} was trained on, {trial.fingerprint}"
        require("data", data.fingerprint, data.fingerprint == trial.fingerprint, allowed)
        evaluation_images(data, config)
        try:
            check_buildable(config)
        except (TypeError, ValueError) as error:
            raise SettingError(str(trial_dir), label, f"what this code has: {error}") from None
        if not (trial_dir / folder.WEIGHTS).exists():
            raise InputError(f"{trial_dir} has no {folder.WEIGHTS}")
        jobs.append(Job(trial_dir, label, data, config, certification.directory_of(trial_dir, config.evaluation)))
    return jobs


def _certification_config(config: TrialConfig, options: argparse.Namespace) -> TrialConfig:
    """Return a trial's config with the stages, budget and images of the options. Raises SettingError."""
    stages, before = tuple(options.stages.split(",")), config.evaluation
    seconds = _DEFAULT_SECONDS if options.seconds is None and options.branches is None else options.seconds
    budget = {"bab_seconds": seconds, "bab_branches": options.branches} if BAB in stages else {}
    images = (None if config.validation_images else before.test_images) if options.images is None else options.images
    budget["certificates"] = options.certificates
    return replace(config, evaluation=replace(before, stages=stages, test_images=images, **budget))


def _certify(jobs: list[Job], options: argparse.Namespace, console: Console) -> dict[Path, str]:
    """Evaluate the missing shards of these jobs and finish them; return the first error of each that lacks some."""
    data_dir = str(data_directory(options.data_dir).absolute())  # workers have another working directory
    pieces = [(job.directory, shard, data_dir) for job in jobs for shard in certification.missing(job.directory)]
    errors: dict[Path, str] = {}
    left = Counter(directory for directory, *_ in pieces)
    for job in jobs:
        if not left[job.directory]:
            finish(job.directory, job.data)
    data = {job.directory: job.data for job in jobs}
    with Counts(sum(map(_count_images, pieces)), console) as counts:
        for (directory, *_), outcome in _run_pieces(pieces, options.workers):
            if isinstance(outcome, SoundnessError):
                raise outcome
            if isinstance(outcome, Exception):
                errors.setdefault(directory, mask_secrets(" ".join(f"{type(outcome).__name__}: {outcome}".split())))
                continue
            counts.add(outcome)
            left[directory] -= 1
            if not left[directory]:
                finish(directory, data[directory])
    return errors


def _count_images(piece: Piece) -> int:
    directory, shard, _ = piece
    first, stop = certification.read_certification(directory).images_of(shard)
    return stop - first


def _run_pieces(pieces: list[Piece], workers: int | None) -> Iterator[tuple[Any, Any]]:
    """Yield each piece with its count of verdicts, or the exception that it raised, in the order they end."""
    gpus = torch.cuda.device_count()
    at_once = min(len(pieces), workers or gpus or len(os.sched_getaffinity(0)))
    if at_once > 1:
        from harness.launch.ray_tasks import run_tasks

        yield from run_tasks(certify_shard, pieces, at_once, min(1.0, gpus / at_once))
        return
    for piece in pieces:
        try:
            outcome: Any = certify_shard(*piece)
        except Exception as error:  # the other shards are evaluated all the same
            outcome = error
        yield piece, outcome


def _describe_outcome(job: Job, errors: dict[Path, str]) -> list[str]:
    """Return the error of a trial, or its certified error and warnings."""
    result = folder.read_result(job.directory)
    if result is None:
        return [f"failed: {errors[job.directory]}; finished shards are saved"]
    metrics = {name: float(value or 0) for name, value in result.metrics.items()}
    shares = {kind: metrics[names.share_of(kind)] for kind in names.UNDECIDED}
    undecided = ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items() if share)
    summary = f"certified error {metrics[names.CERTIFIED_ERROR]:.2f} %, at least {metrics[names.ATTACK_ERROR]:.2f}"
    summary += f" (undecided: {undecided})" if undecided else ""
    return [summary, *(one_line(f"warning: {warning}") for warning in result.warnings)]


def _print_line(job: Job, text: str, console: Console) -> None:
    console.print(f"{job.label} -> {job.directory}: {text}", markup=False, soft_wrap=True)


def _write_reports(jobs: list[Job], data_dir: str | None, console: Console) -> None:
    """Write the pages of the sweeps that the trials lie in, and show their leaderboards."""
    from harness.analysis.table_files import print_leaderboard
    from harness.reports import sweep_page

    for sweep_dir in dict.fromkeys(
        job.trial_dir.parent.parent for job in jobs if job.trial_dir.parent.name == "trials"
    ):
        print_leaderboard(*sweep_page.write_sweep(sweep_dir, data_dir), console)
        console.print(sweep_dir / sweep_page.REPORT, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(command_line.main("certify"))
