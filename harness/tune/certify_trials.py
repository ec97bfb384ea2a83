"""Evaluate finished trials by other stages, as `harness.certify` does: ranges of images, by several workers."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.common.terminal import one_line, say
from harness.config import plugins
from harness.config.trial import RECIPE_VERSION, Trial
from harness.data import Data, Split, load
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.network import PreparedNetwork, load_network, prepare_network
from harness.evaluation.ranges import (
    evaluate_range,
    finish_evaluation,
    hash_inputs,
    missing_ranges,
    plan_ranges,
    read_range,
)
from harness.machine.device import best_device
from harness.machine.environment import data_directory, describe_environment, device_name
from harness.machine.freed_memory import reuse_freed_memory
from harness.pretrained.checkpoint import digest_of
from harness.storage import certification, folder, ranges
from harness.storage.files import read_bytes, refuse_links
from harness.storage.lock import lock_directory
from harness.training.trial import Report
from harness.tune.progress import Bars
from harness.tune.workers import Item, Listener, load_data, run_items

_NETWORK_METRICS = (  # which a certification copies from its trial
    *(names.PARAMETERS, names.TRAIN_SECONDS, names.GAIN, names.MARGIN, names.RHO_BOUND),
    *(names.ITERATIONS, names.RESIDUAL, names.NOT_CONVERGED),
)


@dataclass(frozen=True)
class Certification:
    """The evaluation of a finished trial by other stages.

    trial: with the settings of this evaluation.
    """

    trial_dir: Path
    label: str
    trial: folder.TrialRecord
    data: Data

    @property
    def config(self) -> Trial:
        """The trial's config, with the settings of this evaluation."""
        return self.trial.config

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return certification.directory_of(self.trial_dir, self.config.evaluation)

    @property
    def images(self) -> Split:
        """The images to evaluate. Raises InputError if there are too few."""
        return self.data.evaluated_images(self.config.validation_images, self.config.evaluation.test_images)

    @cached_property
    def ranges(self) -> list[range]:
        """The ranges of these images."""
        model = load_network(self.config, self.trial_dir / folder.WEIGHTS, self.weights).to(best_device())
        return plan_ranges(self.images, model, self.config.data_info.classes, self.config.evaluation)

    @cached_property
    def weights(self) -> bytes:
        """The content of the trial's file."""
        return read_bytes(self.trial_dir / folder.WEIGHTS)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Where this process evaluates, on one thread: the numbers are the same however many workers there are."""
        return describe_environment(best_device()) | {"threads": "1"}

    @cached_property
    def ranges_dir(self) -> Path:
        """Where the ranges are saved that this process can go on from."""
        inputs = hash_inputs(self.weights, self.trial.key, self.config, self.environment)
        return ranges.ranges_dir(self.directory, inputs)


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


def plan_certifications(trial_dirs: list[Path], options: argparse.Namespace) -> list[Certification]:
    """Return the certification of each trial. Raises InputError if settings, data or weights do not fit."""
    trials = {}
    for trial_dir in trial_dirs:
        trial = folder.read_trial(trial_dir / folder.TRIAL)
        plugins.require_trusted(trial.config, options.plugin)
        trials[str(trial_dir)] = replace(trial, config=_change_evaluation(trial.config, options))
        if not (trial_dir / folder.WEIGHTS).exists():
            raise InputError(f"{trial_dir} has no {folder.WEIGHTS}")
    data_sets = load_data(trials, options.data_dir)
    planned = [
        Certification(trial_dir, trial.config.label, trial, data_sets[trial.config.data_source])
        for trial_dir, trial in zip(trial_dirs, trials.values(), strict=True)
    ]
    for each in planned:
        _ = each.images  # raises InputError
    return planned


def _change_evaluation(config: Trial, options: argparse.Namespace) -> Trial:
    """Return a trial's config with the stages, budget and images of the options. Raises SettingError."""
    stages, before = tuple(options.stages.split(",")), config.evaluation
    uses_it = names.BAB in stages or options.certificates
    budget = {"bab_seconds": options.seconds, "bab_branches": options.branches} if uses_it else {}
    images = config.trial_image_count if options.images is None else options.images
    budget["certificates"] = options.certificates
    budget |= {"stage_seconds": options.stage_seconds or before.stage_seconds, "bab_trial_seconds": None}
    return config.replace(evaluation=before.replace(stages=stages, test_images=images, **budget))


def certify(planned: list[Certification], data_dir: str | None, workers: int | None, console: Console) -> bool:
    """Evaluate the images that are left, and print what came of each trial; return True if all are complete.

    data_dir, workers: options of `harness.certify`. Raises InputError for a certification that another run works on.
    """
    with ExitStack() as locks:
        unfinished = []
        for each in planned:
            locks.enter_context(lock_directory(each.directory))
            is_new = certification.begin_certification(each.directory, each.trial, digest_of(each.weights))
            if folder.read_result(each.directory) is None:
                is_new |= ranges.begin_ranges(each.ranges_dir)
                unfinished.append(each)
            if is_new:
                message = "begun anew: what was there is of other weights, versions or another device"
                console.print(f"{each.label} -> {each.directory}: {message}", soft_wrap=True)
        if unfinished:
            console.print(f"device: {device_name(best_device())}")
        try:
            errors = _evaluate(unfinished, data_dir, workers, console)
        except SoundnessError as error:
            say(f"failed: a bound is wrong, and nothing here can be trusted: {error}", file=sys.stderr)
            return False
        for each in planned:
            for line in _describe_outcome(each, errors):
                console.print(f"{each.label} -> {each.directory}: {line}", soft_wrap=True)
    return not errors


def _evaluate(
    unfinished: list[Certification], data_dir: str | None, workers: int | None, console: Console
) -> dict[Path, str]:
    """Evaluate the missing ranges; return the first error of each certification that lacks some, by its folder.

    Raises SoundnessError at the first one of a range.
    """
    data_dir = str(data_directory(data_dir).absolute())  # workers have another working directory
    missing = {each.directory: missing_ranges(each.ranges_dir, each.ranges) for each in unfinished}
    items = [
        Item(each.directory, each.label, each.config.model_dump(mode="json"), images)
        for each in unfinished
        for images in missing[each.directory]
    ]
    with Bars(console) as bars:
        listener = _CertificationListener(bars, unfinished, missing)
        run_items(items, partial(evaluate_item, data_dir=data_dir), listener, data_dir, workers)
    return listener.errors


class _CertificationListener(Listener):
    """Shows how many images are evaluated, and finishes certifications.

    missing: the ranges that each certification still needs, by its folder.
    """

    def __init__(self, bars: Bars, unfinished: list[Certification], missing: dict[Path, list[range]]):
        self.bars, self.missing = bars, missing
        self.by_directory = {each.directory: each for each in unfinished}
        self.total = sum(len(images) for left in missing.values() for images in left)
        self.verdicts, self.errors = Counter[str](), dict[Path, str]()
        self.show()
        for each in unfinished:
            self.finish_if_complete(each)

    def show(self) -> None:
        """Move the bar."""
        certified, falsified = self.verdicts[names.CERTIFIED], self.verdicts[names.FALSIFIED]
        undecided = sum(self.verdicts[kind] for kind in names.UNDECIDED)
        note = f"{certified:,} certified, {falsified:,} falsified, {undecided:,} undecided"
        self.bars.move("images", self.verdicts.total(), self.total, note)

    def on_end(self, item: Item, error: str | None) -> None:
        """Count the verdicts of a range; after the last one, finish its certification."""
        if error is not None:
            if error.startswith(SoundnessError.__name__):
                raise SoundnessError(error)
            self.errors.setdefault(item.directory, mask_secrets(error))
            return
        assert item.images is not None
        each = self.by_directory[item.directory]
        self.verdicts.update(read_range(each.ranges_dir, item.images).verdicts[names.VERDICT])
        self.missing[item.directory].remove(item.images)
        self.show()
        self.finish_if_complete(each)

    def finish_if_complete(self, each: Certification) -> None:
        """Write the results of a certification that lacks no range."""
        if self.missing[each.directory]:
            return
        trained = folder.read_result(each.trial_dir)
        copied = {
            name: value for name, value in (trained.metrics if trained else {}).items() if name in _NETWORK_METRICS
        }
        metrics, warnings = finish_evaluation(each.directory, each.ranges_dir, each.ranges, each.config, copied)
        result = folder.TrialResult(each.trial.key, metrics, each.environment, each.data.summary(), warnings)
        folder.write_result(each.directory, result)
        ranges.remove_ranges(each.directory)


def evaluate_item(item: Item, report: Report, data_dir: str) -> dict[str, Any]:
    """Evaluate a range of a certification. Raises as `evaluate_range` and `_open` do."""
    assert item.images is not None
    with _one_thread(), reuse_freed_memory():
        certified, network = _open(item.directory, data_dir)
        evaluate_range(certified.ranges_dir, item.images, network, certified.images, certified.config)
    return {}


@lru_cache(maxsize=1)  # ranges of one certification follow each other
def _open(directory: Path, data_dir: str) -> tuple[Certification, PreparedNetwork]:
    """Return the certification in a folder, and its network.

    Raises InputError if this machine has other data, weights, devices or versions than the one of the command.
    """
    trial, trial_dir = (
        folder.read_certified_trial(directory / certification.CERTIFICATION),
        certification.trial_of(directory),
    )
    plugins.load_for(trial.config)
    certified = Certification(trial_dir, "", trial, load(trial.config.data_source, data_dir))
    if not certified.ranges_dir.is_dir() or certified.data.fingerprint != trial.fingerprint:
        raise InputError(
            f"{certified.ranges_dir} is gone, or data, weights, devices or versions differ between machines"
        )
    model = load_network(trial.config, trial_dir / folder.WEIGHTS, certified.weights).to(best_device())
    return certified, prepare_network(model, trial.config.evaluation.stages)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _describe_outcome(each: Certification, errors: dict[Path, str]) -> list[str]:
    """Return the error of a trial, or its certified error and warnings."""
    result = folder.read_result(each.directory)
    if result is None:
        return [f"failed: {errors[each.directory]}; what is evaluated is saved"]
    metrics = {name: float(value or 0) for name, value in result.metrics.items()}
    shares = {kind: metrics[names.share_of(kind)] for kind in names.UNDECIDED}
    undecided = ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items() if share)
    summary = f"certified error {metrics[names.CERTIFIED_ERROR]:.2f} %, at least {metrics[names.ATTACK_ERROR]:.2f}"
    summary += f" (undecided: {undecided})" if undecided else ""
    return [summary, *(one_line(f"warning: {warning}") for warning in result.warnings)]
