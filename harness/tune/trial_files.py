"""Train the trials that files trial.json of results describe again, in this process."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from harness.common.errors import InputError, SettingError, require
from harness.config.plugins import require_trusted
from harness.config.trial import RECIPE_VERSION
from harness.pretrained.checkpoint import read_file
from harness.storage import folder
from harness.storage.files import DamagedFileError, make_directory, refuse_links
from harness.training.trial import split_images
from harness.tune.run_sweep import run_trials
from harness.tune.workers import load_data


def run_trial_files(
    paths: list[Path], results_dir: Path, data_dir: str | None, console: Console, trusted: Collection[str]
) -> bool:
    """Train the trials that have no result below `results_dir`; return True if all have one then.

    trusted: the plugins that may be imported. Raises InputError for a file that is no trial of this code or names
    another plugin, or data that is not the trial's; nothing was started.
    """
    trials = {str(path): _load_trial(path) for path in paths}
    for trial in trials.values():
        require_trusted(trial.config, trusted)
    trial_dirs = {name: folder.trial_dir(results_dir / trial.config.sweep, trial.key) for name, trial in trials.items()}
    for name, trial in trials.items():
        refuse_links(results_dir / trial.config.sweep)
        folder.refuse_another(trial_dirs[name], trial)
    unfinished = {name: trial for name, trial in trials.items() if folder.read_result(trial_dirs[name]) is None}
    for name in trials.keys() - unfinished.keys():
        console.print(f"{trials[name].config.label} -> {trial_dirs[name]}: finished", soft_wrap=True)
    sources = dict[str, Path]()  # of checkpoints
    for name, trial in unfinished.items():
        data = load_data({name: trial}, data_dir)[trial.config.data_source]
        try:
            split_images(trial.config, data)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if trial.config.checkpoint is not None:
            stored = trial_dirs[name] / folder.IMPORTED
            sources[name] = stored if stored.exists() else Path(name).with_name(folder.IMPORTED)
            read_file(sources[name], trial.config.checkpoint)
    for name, trial in unfinished.items():
        make_directory(trial_dirs[name])
        folder.take_over(trial_dirs[name], trial)
        if trial.config.checkpoint is not None:
            folder.copy_checkpoint(trial.config.checkpoint, sources[name], trial_dirs[name] / folder.IMPORTED)
        console.print(f"{trial.config.label} -> {trial_dirs[name]}", soft_wrap=True)
    run_trials({trial_dirs[name]: trial for name, trial in unfinished.items()}, None, data_dir, console)
    return all(folder.read_result(trial_dir) is not None for trial_dir in trial_dirs.values())


def _load_trial(path: Path) -> folder.TrialRecord:
    try:
        trial = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a sweep file *.yaml, or a trial.json of results") from None
    version = trial.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, that of this code")
    return trial
