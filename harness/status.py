"""`python -m harness.status results/<sweep>`: what a sweep is at, while it runs and after, from its folders alone.

A trial is called running where a run holds the directory and has written for the trial since it began; so much can be
told from folders. Trials that `harness.trial` works on look unfinished: how long ago something was written for them
says more.
"""

import argparse
import time
from collections import Counter
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
    """What the command takes."""
    add_sweep_directory(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where there are no trials."""
    directory = options.directory
    if not (places := folder.trial_folders(directory)):
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    held = holder(directory)
    if held:
        span = _span(max(0.0, time.time() - held["since"]))
        print(f"process {held['process']} on {held['host']} has held {directory} for {span}")
    else:
        print(f"no run that is seen from here holds {directory}")
    rows, counts = list[list[str]](), Counter[str]()
    for label, place, config in _labelled(places):
        state = _state(place, config, held)
        counts[state.state] += 1
        written = "" if state.age is None else f"{_span(state.age)} ago"
        size = _size(_bytes(place))
        rows.append([label, place.name, state.state, state.told, written, _certifications(place), size])
    print_table(new_console(), ["trial", "key", "state", "", "written", "certified", "disk"], rows)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{len(places)} trials: {told}; {_size(_bytes(directory))} on disk")
    return OK


def _labelled(places: list[Path]) -> list[tuple[str, Path, TrialConfig | None]]:
    """Each trial by its label, with its config where that can be read; those of older recipes say so."""
    read = {place: _config(place) for place in places}
    configs = {place: config for place, (config, _) in read.items() if config}
    named = dict(zip(configs, labels(list(configs.values())), strict=True))
    found = [(named.get(place, "?") + read[place][1], place, read[place][0]) for place in places]
    return sorted(found, key=lambda one: one[0])


def _config(place: Path) -> tuple[TrialConfig | None, str]:
    try:
        trial = folder.read_trial(place / folder.TRIAL)
    except DamagedFileError:
        return None, ""
    old = "" if trial.recipe_version == RECIPE_VERSION else f" (recipe {trial.recipe_version})"
    return trial.config, old


def _state(place: Path, config: TrialConfig | None, held: dict[str, object] | None) -> State:
    try:
        return state_of(place, config.train.epochs, held) if config else State(_DAMAGED, folder.TRIAL, None)
    except DamagedFileError as error:
        return State(_DAMAGED, str(error), None)


def _certifications(place: Path) -> str:
    """What `harness.certify` made of it, or is at."""
    told = []
    for path in certification.folders(place):
        if (path / folder.RESULT).exists():
            told.append(path.name)
        else:
            told.append(f"{path.name} ({certification.shards_begun(path)} shards so far)")
    return ", ".join(told)


def _bytes(directory: Path) -> int:
    """What lies below a directory; files that go away meanwhile do not count."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except OSError:
            continue
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
