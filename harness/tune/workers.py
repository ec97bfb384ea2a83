"""What trains a trial or evaluates a part of one, in this process or in many under Ray.

An executor takes items of work and a function that does one, and tells a listener what happens. `run_here` is one
executor, `ray_tune.run_on_ray` the other.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from harness.common import names
from harness.common.errors import InputError, error_line, require
from harness.common.masking import mask_secrets
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for
from harness.config.trial import Trial
from harness.data import Data, load
from harness.machine.device import count_cores
from harness.machine.freed_memory import free_memory
from harness.own_data import OwnData
from harness.storage import folder
from harness.storage.folder import TrialResult
from harness.training.trial import Report, train_and_certify

RAY_STATE = "ray"
"""The directory of Ray's own state, in that of the results."""


@dataclass(frozen=True)
class Item:
    """A piece of work.

    directory: where its results go, such as a trial's folder.
    label: its name in messages and in Ray's dashboard.
    settings: JSON, such as a trial's config; Ray shows it.
    images: those of a trial that are evaluated, if that is the work.
    """

    directory: Path
    label: str
    settings: dict[str, Any]
    images: range | None = None


Work = Callable[[Item, Report], dict[str, Any]]
"""Does an item and returns its last numbers."""


class Listener:
    """What an executor calls, in the process of the command; the methods here do nothing."""

    def on_start(self, item: Item) -> None:
        """An item begins, or begins again in another worker."""

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """An item has reported."""

    def on_end(self, item: Item, error: str | None) -> None:
        """An item has ended, by an error or by none."""

    def on_step(self) -> None:
        """Some time has passed; under Ray several times a second."""

    def on_text(self, text: str) -> None:
        """There is something to be said to a person."""


class FailedFast(Exception):  # noqa: N818
    """An item has failed, and no other is wanted: a listener raises it under --fail-fast."""


@dataclass(frozen=True)
class RayOptions:
    """How Ray runs items.

    cpu, gpu: what each item reserves; items with a fraction of a GPU share it.
    data_dir: of the data sets.
    address: of a running cluster; None starts one on this machine.
    at_once: the most items at a time; None for as many as fit.
    dashboard: whether the Ray that is started has its dashboard.
    """

    cpu: int
    gpu: float
    data_dir: str
    address: str | None = None
    at_once: int | None = None
    dashboard: bool = False


def check_fits(machines: list[dict[str, float]], cpu: int, gpu: float) -> None:
    """Raise SettingError unless one of the machines has the CPUs and the GPUs that an item reserves."""
    most = max((machine["GPU"] for machine in machines), default=0)
    require("resources.gpu", gpu, gpu <= most, f"at most {most:g}, the GPUs of one machine")
    most = max((machine["CPU"] for machine in machines if machine["GPU"] >= gpu), default=0)
    beside = f" with {gpu:g} GPU" if gpu else ""
    require("resources.cpu", cpu, cpu <= most, f"at most {most:g}, the CPUs of one machine{beside}")


def count_fitting(machines: list[dict[str, float]], cpu: int, gpu: float) -> int:
    """Return how many items that reserve these CPUs and GPUs the machines do at a time."""
    needs = [(name, count) for name, count in (("CPU", cpu), ("GPU", gpu)) if count]
    return sum(min(int(machine[name] / count) for name, count in needs) for machine in machines)


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


def trial_item(trial: folder.TrialRecord, label: str, directory: Path) -> Item:
    """Return the work of training and certifying a trial in its folder."""
    return Item(directory, label, trial.config.model_dump(mode="json"))


def train_item(item: Item, report: Report, data_dir: str | None, code: str | None = None) -> dict[str, Any]:
    """Train and certify a trial, of a sweep or of a search, and return its metrics. Raises as its function does."""
    report({names.ACTIVITY: "reads its data"})
    return train_and_certify(Trial.model_validate(item.settings), item.directory, report, data_dir, code=code).metrics


def read_outcome(trial_dir: Path, error: str | None) -> tuple[TrialResult | None, dict[str, Any]]:
    """Return the result of a trial that has ended, or its failure, which is written here if its worker died.

    error: of its worker.
    """
    if (result := folder.read_result(trial_dir)) is not None:
        return result, {}
    failure = folder.read_failure(trial_dir)
    if failure is None:
        failure = {"error": mask_secrets(error or "its worker ended without a result")}
        with suppress(OSError):  # of a full disk
            failure = folder.write_failure(trial_dir, failure["error"])
    return None, failure


def run_here(items: Iterable[Item], work: Work, listener: Listener) -> None:
    """Do items in this process, one after the other; those after one that fails are done all the same."""
    for item in items:
        error = None
        listener.on_start(item)
        try:
            work(item, partial(listener.on_report, item))
        except Exception as cause:
            error = error_line(cause)
        free_memory()
        listener.on_end(item, error)


def run_items(items: list[Item], work: Work, listener: Listener, data_dir: str, workers: int | None) -> None:
    """Do items: under Ray, or in this process if only one is to be done at a time.

    workers: how many at a time; None for one on each GPU or, without any, on each core.
    """
    gpus = torch.cuda.device_count()
    at_once = min(len(items), workers or gpus or count_cores())
    if at_once <= 1:
        return run_here(items, work, listener)
    from harness.tune.ray_tune import run_on_ray  # here, since one worker needs no Ray

    gpu = 1 / math.ceil(at_once / gpus) if gpus else 0.0  # a worker's share is of one GPU alone
    options = RayOptions(cpu=1, gpu=gpu, data_dir=data_dir, at_once=at_once)
    with TemporaryDirectory(prefix="harness-") as scratch:
        run_on_ray(items, work, listener, options, Path(scratch))
