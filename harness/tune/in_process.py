"""Train trials one after the other in this process, without Ray and MLflow."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common import names
from harness.common.errors import InputError, require
from harness.common.masking import mask_secrets
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console, say
from harness.data import load
from harness.machine.clock import Stopped
from harness.machine.device import best_device
from harness.machine.environment import device_title
from harness.storage import folder
from harness.storage.files import make_directory, refuse_links
from harness.sweep.checkpoint_settings import Checkpoint, read_file
from harness.sweep.trial_config import labels
from harness.training.run import Report, split_images
from harness.tune.progress import TrialProgress
from harness.tune.stopping import Stopping
from harness.tune.workers import load_data, run_here, train_item

if TYPE_CHECKING:
    from harness.sweep.profiles import CheckedFile


def trials_of(
    file: "CheckedFile", patterns: list[str], data_dir: str | None
) -> tuple[dict[str, folder.Trial], dict[str, Path]]:
    """Return a sweep file's trials that match a pattern, and where each one's checkpoint lies, both by name: the label.

    patterns: of labels or keys; all trials without one. Raises InputError.
    """
    from harness.sweep.file import expand_file  # needs pydantic, which trial.json files do without

    sweep = expand_file(file, best_device().type == "cuda")
    require(f"{file.path}: search", "a search", sweep.search is None, "none: only harness.run can search")
    fingerprint = load(sweep.dataset, data_dir).fingerprint
    trials = {
        name: folder.make_trial(config, fingerprint)
        for name, config in zip(labels(sweep.trials), sweep.trials, strict=True)
    }
    if patterns:
        selected = select_by_pattern("--only", patterns, {name: (name, each.key) for name, each in trials.items()})
        trials = {name: trials[name] for name in selected}
    of_trials = {name: trial.config.checkpoint for name, trial in trials.items()}
    return trials, {name: sweep.checkpoints[of.sha256] for name, of in of_trials.items() if of}


def run_trials(
    trials: dict[str, folder.Trial], checkpoints: dict[str, Path], results_dir: Path, data_dir: str | None
) -> bool:
    """Train the trials that have no result yet and print what they do; return True if none has failed.

    trials, checkpoints: by the name of a trial in messages; networks trained elsewhere have a checkpoint. Raises
    InputError before anything starts, and Stopped if a signal has stopped them.
    """
    trial_dirs = {name: folder.trial_dir(results_dir / trial.config.sweep, trial.key) for name, trial in trials.items()}
    for sweep in {trial.config.sweep for trial in trials.values()}:
        refuse_links(results_dir / sweep)
    by_dir = dict(zip(trial_dirs.values(), labels([trial.config for trial in trials.values()]), strict=True))
    to_run = {}
    for name, trial in trials.items():
        folder.refuse_another(trial_dirs[name], trial)
        if not _print_if_finished(by_dir[trial_dirs[name]], trial_dirs[name]):
            to_run[name] = trial
    sources = {
        name: _find_checkpoint(checkpoints[name], trial_dirs[name], checkpoint)
        for name, trial in to_run.items()
        if (checkpoint := trial.config.checkpoint) is not None
    }
    data_sets = load_data(to_run, data_dir)
    for name, trial in to_run.items():
        try:
            split_images(trial.config, data_sets[trial.config.dataset])
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    unfinished = {trial_dirs[name]: trial for name, trial in to_run.items()}
    for name, trial in to_run.items():
        make_directory(trial_dir := trial_dirs[name])
        folder.take_over(trial_dir, trial)
        if trial.config.checkpoint is not None:
            folder.copy_checkpoint(trial.config.checkpoint, sources[name], trial_dir / folder.SOURCE)
    failed = {trial_dir for trial_dir in unfinished if folder.read_failure(trial_dir) is not None}
    if unfinished:
        say(f"device: {device_title(best_device())}")
    with Stopping(None, say) as stopping:

        def train(trial_dir: Path, report: Report) -> None:
            if not stopping.asked:
                _train(by_dir[trial_dir], trial_dir, unfinished[trial_dir].config.epochs, data_dir, stopping)

        def on_end(trial_dir: Path, error: str | None) -> None:
            if error is not None:
                failed.add(trial_dir)
                say(mask_secrets(f"failed: {error}"), file=sys.stderr)
            elif (result := folder.read_result(trial_dir)) is not None:
                failed.discard(trial_dir)
                _print_metrics(result)

        failed_last = sorted(unfinished, key=lambda trial_dir: trial_dir in failed)
        run_here(failed_last, train, lambda trial_dir, row: None, on_end)
    if len(trials) > 1 or stopping.asked:
        _print_summary(by_dir, failed)
    if stopping.asked and any(folder.read_result(trial_dir) is None for trial_dir in unfinished):
        raise Stopped
    return not failed


def _train(label: str, trial_dir: Path, epochs: int, data_dir: str | None, stopping: Stopping) -> None:
    """Train a trial and print what it does and its result. Raises as `run_folder` does."""
    say(f"{label} -> {trial_dir}")
    with TrialProgress(epochs, new_console()) as progress, _print_log():
        train_item(trial_dir, progress.report, data_dir, asked=lambda: stopping.asked)


class _Printed(logging.Handler):
    """Prints what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        say(self.format(record))


@contextmanager
def _print_log() -> Iterator[None]:
    """Print what the harness logs within the block, above a bar if there is one."""
    logger, handler = logging.getLogger("harness"), _Printed()
    level = logger.level
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_if_finished(label: str, trial_dir: Path) -> bool:
    """Print the error of a finished trial; return True if it is one."""
    result = folder.read_result(trial_dir)
    if result is not None:
        name = names.CERTIFIED_ERROR
        say(f"{label} -> {trial_dir}: finished, {name} {result.metrics[name]}")
    return result is not None


def _print_metrics(result: folder.TrialResult) -> None:
    for name, value in result.metrics.items():
        say(f"{name}: {value if value is None else format(value, '.6g')}")
    for warning in result.warnings:
        say(f"warning: {warning}")


def _print_summary(by_dir: dict[Path, str], failed: set[Path]) -> None:
    """Print how many trials finished, and the labels of the others. by_dir: all labels."""
    finished = {trial_dir for trial_dir in by_dir if folder.read_result(trial_dir) is not None}
    outcomes = {"finished": finished, "failed": failed, "unfinished": by_dir.keys() - finished - failed}
    for outcome, trial_dirs in outcomes.items():
        if trial_dirs:
            matching = ", ".join(label for trial_dir, label in by_dir.items() if trial_dir in trial_dirs)
            say(f"{len(trial_dirs)} of {len(by_dir)} {outcome}" + ("" if outcome == "finished" else f": {matching}"))


def _find_checkpoint(file: Path, trial_dir: Path, checkpoint: Checkpoint) -> Path:
    """Return the file of a checkpoint: the given one, or that in the trial's folder from an earlier run.

    Raises InputError if there is none, or another one.
    """
    stored = trial_dir / folder.SOURCE
    read_file(path := stored if stored.exists() else file, checkpoint)
    return path
