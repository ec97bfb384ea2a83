"""What `harness.run` checks before anything starts."""

import os
from pathlib import Path
from typing import Any

import torch

from harness.common.errors import InputError, require
from harness.data import load
from harness.machine.device import best_device
from harness.storage import folder
from harness.storage.files import refuse_links
from harness.sweep.file import expand_file
from harness.sweep.profiles import CheckedFile, Sweep, describe_source, name_source
from harness.training.trial import split_images


def machine_at(ray_address: str | None) -> dict[str, float]:
    """Return the "CPU" and "GPU" of this machine, or of the largest one of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        from harness.tune.resources import resources_at  # here, since a finished sweep needs no Ray

        return resources_at(ray_address)
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return {"CPU": os.cpu_count() or 1, "GPU": gpus}


def load_checked(
    file: CheckedFile, machine: dict[str, float], data_dir: str | None, writes: bool
) -> tuple[Sweep, dict[str, Any]]:
    """Return a file's sweep, and the summary and title of its data.

    data_dir, writes: as in `load`. Raises InputError, also for fewer images than a batch or a validation set needs.
    """
    sweep = expand_file(file, machine["GPU"] > 0)
    data = load(sweep.dataset, data_dir, writes)
    try:
        for config in sweep.trials:
            split_images(config, data)
    except InputError as error:
        raise _name_source(error, sweep, file) from None
    return sweep, data.summary() | {"title": data.info.title}


def check_resources(sweep: Sweep, machine: dict[str, float], file: CheckedFile, is_cluster: bool) -> None:
    """Raise InputError if a trial reserves more than a machine has; GPUs count only where there is one."""
    where = "of the cluster's largest machine" if is_cluster else "of this machine"
    for name, needed in (("CPU", sweep.resources.cpu), ("GPU", sweep.resources.gpu)):
        allowed = f"at most {machine[name]:g}, the {name}s {where}"
        try:
            require(f"resources.{name.lower()}", needed, needed <= machine[name] or machine[name] == 0, allowed)
        except InputError as error:
            raise _name_source(error, sweep, file) from None


def check_owner(sweep_dir: Path, sweep: Sweep) -> None:
    """Raise InputError if the directory holds trials of another name, data set or eps, or a link leads out of it."""
    refuse_links(sweep_dir)
    expected = f"{sweep.name} on {sweep.dataset} at eps {sweep.eps}"
    for trial_dir in folder.trial_folders(sweep_dir):
        if folder.is_stale(trial_dir):
            continue
        config = folder.read_trial(trial_dir / folder.TRIAL).config
        owner = f"{config.sweep} on {config.dataset} at eps {config.eps}"
        if owner != expected:
            message = f"{sweep_dir} belongs to another sweep: found {owner}, this one is {expected}"
            raise InputError(f"{message}; rename one of them")


def _name_source(error: InputError, sweep: Sweep, file: CheckedFile) -> InputError:
    return name_source(error, sweep.profile, describe_source(file.path, file.assignments), "")
