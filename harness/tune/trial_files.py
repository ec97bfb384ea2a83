"""Trials that results describe: checked against this code and its data, and trained again in this process."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from rich.console import Console

from harness.common.errors import SettingError, located, require
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for, require_trusted
from harness.config.trial import RECIPE_VERSION
from harness.data import Data, load
from harness.own_data import OwnData
from harness.pretrained.network_file import read_file
from harness.storage import folder
from harness.storage.files import DamagedFileError, make_directory, refuse_links
from harness.storage.state import State, read_state
from harness.training.trial import split_images
from harness.tune.run_sweep import RunOptions, run_trials


def run_trial_files(
    paths: list[Path], results_dir: Path, data_dir: str | None, console: Console, trusted: Collection[str]
) -> bool:
    """Train the trials that have no result below `results_dir`; return True if all have one then.

    trusted: the plugins that may be imported. Raises InputError for a file that is no trial of this code or names
    another plugin, or data that is not the trial's; nothing was started.
    """
    records, sources = dict[Path, folder.TrialRecord](), dict[Path, Path]()
    for path in paths:
        record = _load_trial(path)
        require_trusted(record.config, trusted)
        refuse_links(results_dir / record.config.sweep)
        trial_dir = folder.trial_dir(results_dir / record.config.sweep, record.key)
        if read_state(trial_dir).state is State.FINISHED:
            console.print(f"{record.config.label} -> {trial_dir}: finished")
            continue
        with located(f"{path}: "):
            split_images(record.config, load_data(record, partial(load, data_dir=data_dir)))
        if record.config.checkpoint is not None:
            stored = trial_dir / folder.NETWORK_FILE
            sources[trial_dir] = stored if stored.exists() else path.with_name(folder.NETWORK_FILE)
            read_file(sources[trial_dir], record.config.checkpoint)
        records[trial_dir] = record
    for trial_dir, record in records.items():
        make_directory(trial_dir)
        folder.take_over(trial_dir, record)
        if record.config.checkpoint is not None:
            folder.copy_network_file(record.config.checkpoint, sources[trial_dir], trial_dir / folder.NETWORK_FILE)
        console.print(f"{record.config.label} -> {trial_dir}")
    run_trials(records, RunOptions(None, data_dir), console)
    return all(read_state(trial_dir).state is State.FINISHED for trial_dir in records)


def _load_trial(path: Path) -> folder.TrialRecord:
    try:
        record = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a sweep file *.yaml, or a trial.json of results") from None
    version = record.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, that of this code")
    return record


def load_data(record: folder.TrialRecord, load_source: Callable[[str | OwnData], Data]) -> Data:
    """Return the data set of a trial, after checking that this code can run the trial on it.

    load_source: `harness.data.load`. Raises InputError if it cannot, or if the data is missing or another one.
    """
    load_for(record.config)
    check_buildable(record.config)
    data = load_source(record.config.data_source)
    fits = data.fingerprint == record.fingerprint
    require("data", data.fingerprint, fits, f"the data it was made for, {record.fingerprint}")
    return data
