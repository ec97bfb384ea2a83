"""Print the states of a sweep's trials, as `harness.tables --status` does."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rich import filesize

from harness.common.errors import InputError
from harness.common.terminal import new_console, print_table, say
from harness.storage import certification, folder, ranges
from harness.storage.lock import holder
from harness.storage.state import read_state


def print_status(sweep_dir: Path) -> None:
    """Print the state of each trial of a sweep. Raises InputError if there are no trials."""
    if not (trial_dirs := folder.trial_folders(sweep_dir)):
        raise InputError(f"{sweep_dir} holds no trials: there is no {sweep_dir}/trials/*/{folder.TRIAL}")
    run = holder(sweep_dir)
    if run:
        say(f"process {run.process} on {run.host} has held {sweep_dir} for {_span(run.since)}")
    else:
        say(f"no run on this machine is using {sweep_dir}")
    rows, counts = list[list[str]](), Counter[str]()
    for trial_dir in trial_dirs:
        state = read_state(trial_dir, run.since if run else None)
        counts[state.state] += 1
        age = "" if state.written is None else f"{_span(state.written)} ago"
        certified = ", ".join(map(_describe_certification, certification.folders(trial_dir)))
        size = filesize.decimal(_bytes(trial_dir))
        label = state.trial.config.label if state.trial else "?"
        rows.append([label, trial_dir.name, state.state, state.description, age, certified, size])
    print_table(new_console(), ["trial", "key", "state", "", "written", "certified", "disk"], sorted(rows))
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    say(f"{len(trial_dirs)} trials: {summary}; {filesize.decimal(_bytes(sweep_dir))} on disk")


def _describe_certification(directory: Path) -> str:
    """Return the name of a certification, and how far it is if it is unfinished."""
    if read_state(directory).result is not None:
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
