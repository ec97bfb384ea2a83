"""Print the states of a sweep's trials, what `harness.run` starts, and with --dry-run how long that takes.

A trial counts as running if a run holds the directory and has written to the trial's folder since it began. A trial
that `harness.run --here` runs is shown as unfinished, with the time of the last write.
"""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import filesize
from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import new_console, print_table, say, with_plural
from harness.config.file import CPU_PROFILE
from harness.config.trial import FULL_PROFILE
from harness.settings import describe_weak_attack
from harness.storage import certification, folder, ranges
from harness.storage.files import DamagedFileError
from harness.storage.lock import holder
from harness.storage.state import State, read_state
from harness.tune.planned_sweep import PlannedSweep
from harness.tune.progress import percent
from harness.tune.time_left import minutes, wall_seconds
from harness.tune.workers import RayOptions


def describe_state(trial_dir: Path, run: dict[str, Any] | None) -> tuple[str, str]:
    """Return a trial's state and description; of a finished trial its certified error.

    run: that holds the sweep's directory, from `holder`.
    """
    found = read_state(trial_dir, run["since"] if run else None)
    if found.state is State.DAMAGED:
        raise DamagedFileError(found.description)
    if found.result is not None:
        return found.state, f"certified error {percent(found.result.metrics.get(names.CERTIFIED_ERROR))}"
    return found.state, found.description


def print_status(sweep_dir: Path) -> None:
    """Print the state of each trial of a sweep. Raises InputError if there are no trials."""
    if not (trial_dirs := folder.trial_folders(sweep_dir)):
        raise InputError(f"{sweep_dir} holds no trials: there is no {sweep_dir}/trials/*/{folder.TRIAL}")
    run = holder(sweep_dir)
    if run:
        say(f"process {run['process']} on {run['host']} has held {sweep_dir} for {_span(run['since'])}")
    else:
        say(f"no run on this machine is using {sweep_dir}")
    configs = {}
    for trial_dir in trial_dirs:
        with suppress(DamagedFileError):
            configs[trial_dir] = folder.read_trial(trial_dir / folder.TRIAL).config
    by_dir = {path: configs[path].label if path in configs else "?" for path in trial_dirs}
    rows, counts = list[list[str]](), Counter[str]()
    for trial_dir, label in sorted(by_dir.items(), key=lambda item: item[1]):
        written = folder.last_write(trial_dir)
        try:
            state, description = describe_state(trial_dir, run)
        except DamagedFileError as error:
            state, description, written = "cannot be read", str(error), None
        counts[state] += 1
        age = "" if written is None else f"{_span(written)} ago"
        certified = ", ".join(map(_describe_certification, certification.folders(trial_dir)))
        size = filesize.decimal(_bytes(trial_dir))
        rows.append([label, trial_dir.name, state, description, age, certified, size])
    print_table(new_console(), ["trial", "key", "state", "", "written", "certified", "disk"], rows)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    say(f"{len(trial_dirs)} trials: {summary}; {filesize.decimal(_bytes(sweep_dir))} on disk")


def _describe_certification(directory: Path) -> str:
    """Return the name of a certification, and how far it is if it is unfinished."""
    if (directory / folder.RESULT).exists():
        return directory.name
    return f"{directory.name} ({ranges.count_saved_images(directory)} images so far)"


def _bytes(directory: Path) -> int:
    """Return the size of the files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def _span(since: float) -> str:
    """Return how long ago a time was, in seconds since 1970."""
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_header(plan: PlannedSweep, gpus: float, asked_profile: str | None, console: Console) -> None:
    """Print what runs, on which data, under which profile. gpus: what a trial reserves."""
    sweep, data, trials = plan.sweep, plan.data, plan.trials
    config = sweep.trials[0]
    all_trials = with_plural(len(sweep.trials), "trial")
    counted = all_trials if len(trials) == len(sweep.trials) else f"{len(trials)} of {all_trials}"
    lines = [
        f"{sweep.name}: {data['title']}, eps {sweep.eps}, profile {sweep.profile}; "
        f"{counted}, {len(trials) - len(plan.unfinished())} finished already",
        f"data: {data['description']}",
    ]
    if sweep.profile == CPU_PROFILE and asked_profile is None:
        lines.append("no GPU here: profile 'cpu' was picked")
    elif sweep.resources.gpu and not gpus:
        lines.append("no GPU here: trials train on the CPU")
    if sweep.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({trial.width for trial in sweep.trials}))
        epochs = ", ".join(str(count) for count in sorted({trial.epochs for trial in sweep.trials}))
        lines.append(
            f"profile '{sweep.profile}': width {widths}, {config.train_images or 'all'} training images, "
            f"{epochs} epochs; its numbers are not comparable with published ones"
        )
    if changed := [trial for trial in trials if trial.key not in plan.unchanged_keys]:
        lines.append(
            f"{len(changed)} trials differ from the sweep file: tables list them under profile "
            f"'{changed[0].config.profile}'; their numbers are not comparable with published ones"
        )
    attack = config.evaluation
    if warning := describe_weak_attack(attack.attack_step, attack.attack_steps):
        lines.append(f"warning: {warning}")
    console.print("\n".join(lines), soft_wrap=True)


def print_plan(plan: PlannedSweep, ray: RayOptions, at_once: int, retry_failed: bool, console: Console) -> None:
    """Print a line for each trial, the resources and the time. at_once: how many trials run side by side."""
    to_run = {trial.key for trial in plan.to_run(retry_failed)}
    left = plan.seconds_left([trial for trial in plan.trials if trial.key in to_run])
    rows = []
    for trial in plan.trials:
        state = describe_state(plan.trial_dirs[trial.key], holder(plan.sweep_dir))
        seconds = left.get(trial.key)
        time = "" if trial.key not in to_run else "unknown" if seconds is None else minutes(seconds)
        would_run = "yes" if trial.key in to_run else "no"
        rows.append([trial.config.label, trial.key, *state, would_run, time])
    print_table(console, ["trial", "key", "state", "", "would run", "time"], rows)
    each = f"resources: {ray.cpu} CPUs and {ray.gpu:g} GPUs for each trial"
    console.print(f"{each}: {at_once} side by side", soft_wrap=True)
    console.print(_describe_time(list(left.values()), at_once), soft_wrap=True)
    console.print("dry run: nothing was started or written", soft_wrap=True)


def _describe_time(left: list[float | None], at_once: int) -> str:
    """Return the time that the trials need, as far as trials of their rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    estimates = [seconds for seconds in left if seconds is not None]
    if not estimates:
        return "time: unknown until one trial of a row has finished"
    work = f"time: {minutes(sum(estimates))} of work for {len(estimates)} of {len(left)} trials"
    return f"{work}; {minutes(wall_seconds(estimates, at_once))} side by side" if at_once > 1 else work
