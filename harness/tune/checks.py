"""What `harness.run` checks with torch before anything starts, in a process of its own (`harness.tune.child`)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.checker.images import describe_unreadable
from harness.common.errors import InputError
from harness.data import load
from harness.machine.device import best_device
from harness.sweep.file import load_sweep
from harness.sweep.profiles import Sweep, describe_source, name_source
from harness.training.trial import split_images


def check_sweep(
    path: Path,
    profile: str | None,
    machine: dict[str, float] | None,
    assignments: Sequence[str],
    data_dir: str | None,
    writes: bool,
) -> tuple[Sweep, dict[str, Any], dict[str, float], list[str]]:
    """Return a sweep, the summary and the title of its data, the machine's "CPU" and "GPU", and warnings.

    machine: of a Ray cluster; None asks this one. data_dir, writes: as in `load`. Raises InputError.
    """
    if machine is None:
        gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
        machine = {"CPU": os.cpu_count() or 1, "GPU": gpus}
    sweep = load_sweep(path, profile, machine["GPU"] > 0, assignments)
    data = load(sweep.dataset, data_dir, writes)
    try:
        for config in sweep.trials:  # raises for fewer images than a batch or a validation set needs
            split_images(config, data)
    except InputError as error:
        raise name_source(error, sweep.profile, describe_source(path, assignments), "") from None
    return sweep, data.summary() | {"title": data.info.title}, machine, describe_unreadable(sweep.trials)
