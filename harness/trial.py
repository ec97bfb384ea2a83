"""Train and certify trials without Ray and MLflow: those of a sweep file, or those that trial.json files describe.

`python -m harness.trial sweeps/cifar10.yaml --only "cnn7 ibp *"` trains what `harness.run` would train. `python -m
harness.trial results/cifar10/trials/KEY/trial.json --results-dir again` trains the trial of a result again; that needs
no pydantic either. The folders are the same as those of `harness.run`, which finds the trials finished.

Trials run in order, those that failed before last. Finished trials stay as they are; the others go on from what is
saved. SIGTERM or Ctrl-C stops a trial after its epoch; the same command then goes on.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir, add_sweep_options
from harness.common import names
from harness.common.errors import InputError, SettingError, require
from harness.common.masking import mask_secrets
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console, say
from harness.machine.clock import Stopped
from harness.machine.environment import device_title
from harness.storage import folder
from harness.storage.files import DamagedFileError, make_directory, refuse_links
from harness.sweep.checkpoint_settings import read_file
from harness.sweep.trial import RECIPE_VERSION, labels
from harness.tune.progress import TrialProgress
from harness.tune.stopping import Stopping
from harness.tune.work import load_data, run_here, train_item

if TYPE_CHECKING:
    from harness.training.trial import Report

# What imports torch is imported late: it takes seconds.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    files = "a sweep file, or files trial.json of results"
    parser.add_argument("files", type=Path, nargs="+", metavar="SWEEP.yaml|TRIAL.json", help=files)
    add_sweep_options(parser)
    add_data_dir(parser)
    add_results_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    from harness.machine.device import best_device
    from harness.training.trial import split_images

    results_dir, data_dir = options.results_dir, options.data_dir
    trials, checkpoint_files = _load_trials(options)
    trial_dirs = {path: folder.trial_dir(results_dir / trial.config.sweep, trial.key) for path, trial in trials.items()}
    for sweep in {trial.config.sweep for trial in trials.values()}:
        refuse_links(results_dir / sweep)
    by_dir = dict(zip(trial_dirs.values(), labels([trial.config for trial in trials.values()]), strict=True))
    to_run = {}
    for path, trial in trials.items():
        folder.refuse_another(trial_dirs[path], trial)
        if not _print_result(by_dir[trial_dirs[path]], trial_dirs[path]):
            to_run[path] = trial
    checkpoints = {
        path: _find_checkpoint(checkpoint_files[path], trial_dirs[path], trial) for path, trial in to_run.items()
    }
    data_sets = load_data(to_run, data_dir)
    for path, trial in to_run.items():
        try:
            split_images(trial.config, data_sets[trial.config.dataset])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    unfinished = {trial_dirs[path]: trial for path, trial in to_run.items()}
    for trial_dir, trial in unfinished.items():
        make_directory(trial_dir)
        folder.take_over(trial_dir, trial)
    for path, checkpoint in checkpoints.items():
        if (config := to_run[path].config).checkpoint is not None:
            folder.copy_checkpoint(config.checkpoint, checkpoint, trial_dirs[path] / folder.SOURCE)
    failed = {trial_dir for trial_dir in unfinished if folder.read_failure(trial_dir) is not None}
    if unfinished:
        say(f"device: {device_title(best_device())}")
    with Stopping(None, say) as stopping:

        def train(trial_dir: Path, report: "Report") -> None:
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
    return FAILED if failed else OK


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


def _print_result(label: str, trial_dir: Path) -> bool:
    """Return True if the trial has a result, and print its error."""
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


def _load_trials(options: argparse.Namespace) -> tuple[dict[str, folder.Trial], dict[str, Path]]:
    """Return the trials, and where each one's checkpoint lies, if it has one; both by what messages call the trial.

    Raises InputError.
    """
    if (sweep_file := options.files[0]).suffix in (".yaml", ".yml"):
        require("SWEEP.yaml", " ".join(map(str, options.files)), len(options.files) == 1, "one sweep file alone")
        return _load_sweep(sweep_file, options)
    if options.only or options.set or options.profile:
        raise InputError("--only, --set and --profile: need a sweep file, not trial.json files")
    trials = {str(path): _load_trial(path) for path in options.files}
    return trials, {path: Path(path).with_name(folder.SOURCE) for path in trials}


def _load_sweep(path: Path, options: argparse.Namespace) -> tuple[dict[str, folder.Trial], dict[str, Path]]:
    from harness.data import load
    from harness.machine.device import best_device
    from harness.sweep.file import load_sweep  # imports pydantic

    sweep = load_sweep(path, options.profile, best_device().type == "cuda", options.set)
    require(f"{path}: search", "a search", sweep.search is None, "none: only harness.run can search")
    fingerprint = load(sweep.dataset, options.data_dir).fingerprint
    trials = {
        label: folder.make_trial(config, fingerprint)
        for label, config in zip(labels(sweep.trials), sweep.trials, strict=True)
    }
    if options.only:
        selected = select_by_pattern("--only", options.only, {name: (name, each.key) for name, each in trials.items()})
        trials = {name: trials[name] for name in selected}
    of_trials = {name: trial.config.checkpoint for name, trial in trials.items()}
    return trials, {name: sweep.checkpoints[of.sha256] if of else path for name, of in of_trials.items()}


def _find_checkpoint(file: Path, trial_dir: Path, trial: folder.Trial) -> Path:
    """Return the file of a trial's checkpoint: the given one, or that in its folder from an earlier run.

    Raises InputError if there is none, or another one.
    """
    stored = trial_dir / folder.SOURCE
    checkpoint = stored if stored.exists() else file
    if trial.config.checkpoint is not None:
        read_file(checkpoint, trial.config.checkpoint)
    return checkpoint


def _load_trial(path: Path) -> folder.Trial:
    try:
        trial = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a sweep file *.yaml, or a trial.json of results") from None
    version = trial.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, that of this code")
    return trial


if __name__ == "__main__":
    raise SystemExit(command_line.main("trial"))
