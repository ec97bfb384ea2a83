"""Show the state of each trial of a sweep, from its folders alone: `python -m harness.status results/<sweep>`.

A trial counts as running if a run holds the directory and has written to the trial's folder since it began. A trial
that `harness.trial` runs is shown as unfinished, with the time of the last write.
"""

import argparse
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from harness import command_line
from harness.command_line import OK, add_sweep_directory
from harness.config.trial import RECIPE_VERSION, TrialConfig, labels
from harness.errors import InputError
from harness.launch.states import State, state_of
from harness.storage import certification, folder
from harness.storage.files import DamagedFileError
from harness.storage.lease import holder
from harness.terminal import new_console, print_table

_DAMAGED = "cannot be read"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_sweep_directory(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError if there are no trials."""
    sweep_dir = options.directory
    if not (trial_dirs := folder.trial_folders(sweep_dir)):
        raise InputError(f"{sweep_dir} holds no trials: there is no {sweep_dir}/trials/*/{folder.TRIAL}")
    run = holder(sweep_dir)
    if run:
        span = _span(max(0.0, time.time() - run["since"]))
        print(f"process {run['process']} on {run['host']} has held {sweep_dir} for {span}")
    else:
        print(f"no run that is seen from here holds {sweep_dir}")
    rows, counts = list[list[str]](), Counter[str]()
    for label, trial_dir, config in _label(trial_dirs):
        state = _state(trial_dir, config, run)
        counts[state.state] += 1
        written = "" if state.age is None else f"{_span(state.age)} ago"
        size = _size(_bytes(trial_dir))
        description, certified = state.description, _describe_certifications(trial_dir)
        rows.append([label, trial_dir.name, state.state, description, written, certified, size])
    print_table(new_console(), ["trial", "key", "state", "", "written", "certified", "disk"], rows)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{len(trial_dirs)} trials: {summary}; {_size(_bytes(sweep_dir))} on disk")
    return OK


def _label(trial_dirs: list[Path]) -> list[tuple[str, Path, TrialConfig | None]]:
    """Return the label, folder and config of each trial by label; '?' and None if its file cannot be read."""
    trials = {}
    for trial_dir in trial_dirs:
        with suppress(DamagedFileError):
            trials[trial_dir] = folder.read_trial(trial_dir / folder.TRIAL)
    by_dir = dict(zip(trials, labels([trial.config for trial in trials.values()]), strict=True))
    for trial_dir, trial in trials.items():
        if trial.recipe_version != RECIPE_VERSION:
            by_dir[trial_dir] += f" (recipe {trial.recipe_version})"
    configs = {trial_dir: trial.config for trial_dir, trial in trials.items()}
    rows = [(by_dir.get(trial_dir, "?"), trial_dir, configs.get(trial_dir)) for trial_dir in trial_dirs]
    return sorted(rows, key=lambda row: row[0])


def _state(trial_dir: Path, config: TrialConfig | None, run: dict[str, object] | None) -> State:
    try:
        return state_of(trial_dir, config.train.epochs, run) if config else State(_DAMAGED, folder.TRIAL, None)
    except DamagedFileError as error:
        return State(_DAMAGED, str(error), None)


def _describe_certifications(trial_dir: Path) -> str:
    """Return the names of a trial's certifications, and how far unfinished ones are."""
    names = []
    for path in certification.folders(trial_dir):
        is_finished = (path / folder.RESULT).exists()
        names.append(path.name if is_finished else f"{path.name} ({certification.shards_begun(path)} shards so far)")
    return ", ".join(names)


def _bytes(directory: Path) -> int:
    """Return the size of the files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    raise SystemExit(command_line.main("status"))
