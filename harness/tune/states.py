"""The state of a trial, read from its folder, and the states of a sweep's trials, printed.

A trial counts as running if a run holds the directory and has written to the trial's folder since it began. A trial
that `harness.trial` runs is shown as unfinished, with the time of the last write.
"""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import filesize

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import new_console, print_table, say
from harness.storage import certification, folder
from harness.storage.files import DamagedFileError
from harness.storage.lock import holder
from harness.sweep.trial_config import TrialConfig, labels
from harness.tune.progress import percent

FINISHED, FAILED, RUNNING, UNFINISHED, NOT_BEGUN = "finished", "failed", "running", "unfinished", "not begun"


@dataclass(frozen=True)
class State:
    """The state of a trial: one of the names above.

    description: the error, or how far the trial is. age: seconds since the last write, None before the first.
    """

    state: str
    description: str
    age: float | None


def state_of(trial_dir: Path, epochs: int, run: dict[str, Any] | None) -> State:
    """Return the state of a trial of so many epochs, 0 for a network trained elsewhere. Raises DamagedFileError.

    run: that holds the sweep's directory, from `holder`. A trial counts as running if it has written to its
    folder since it began, also when its worker has just died.
    """
    written = folder.last_write(trial_dir)
    age = None if written is None else max(0.0, time.time() - written)
    if (result := folder.read_result(trial_dir)) is not None:
        return State(FINISHED, f"certified error {percent(result.metrics.get(names.CERTIFIED_ERROR))}", age)
    if (failure := folder.read_failure(trial_dir)) is not None:
        return State(FAILED, str(failure["error"]), age)
    if written is None:
        return State(NOT_BEGUN, "", age)
    done = folder.last_epoch(trial_dir)
    parts = [f"epoch {done} of {epochs}"] if epochs else []
    parts += ["being evaluated"] if (trial_dir / folder.SHARDS).exists() else []
    description = ", ".join(parts)
    return State(RUNNING if run and written >= run["since"] else UNFINISHED, description, age)


def print_status(sweep_dir: Path) -> None:
    """Print the state of each trial of a sweep. Raises InputError if there are no trials."""
    if not (trial_dirs := folder.trial_folders(sweep_dir)):
        raise InputError(f"{sweep_dir} holds no trials: there is no {sweep_dir}/trials/*/{folder.TRIAL}")
    run = holder(sweep_dir)
    if run:
        span = _span(max(0.0, time.time() - run["since"]))
        say(f"process {run['process']} on {run['host']} has held {sweep_dir} for {span}")
    else:
        say(f"no run on this machine is using {sweep_dir}")
    configs = {}
    for trial_dir in trial_dirs:
        with suppress(DamagedFileError):
            configs[trial_dir] = folder.read_trial(trial_dir / folder.TRIAL).config
    by_dir = dict.fromkeys(trial_dirs, "?") | dict(zip(configs, labels(list(configs.values())), strict=True))
    rows, counts = list[list[str]](), Counter[str]()
    for trial_dir, label in sorted(by_dir.items(), key=lambda item: item[1]):
        state = _state(trial_dir, configs.get(trial_dir), run)
        counts[state.state] += 1
        written = "" if state.age is None else f"{_span(state.age)} ago"
        certified = ", ".join(map(_describe_certification, certification.folders(trial_dir)))
        size = filesize.decimal(_bytes(trial_dir))
        rows.append([label, trial_dir.name, state.state, state.description, written, certified, size])
    print_table(new_console(), ["trial", "key", "state", "", "written", "certified", "disk"], rows)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    say(f"{len(trial_dirs)} trials: {summary}; {filesize.decimal(_bytes(sweep_dir))} on disk")


def _state(trial_dir: Path, config: TrialConfig | None, run: dict[str, object] | None) -> State:
    try:
        if config is None:
            raise DamagedFileError(folder.TRIAL)
        state = state_of(trial_dir, config.epochs, run)
    except DamagedFileError as error:
        return State("cannot be read", str(error), None)
    if folder.is_stale(trial_dir):
        return replace(state, state=f"{state.state}, of another recipe")
    return state


def _describe_certification(directory: Path) -> str:
    """Return the name of a certification, and how far it is if it is unfinished."""
    if (directory / folder.RESULT).exists():
        return directory.name
    begun = len(list((directory / folder.SHARDS).glob("*.json")))
    return f"{directory.name} ({begun} parts so far)"


def _bytes(directory: Path) -> int:
    """Return the size of the files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
