"""`harness.run --dry-run`: what would be run, where, and how long that may take as far as anything is known of it."""

import os
from collections import defaultdict
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.sweep_file import Resources
from harness.config.trial import TrialConfig, to_dict
from harness.launch.pace import minutes
from harness.launch.states import state_of
from harness.launch.study import Study
from harness.storage import folder, names
from harness.storage.files import DamagedFileError
from harness.storage.lease import holder

_UNKNOWN = "not known"
_WIDTH = 200  # where nobody's terminal says


def show(study: Study, retry_failed: bool, ray_address: str | None, console: Console) -> None:
    """Print a line a trial, the resources and the time."""
    tried = {trial.key for trial in study.tried(retry_failed)}
    known = _known(study)
    left = {trial.key: _left(study, trial, known) for trial in study.trials}
    table = Table("trial", "key", "state", "", "would be run", "time", box=None, padding=(0, 2, 0, 0))
    for trial in study.trials:
        place = study.places[trial.key]
        state = state_of(place, trial.config.train.epochs, holder(study.directory))
        time = (minutes(left[trial.key]) or _UNKNOWN) if trial.key in tried else ""
        cells = study.named[trial.key], trial.key, state.state, state.told, "yes" if trial.key in tried else "no", time
        table.add_row(*map(Text, cells))
    wide = console if console.is_terminal else Console(width=_WIDTH, highlight=False)
    wide.print(table)
    sides = _at_once(study.sweep.resources, ray_address)
    console.print(_resources(study.sweep.resources, sides), soft_wrap=True)
    console.print(_time([left[key] for key in tried], sides), soft_wrap=True)
    console.print("a dry run: nothing was started or written", soft_wrap=True)


def _known(study: Study) -> dict[str, list[tuple[float, float | None]]]:
    """What is on record in the sweep's directory: seconds of an epoch and of judging, by row."""
    known: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for place in folder.trial_folders(study.directory):
        try:
            config = folder.read_trial(place / folder.TRIAL).config
            rows, result = folder.read_epochs(place), folder.read_result(place)
        except (DamagedFileError, TypeError):
            continue
        if seconds := [row[names.TRAIN_EPOCH_SECONDS] for row in rows if names.TRAIN_EPOCH_SECONDS in row]:
            known[_row(config)].append((mean(seconds), result.metrics[names.EVALUATION_SECONDS] if result else None))
    return known


def _row(config: TrialConfig) -> str:
    return str({**to_dict(config), "seed": None})


def _left(study: Study, trial: folder.Trial, known: dict[str, list[tuple[float, float | None]]]) -> float | None:
    """Seconds until a trial is done, from what trials of its row took here; None where not all of it is known."""
    own = known.get(_row(trial.config), [])
    judging = [seconds for _, seconds in own if seconds is not None]
    if not judging:
        return None
    done = max((row[names.EPOCH] for row in folder.read_epochs(study.places[trial.key])), default=0)
    return mean(seconds for seconds, _ in own) * (trial.config.train.epochs - done) + mean(judging)


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


def _time(left: list[Any], sides: int | None) -> str:
    known = [seconds for seconds in left if seconds is not None]
    unknown = len(left) - len(known)
    told = f"time: nothing is known of {unknown} trials, of whose rows none has finished here" if unknown else "time:"
    if not known:
        return told if left else "time: none, nothing is left to do"
    of_known = f"{minutes(sum(known))} of work for {len(known)} trials, as their rows took here before"
    spread = f", {minutes(max(max(known), sum(known) / sides))} side by side" if sides else ""
    return f"{told}{'; ' if unknown else ' '}{of_known}{spread}"
