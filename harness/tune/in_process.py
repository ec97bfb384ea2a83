"""Train trials one after the other in this process, without Ray and MLflow."""

from pathlib import Path

from harness.common import names
from harness.common.errors import InputError, Stopped
from harness.common.terminal import new_console, say
from harness.config.trial import labels
from harness.machine.device import best_device
from harness.machine.environment import device_name
from harness.pretrained.checkpoint import Checkpoint, read_file
from harness.storage import folder
from harness.storage.files import make_directory, refuse_links
from harness.training.trial import Report, split_images
from harness.tune.progress import Callbacks, SweepProgress
from harness.tune.stopping import Stopping
from harness.tune.workers import load_data, run_here, train_item


def run_trials(
    trials: dict[str, folder.TrialRecord], checkpoints: dict[str, Path], results_dir: Path, data_dir: str | None
) -> bool:
    """Train the trials that have no result yet and print what they do; return True if none has failed.

    trials, checkpoints: by the name of a trial in messages; networks trained elsewhere have a checkpoint. Raises
    InputError before anything starts, and Stopped if a signal has stopped them.
    """
    trial_dirs = {name: folder.trial_dir(results_dir / trial.config.sweep, trial.key) for name, trial in trials.items()}
    for sweep in {trial.config.sweep for trial in trials.values()}:
        refuse_links(results_dir / sweep)
    by_key = dict(
        zip([trial.key for trial in trials.values()], labels([t.config for t in trials.values()]), strict=True)
    )
    to_run = {}
    for name, trial in trials.items():
        folder.refuse_another(trial_dirs[name], trial)
        if (result := folder.read_result(trial_dirs[name])) is None:
            to_run[name] = trial
        else:
            folder.take_over(trial_dirs[name], trial)
            error = f"{names.CERTIFIED_ERROR} {result.metrics[names.CERTIFIED_ERROR]}"
            say(f"{by_key[trial.key]} -> {trial_dirs[name]}: finished, {error}")
    sources = {
        name: _find_checkpoint(checkpoints[name], trial_dirs[name], checkpoint)
        for name, trial in to_run.items()
        if (checkpoint := trial.config.checkpoint) is not None
    }
    data_sets = load_data(to_run, data_dir)
    for data in data_sets.values():
        say(f"data: {data.info.title}: {data.describe()}")
    for name, trial in to_run.items():
        try:
            split_images(trial.config, data_sets[trial.config.data_source])
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    for name, trial in to_run.items():
        make_directory(trial_dirs[name])
        folder.take_over(trial_dirs[name], trial)
        if trial.config.checkpoint is not None:
            folder.copy_checkpoint(trial.config.checkpoint, sources[name], trial_dirs[name] / folder.IMPORTED)
    return _train({trial_dirs[name]: trial for name, trial in to_run.items()}, by_key, data_dir)


def _train(trials: dict[Path, folder.TrialRecord], labels: dict[str, str], data_dir: str | None) -> bool:
    """Train trials, by their folders, those that failed before last. labels: by key."""
    failed_last = sorted(trials, key=lambda trial_dir: folder.read_failure(trial_dir) is not None)
    for trial_dir in trials:  # else an old failure would be reported as this run's
        (trial_dir / folder.FAILURE).unlink(missing_ok=True)
    if trials:
        say(f"device: {device_name(best_device())}")
    with (
        SweepProgress(list(trials.values()), labels, new_console()) as progress,
        Stopping(None, progress.print_line) as stopping,
    ):

        def work(trial_dir: Path, report: Report) -> None:
            if not stopping.asked:
                progress.print_line(f"{labels[trial_dir.name]} -> {trial_dir}")
            train_item(trial_dir, report, data_dir, asked=lambda: stopping.asked)

        callbacks = Callbacks(progress, stopping)
        run_here(failed_last, work, callbacks.on_report, callbacks.on_end)
    is_complete = all(folder.read_result(trial_dir) is not None for trial_dir in trials)
    if stopping.asked and not is_complete:
        raise Stopped
    return is_complete


def _find_checkpoint(file: Path, trial_dir: Path, checkpoint: Checkpoint) -> Path:
    """Return the file of a checkpoint: the given one, or that in the trial's folder from an earlier run.

    Raises InputError if there is none, or another one.
    """
    stored = trial_dir / folder.IMPORTED
    read_file(path := stored if stored.exists() else file, checkpoint)
    return path
