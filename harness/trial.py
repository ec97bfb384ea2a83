"""Train and certify trials without Ray and MLflow: those of a sweep file, or those that trial.json files describe.

`python -m harness.trial sweeps/cifar10.yaml --only "cnn7 ibp *"` trains what `harness.run` would train. `python -m
harness.trial results/cifar10/trials/KEY/trial.json --results-dir again` trains the trial of a result again. The
folders are the same as those of `harness.run`, which finds the trials finished.

Trials run in order, those that failed before last. Finished trials stay as they are; the others go on from what is
saved. SIGTERM or Ctrl-C stops a trial after its epoch; the same command then goes on.
"""

import argparse
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir, add_sweep_options
from harness.common.errors import InputError, SettingError, require
from harness.config.trial import RECIPE_VERSION
from harness.storage import folder
from harness.storage.files import DamagedFileError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    files = "a sweep file, or files trial.json of results"
    parser.add_argument("files", type=Path, nargs="+", metavar="SWEEP.yaml|TRIAL.json", help=files)
    add_sweep_options(parser)
    add_data_dir(parser)
    add_results_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    if (sweep_file := options.files[0]).suffix in (".yaml", ".yml"):
        require("SWEEP.yaml", " ".join(map(str, options.files)), len(options.files) == 1, "one sweep file alone")
        trials, checkpoints = _read_sweep(sweep_file, options)
    elif options.only or options.set or options.profile:
        raise InputError("--only, --set and --profile: need a sweep file, not trial.json files")
    else:
        trials = {str(path): _load_trial(path) for path in options.files}
        checkpoints = {path: Path(path).with_name(folder.IMPORTED) for path in trials}
    from harness.tune.in_process import run_trials

    return OK if run_trials(trials, checkpoints, options.results_dir, options.data_dir) else FAILED


def _read_sweep(path: Path, options: argparse.Namespace) -> tuple[dict[str, folder.TrialRecord], dict[str, Path]]:
    """Return a sweep file's trials that --only selects, and where each one's checkpoint lies, both by its label."""
    from harness.config.file import check_keys

    file = check_keys(path, options.profile, options.set)  # wrong keys fail before seconds of imports
    from harness.machine.device import best_device
    from harness.tune.planned_sweep import PlannedSweep, load_checked

    sweep, data = load_checked(file, best_device().type == "cuda", options.results_dir, options.data_dir, writes=True)
    require(f"{path}: search", "a search", sweep.search is None, "none: only harness.run can search")
    run = PlannedSweep.of(sweep, data, options.results_dir / sweep.name, options.only)
    trials = {run.labels[trial.key]: trial for trial in run.trials}
    of_trials = {label: trial.config.checkpoint for label, trial in trials.items()}
    return trials, {label: sweep.checkpoints[of.sha256] for label, of in of_trials.items() if of}


def _load_trial(path: Path) -> folder.TrialRecord:
    try:
        trial = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a sweep file *.yaml, or a trial.json of results") from None
    version = trial.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, that of this code")
    return trial


if __name__ == "__main__":
    raise SystemExit(command_line.main("trial"))
