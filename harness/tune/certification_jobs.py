"""Certify finished trials further: the jobs of `harness.certify`, by several workers."""

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.common.terminal import one_line, say
from harness.config import plugins
from harness.config.trial import RECIPE_VERSION, Trial
from harness.data import Data
from harness.evaluation.certification_shards import (
    certification_of,
    certified_images,
    certify_shard,
    finish_certification,
)
from harness.evaluation.ledger import SoundnessError
from harness.machine.device import best_device
from harness.machine.environment import data_directory, device_name
from harness.storage import certification, folder
from harness.storage.files import read_bytes, refuse_links
from harness.storage.lock import lock_directory
from harness.training.trial import Report
from harness.tune.progress import Bars
from harness.tune.workers import Item, Listener, load_data, run_items


@dataclass(frozen=True)
class Job:
    """A trial to certify.

    config: with the stages, budget and images of this certification. directory: the certification's folder.
    """

    trial_dir: Path
    label: str
    data: Data
    config: Trial
    directory: Path


def finished_trials(paths: list[Path], console: Console) -> list[Path]:
    """Return the folders of the finished trials in these paths. Raises InputError for a path without one."""
    trial_dirs: list[Path] = []
    for path in paths:
        refuse_links(folder.sweep_dir_of(path))
        inside = [path] if (path / folder.TRIAL).exists() else folder.trial_folders(path)
        finished = [path for path in inside if not folder.is_stale(path) and folder.read_result(path) is not None]
        if not finished:
            raise InputError(f"{path} holds no finished trial of recipe version {RECIPE_VERSION}")
        if len(finished) < len(inside):
            left_out = f"{len(inside) - len(finished)} of {len(inside)} trials"
            console.print(f"{path}: left out {left_out}, unfinished or of another recipe version")
        trial_dirs += finished
    return list(dict.fromkeys(path.resolve() for path in trial_dirs))


def make_jobs(trial_dirs: list[Path], options: argparse.Namespace) -> list[Job]:
    """Return a job for each trial. Raises InputError if settings, data or weights do not fit."""
    trials = {}
    for trial_dir in trial_dirs:
        trial = folder.read_trial(trial_dir / folder.TRIAL)
        plugins.require_trusted(trial.config, options.plugin)
        trials[str(trial_dir)] = replace(trial, config=_certification_config(trial.config, options))
        if not (trial_dir / folder.WEIGHTS).exists():
            raise InputError(f"{trial_dir} has no {folder.WEIGHTS}")
    data_sets = load_data(trials, options.data_dir)
    jobs = []
    for trial_dir, trial in zip(trial_dirs, trials.values(), strict=True):
        config, data = trial.config, data_sets[trial.config.data_source]
        certified_images(data, config)
        directory = certification.directory_of(trial_dir, config.evaluation)
        jobs.append(Job(trial_dir, config.label, data, config, directory))
    return jobs


def _certification_config(config: Trial, options: argparse.Namespace) -> Trial:
    """Return a trial's config with the stages, budget and images of the options. Raises SettingError."""
    stages, before = tuple(options.stages.split(",")), config.evaluation
    uses_it = names.BAB in stages or options.certificates
    budget = {"bab_seconds": options.seconds, "bab_branches": options.branches} if uses_it else {}
    images = config.trial_image_count if options.images is None else options.images
    budget["certificates"] = options.certificates
    budget |= {"stage_seconds": options.stage_seconds or before.stage_seconds, "bab_trial_seconds": None}
    return config.replace(evaluation=before.replace(stages=stages, test_images=images, **budget))


def certify_jobs(jobs: list[Job], data_dir: str | None, workers: int | None, console: Console) -> bool:
    """Evaluate what is missing of jobs, and print what came of them; return True if all are complete.

    data_dir, workers: options of `harness.certify`. Raises InputError for a certification that another run works on.
    """
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(lock_directory(job.directory))
            weights = read_bytes(job.trial_dir / folder.WEIGHTS)
            trial, expected = certification_of(job.trial_dir, job.config, job.data, weights)
            if message := certification.take_over(job.directory, trial, expected):
                console.print(f"{job.label} -> {job.directory}: {message}", soft_wrap=True)
        unfinished = [job for job in jobs if folder.read_result(job.directory) is None]
        if unfinished:
            console.print(f"device: {device_name(best_device())}")
        try:
            errors = _certify(unfinished, data_dir, workers, console)
        except SoundnessError as error:
            say(f"failed: a bound is wrong, and nothing here can be trusted: {error}", file=sys.stderr)
            return False
        for job in jobs:
            for line in _describe_outcome(job, errors):
                console.print(f"{job.label} -> {job.directory}: {line}", soft_wrap=True)
    return not errors


def _certify(jobs: list[Job], data_dir: str | None, workers: int | None, console: Console) -> dict[Path, str]:
    """Evaluate the missing shards of these jobs and finish them; return the first error of each that lacks some.

    Raises SoundnessError at the first one of a shard.
    """
    data_dir = str(data_directory(data_dir).absolute())  # workers have another working directory
    images, left = dict[Path, int](), dict[Path, int]()  # of each shard; shards left of each certification
    for job in jobs:
        stored = certification.read_certification(job.directory)
        missing = certification.unfinished_shards(job.directory)
        images |= {certification.shard_path(job.directory, number): stored.count_images(number) for number in missing}
        left[job.directory] = len(missing)
        if not missing:
            finish_certification(job.directory, job.data)
    items = [
        Item(shard, job.label, {**job.config.model_dump(mode="json"), "shard": shard.name, "shard_images": count})
        for job in jobs
        for shard, count in images.items()
        if shard.parents[1] == job.directory
    ]
    with Bars(console) as bars:
        listener = _CertificationListener(bars, {job.directory: job.data for job in jobs}, images, left)
        run_items(items, partial(_certify_item, data_dir=data_dir), listener, data_dir, workers)
    return listener.errors


class _CertificationListener(Listener):
    """Shows how many images are evaluated, and finishes certifications.

    data: by a certification's folder. images: of each shard. left: how many shards a certification still needs.
    """

    def __init__(self, bars: Bars, data: dict[Path, Data], images: dict[Path, int], left: dict[Path, int]):
        self.bars, self.data, self.images, self.left = bars, data, images, left
        self.done, self.verdicts, self.errors = dict[Path, int](), Counter[str](), dict[Path, str]()
        self.show()

    def show(self) -> None:
        """Move the bar."""
        certified, falsified = self.verdicts[names.CERTIFIED], self.verdicts[names.FALSIFIED]
        undecided = sum(self.verdicts[kind] for kind in names.UNDECIDED)
        note = f"{certified:,} certified, {falsified:,} falsified, {undecided:,} undecided"
        self.bars.move("images", sum(self.done.values()), sum(self.images.values()), note)

    def on_report(self, directory: Path, row: dict[str, Any]) -> None:
        """Show how far a shard is."""
        if names.EVALUATED in row:
            self.done[directory] = row[names.EVALUATED]
            self.show()

    def on_end(self, directory: Path, error: str | None) -> None:
        """Count the verdicts of a shard; with the last one, finish its certification."""
        certified = directory.parents[1]
        if error is not None:
            if error.startswith(SoundnessError.__name__):
                raise SoundnessError(error)
            self.errors.setdefault(certified, mask_secrets(error))
            return
        self.verdicts.update(certification.read_shard_verdicts(certified, int(directory.name)))
        self.left[certified] -= 1
        if not self.left[certified]:
            finish_certification(certified, self.data[certified])
        self.show()


def _certify_item(item: Item, report: Report, data_dir: str | None) -> dict[str, Any]:
    """Evaluate a shard of a certification. Reports and raises as `certify_shard` does."""
    certify_shard(item.directory.parents[1], int(item.directory.name), report, data_dir)
    return {}


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
