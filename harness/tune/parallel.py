"""Items, several at a time: under Ray, or in this process."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.tune.work import OnEnd, OnReport, RayOptions, Work, run_here


def run_items(
    items: list[Path], work: Work, on_end: OnEnd, data_dir: str, workers: int | None,
    on_report: OnReport = lambda item, row: None,
) -> None:  # fmt: skip
    """Do items: under Ray, or in this process if only one is to be done at a time.

    workers: how many at a time; None for one on each GPU or, without any, on each core.
    """
    import torch

    gpus = torch.cuda.device_count()
    at_once = min(len(items), workers or gpus or len(os.sched_getaffinity(0)))
    if at_once <= 1:
        return run_here(items, work, on_report, on_end)
    from harness.tune.ray_tune import run_on_ray

    options = RayOptions(cpu=1, gpu=min(1.0, gpus / at_once), data_dir=data_dir, at_once=at_once)
    with TemporaryDirectory(prefix="harness-") as scratch:
        run_on_ray(items, work, on_report, on_end, options, Path(scratch))
