"""What trains a trial or evaluates a part of one, in this process or in many under Ray.

An item of work is a path: a trial's folder, or a shard as `storage.certification.shard_path` names it. An executor
takes items and a function that does one, and calls back for each report and at the end of each item. `run_here` is one
executor, `ray_tune.run_on_ray` the other; `run_items` chooses.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from harness.common.errors import InputError, Stopped, error_line, require
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for
from harness.data import Data, load
from harness.evaluation.certification_shards import certify_shard
from harness.machine.freed_memory import free_memory
from harness.own_data import OwnData
from harness.storage import folder
from harness.training.checkpoint import Clock
from harness.training.trial import Report, run_folder

Work = Callable[[Path, Report], None]
OnReport = Callable[[Path, dict[str, Any]], None]
OnEnd = Callable[[Path, str | None], None]
"""Called with an item and the error that ended it, None for none."""

RAY_STATE = ".ray"
"""The directory of Ray's own state, in that of the results."""


@dataclass(frozen=True)
class RayOptions:
    """How Ray runs items.

    cpu, gpu: what each item reserves; items with a fraction of a GPU share it.
    data_dir: of the data sets.
    address: of a running cluster; None starts one on this machine.
    at_once: the most items at a time; None for as many as fit.
    """

    cpu: int
    gpu: float
    data_dir: str
    address: str | None = None
    at_once: int | None = None


def check_fits(machines: list[dict[str, float]], cpu: int, gpu: float) -> None:
    """Raise SettingError unless one of the machines has the CPUs and the GPUs that an item reserves."""
    most = max((machine["GPU"] for machine in machines), default=0)
    require("resources.gpu", gpu, gpu <= most, f"at most {most:g}, the GPUs of one machine")
    most = max((machine["CPU"] for machine in machines if machine["GPU"] >= gpu), default=0)
    beside = f" with {gpu:g} GPU" if gpu else ""
    require("resources.cpu", cpu, cpu <= most, f"at most {most:g}, the CPUs of one machine{beside}")


def load_data(trials: dict[str, folder.TrialRecord], data_dir: str | None) -> dict[str | OwnData, Data]:
    """Return the data sets of trials, by their `data_source`, after checking that this code can run the trials on them.

    trials: by what messages call them. Raises InputError if it cannot, or if data is missing or another one.
    """
    for name, trial in trials.items():
        try:
            load_for(trial.config)
            check_buildable(trial.config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    data_sets = {source: load(source, data_dir) for source in {trial.config.data_source for trial in trials.values()}}
    for name, trial in trials.items():
        own = data_sets[trial.config.data_source].fingerprint
        require(f"{name}: data", own, own == trial.fingerprint, f"the data it was made for, {trial.fingerprint}")
    return data_sets


def train_item(
    trial_dir: Path,
    report: Report,
    data_dir: str | None,
    code: str | None = None,
    asked: Callable[[], bool] | None = None,
) -> None:
    """Train the trial in a folder, of a sweep or of a search; do nothing once trials are asked to stop.

    code: as in `run_folder`. asked: returns True once trials are to stop; by default, if the sweep's stop file exists.
    Raises as `run_folder` does.
    """
    asked = asked or folder.stop_file(trial_dir).exists
    if not asked():
        run_folder(trial_dir, report, data_dir, Clock(asked=asked), code)


def certify_item(shard: Path, report: Report, data_dir: str | None) -> None:
    """Evaluate a shard of a certification. Reports and raises as `certify_shard` does."""
    certify_shard(shard.parents[1], int(shard.name), report, data_dir)


def run_here(items: Iterable[Path], work: Work, on_report: OnReport, on_end: OnEnd) -> None:
    """Do items in this process, one after the other; those after one that fails are done all the same."""
    for item in items:
        error = None
        try:
            with suppress(Stopped):
                work(item, partial(on_report, item))
        except Exception as cause:
            error = error_line(cause)
        free_memory()
        on_end(item, error)


def run_items(
    items: list[Path], work: Work, on_end: OnEnd, data_dir: str, workers: int | None,
    on_report: OnReport = lambda item, row: None,
) -> None:  # fmt: skip
    """Do items: under Ray, or in this process if only one is to be done at a time.

    workers: how many at a time; None for one on each GPU or, without any, on each core.
    """
    gpus = torch.cuda.device_count()
    at_once = min(len(items), workers or gpus or len(os.sched_getaffinity(0)))
    if at_once <= 1:
        return run_here(items, work, on_report, on_end)
    from harness.tune.ray_tune import run_on_ray  # here, since one worker needs no Ray

    options = RayOptions(cpu=1, gpu=min(1.0, gpus / at_once), data_dir=data_dir, at_once=at_once)
    with TemporaryDirectory(prefix="harness-") as scratch:
        run_on_ray(items, work, on_report, on_end, options, Path(scratch))
