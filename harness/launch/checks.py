"""What `harness.run` checks with torch before anything starts, in a process of its own (`harness.launch.child`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.profiles import Sweep
from harness.config.sweep_file import load_sweep
from harness.data import load
from harness.device import best_device
from harness.training.trial import split_images


def check_sweep(
    path: Path,
    profile: str | None,
    has_gpu: bool | None,
    assignments: Sequence[str],
    data_dir: str | None,
    writes: bool,
) -> tuple[Sweep, dict[str, Any], bool]:
    """Return a sweep, the summary and the title of its data, and whether there is a GPU.

    has_gpu: of a Ray cluster; None asks this machine. data_dir, writes: as in `load`. Raises InputError.
    """
    if has_gpu is None:
        has_gpu = best_device().type == "cuda"
    sweep = load_sweep(path, profile, has_gpu, assignments)
    data = load(sweep.dataset, data_dir, writes)
    for config in sweep.trials:  # raises InputError if there are fewer images than a batch or a validation set needs
        split_images(config, data)
    return sweep, data.summary() | {"title": data.info.title}, has_gpu
