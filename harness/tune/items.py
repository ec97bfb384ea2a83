"""Items of work, such as a trial of a sweep or a range of images, done under Ray or in this process."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.common.errors import error_line, require
from harness.machine.device import best_device, count_cores
from harness.machine.freed_memory import free_memory
from harness.training.trial import Report


@dataclass(frozen=True)
class Item:
    """A piece of work.

    directory: where its results go, such as a trial's folder.
    label: its name in messages and in Ray's dashboard.
    settings: JSON, such as a trial's config; Ray shows it.
    images: those that an item of `harness.certify` evaluates; None for every other item, which is all of a trial.
    """

    directory: Path
    label: str = field(compare=False)
    settings: dict[str, Any] = field(compare=False)
    images: range | None = None

    @property
    def size(self) -> int:
        """What progress counts: images, or 1 for all of a trial."""
        return 1 if self.images is None else len(self.images)


Work = Callable[[Item, Report], dict[str, Any]]
"""Does an item and returns its last numbers."""


class Listener:
    """What happens to items, told to the process of the command; the methods here do nothing."""

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
    at_once: the most items that are started at a time; None for as many as fit, and more that wait.
    address: of a running cluster; None starts one on this machine.
    dashboard: whether the Ray that is started has its dashboard.
    """

    cpu: int
    gpu: float
    at_once: int | None
    address: str | None = None
    dashboard: bool = False


def machines_at(ray_address: str | None) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of this machine, or of each machine of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        from harness.tune.ray_connection import machines_of_cluster  # here, since a finished sweep needs no Ray

        return machines_of_cluster(ray_address)
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return [{"CPU": count_cores(), "GPU": gpus}]


def check_fits(machines: list[dict[str, float]], cpu: int, gpu: float) -> None:
    """Raise SettingError unless a machine has what an item reserves: Ray would wait for it for ever."""
    most = max((machine["GPU"] for machine in machines), default=0)
    require("resources.gpu", gpu, gpu <= most, f"at most {most:g}, the GPUs of one machine")
    most = max((machine["CPU"] for machine in machines if machine["GPU"] >= gpu), default=0)
    beside = f" with {gpu:g} GPU" if gpu else ""
    require("resources.cpu", cpu, cpu <= most, f"at most {most:g}, the CPUs of one machine{beside}")


def count_fitting(machines: list[dict[str, float]], cpu: int, gpu: float) -> int:
    """Return how many items that reserve these CPUs and GPUs the machines do at a time."""
    needs = [(name, count) for name, count in (("CPU", cpu), ("GPU", gpu)) if count]
    return sum(min(int(machine[name] / count) for name, count in needs) for machine in machines)


def share_machine(count: int, workers: int | None) -> RayOptions | None:
    """Return how so many items are done on this machine, one for each GPU or core; None for one at a time.

    workers: how many at a time, if that is asked for.
    """
    gpus = torch.cuda.device_count()
    at_once = min(count, workers or gpus or count_cores())
    gpu = 1 / math.ceil(at_once / gpus) if gpus and at_once else 0.0  # a worker's share is of one GPU alone
    return RayOptions(cpu=1, gpu=gpu, at_once=at_once) if at_once > 1 else None


def run_items(
    items: Iterable[Item], work: Work, listener: Listener, ray: RayOptions | None, directory: Path | None = None
) -> bool:
    """Do items under Ray or, without its options, in this process; return False if `FailedFast` has ended that.

    An item that fails ends no other one. directory: where Ray writes what it knows, if that is to stay. Raises as
    `run_on_ray` does.
    """
    try:
        if ray is None:
            for item in items:
                _do_here(item, work, listener)
        else:
            listener.on_text("connects to Ray" if ray.address else "loads Ray and starts it")
            from harness.tune.ray_tune import run_on_ray  # here, since it takes seconds

            run_on_ray(iter(items), work, listener, ray, directory)
    except FailedFast:
        listener.on_text("a trial failed: the others are stopped")
        return False
    return True


def _do_here(item: Item, work: Work, listener: Listener) -> None:
    error = None
    listener.on_start(item)
    try:
        work(item, partial(listener.on_report, item))
    except Exception as cause:
        error = error_line(cause)
    free_memory()
    listener.on_end(item, error)
