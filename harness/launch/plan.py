"""`harness.run --dry-run`: what would be run, where, and how long that may take as far as anything is known of it."""

import os

import torch
from rich.console import Console

from harness.config.sweep_keys import Resources
from harness.launch.estimate import Estimate, estimates
from harness.launch.gpu_memory import needed, readable, share
from harness.launch.pace import minutes
from harness.launch.states import state_of
from harness.launch.study import Study
from harness.storage.lease import holder
from harness.terminal import print_table

_UNKNOWN = "not known"


def show(study: Study, retry_failed: bool, ray_address: str | None, console: Console) -> None:
    """Print a line a trial, the resources and the time."""
    tried = {trial.key for trial in study.tried(retry_failed)}
    expected = estimates(study, [trial for trial in study.trials if trial.key in tried])
    resources = study.sweep.resources
    memory = needed(study, study.trials) if resources.gpu else {}
    columns = ["trial", "key", "state", "", "would be run", "time", *(["GPU memory"] if memory else [])]
    rows = []
    for trial in study.trials:
        place = study.places[trial.key]
        state = state_of(place, trial.config.train.epochs, holder(study.directory))
        time = _told(expected[trial.key]) if trial.key in tried else ""
        run = "yes" if trial.key in tried else "no"
        cells = [study.named[trial.key], trial.key, state.state, state.told, run, time]
        if memory:
            cells.append(readable(memory[trial.key]) if trial.key in memory else _UNKNOWN)
        rows.append(cells)
    print_table(console, columns, rows)
    sides = _at_once(resources, ray_address)
    console.print(_resources(resources, sides), soft_wrap=True)
    if memory:
        console.print(_memory(max(memory.values()), resources), soft_wrap=True)
    console.print(_time(list(expected.values()), sides), soft_wrap=True)
    console.print("a dry run: nothing was started or written", soft_wrap=True)


def _told(estimate: Estimate) -> str:
    if estimate.seconds is None:
        return _UNKNOWN
    return ("" if estimate.measured else "about ") + minutes(estimate.seconds)


def _at_once(resources: Resources, ray_address: str | None) -> int | None:
    """How many trials this machine runs side by side; None for a cluster, which a dry run does not ask."""
    if ray_address is not None:
        return None
    gpus = torch.cuda.device_count()
    by_cpu = len(os.sched_getaffinity(0)) // resources.cpu
    return min(by_cpu, int(gpus / resources.gpu)) if gpus and resources.gpu else by_cpu


def _resources(resources: Resources, sides: int | None) -> str:
    told = f"resources: {resources.cpu} CPUs and {resources.gpu:g} GPUs a trial; "
    if sides is None:
        return told + "how many fit side by side is the cluster's to say"
    here = f"{len(os.sched_getaffinity(0))} CPUs and {torch.cuda.device_count()} GPUs here"
    return f"{told}{here}: {sides} side by side" + ("" if sides else ", which is too little")


def _memory(most: int, resources: Resources) -> str:
    told = f"memory: training takes up to about {readable(most)} of a GPU"
    here = share(resources.gpu)
    if here is None:
        return told + ", and there is none here"
    told += f"; gpu: {resources.gpu:g} is {readable(here)} here"
    return told + ("" if most <= here else ", which is too little")


def _time(left: list[Estimate], sides: int | None) -> str:
    if not left:
        return "time: none, nothing is left to do"
    seconds = [estimate.seconds for estimate in left if estimate.seconds is not None]
    if not seconds:
        return f"time: nothing is known of {len(left)} trials, of which none has finished here"
    scaled = sum(not estimate.measured for estimate in left)
    told = f"time: {minutes(sum(seconds))} of work for {len(left)} trials, as their rows took here before"
    if scaled:
        told += f", for {scaled} of them as other rows did for their operations"
    return told + (f"; {minutes(max(max(seconds), sum(seconds) / sides))} side by side" if sides else "")
