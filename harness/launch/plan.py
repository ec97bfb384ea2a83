"""`harness.run --dry-run`: which trials would run, where, and how long that may take."""

import os

import torch
from rich.console import Console

from harness.config.sweep_keys import Resources
from harness.launch.estimate import seconds_left
from harness.launch.pace import minutes
from harness.launch.states import state_of
from harness.launch.study import Study
from harness.storage.lease import holder
from harness.terminal import print_table

_UNKNOWN = "unknown"


def show(study: Study, retry_failed: bool, ray_address: str | None, console: Console) -> None:
    """Print a line for each trial, the resources and the time."""
    to_run = {trial.key for trial in study.tried(retry_failed)}
    left = seconds_left(study, [trial for trial in study.trials if trial.key in to_run])
    rows = []
    for trial in study.trials:
        state = state_of(study.places[trial.key], trial.config.train.epochs, holder(study.directory))
        time = (minutes(left[trial.key]) or _UNKNOWN) if trial.key in to_run else ""
        would_run = "yes" if trial.key in to_run else "no"
        rows.append([study.named[trial.key], trial.key, state.state, state.told, would_run, time])
    print_table(console, ["trial", "key", "state", "", "would run", "time"], rows)
    side_by_side = None if ray_address else _count_side_by_side(study.sweep.resources)
    console.print(_describe_resources(study.sweep.resources, side_by_side), soft_wrap=True)
    console.print(_describe_time(list(left.values()), side_by_side), soft_wrap=True)
    console.print("dry run: nothing was started or written", soft_wrap=True)


def _count_side_by_side(resources: Resources) -> int:
    """Return how many trials this machine runs at a time."""
    gpus = torch.cuda.device_count()
    by_cpu = len(os.sched_getaffinity(0)) // resources.cpu
    return min(by_cpu, int(gpus / resources.gpu)) if gpus and resources.gpu else by_cpu


def _describe_resources(resources: Resources, side_by_side: int | None) -> str:
    each = f"resources: {resources.cpu} CPUs and {resources.gpu:g} GPUs a trial"
    if side_by_side is None:
        return f"{each}; the cluster decides how many run side by side"
    here = f"{len(os.sched_getaffinity(0))} CPUs and {torch.cuda.device_count()} GPUs here"
    return f"{each}; {here}: {side_by_side} side by side" + ("" if side_by_side else ", which is too little")


def _describe_time(left: list[float | None], side_by_side: int | None) -> str:
    """Return the time that the trials need, as far as trials of their rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    known = [seconds for seconds in left if seconds is not None]
    if not known:
        return f"time: unknown, no trial of these {len(left)} trials' rows has finished here"
    work = f"time: {minutes(sum(known))} of work for {len(known)} of {len(left)} trials"
    if not side_by_side:
        return work
    return f"{work}; {minutes(max(max(known), sum(known) / side_by_side))} side by side"
