"""Whether a trial's share of a GPU holds what its training takes."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

from harness.config.trial import identity
from harness.device import memory_share
from harness.launch.study import Study
from harness.storage.folder import Trial
from harness.training.footprint import training_memory


def needed(study: Study, trials: Iterable[Trial]) -> dict[str, int]:
    """Bytes that training takes, by key, as `training_memory` counts them; a row's trials take the same.

    Those are left out of which it cannot be told, such as where a user's network asks for values of tensors.
    """
    rows: dict[str, int] = {}
    found = {}
    for trial in trials:
        config = trial.config
        row = identity(config)
        if row not in rows:
            with suppress(Exception):  # whatever a network or a method of a user's does where tensors have no values
                rows[row] = training_memory(config, study.training_images(config))
        if row in rows:
            found[trial.key] = rows[row]
    return found


def readable(size: int) -> str:
    """Such as 4.4 GiB, or 80 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


def share(gpu: float) -> int | None:
    """Bytes that a trial may have of this machine's smallest GPU; None where there is none, or trials ask for none."""
    devices: list[Any] = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    if not devices or not gpu:
        return None
    return memory_share(gpu, min(device.total_memory for device in devices))


def warning(study: Study, trials: list[Trial]) -> str | None:
    """What is wrong where the training of one of these trials takes more than its share of a GPU here."""
    gpu = study.sweep.resources.gpu
    if (most := share(gpu)) is None or not (memory := needed(study, trials)):
        return None
    largest = max(memory, key=lambda key: memory[key])
    if memory[largest] <= most:
        return None
    return (
        f"warning: training {study.named[largest]} takes about {readable(memory[largest])}, and gpu: {gpu:g} is "
        f"{readable(most)} here: batches will be divided, or it fails; raise `resources.gpu` or `train.accumulate`"
    )
