"""The training of a candidate in rungs (asynchronous successive halving, Li et al. 2020).

A worker trains to a rung, bounds the validation images and reports the error. The driver compares candidates and writes
its decision to candidate.json before the worker goes on. Workers need neither Optuna nor pydantic.
"""

from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path

from baselines import build
from cerdeq.equilibrium import fold
from harness.common import names
from harness.data import load
from harness.evaluation.ibp import errors_without_attack
from harness.machine.clock import Clock, Stopped
from harness.machine.device import best_device
from harness.storage import folder
from harness.storage.files import parse_json, write_json
from harness.sweep.trial import TrialConfig
from harness.training import checkpoint, run_folder
from harness.training.trial import Report

CANDIDATE, SEARCH = "candidate.json", "search.json"


def stop_candidate(trial_dir: Path) -> None:
    """Let a candidate's training end at the rung that it has reached."""
    path = trial_dir / CANDIDATE
    write_json(path, parse_json(path, dict) | {"stopped": True})


def is_candidate_stopped(trial_dir: Path) -> bool:
    """Return whether a candidate's training ends at the rung that it has reached. Raises DamagedFileError."""
    return parse_json(trial_dir / CANDIDATE, lambda content: content["stopped"])


def has_ended(trial_dir: Path) -> bool:
    """Return whether a candidate's trial has nothing left to train."""
    failure = folder.read_failure(trial_dir)
    fails_again = failure is not None and failure["repeats"]
    return fails_again or is_candidate_stopped(trial_dir) or folder.read_result(trial_dir) is not None


def run_candidate(trial_dir: Path, report: Report, data_dir: str | None, code: str | None = None) -> None:
    """Train a candidate as `run_folder` does, up to the rung where it is stopped.

    At each rung it reports the epoch and the certified error. `report` returns once the driver has decided whether the
    candidate goes on. After a kill the last rung is reported again. Raises Stopped if the search is asked to stop.
    """
    trial = folder.read_trial(trial_dir / folder.TRIAL)
    for rung in _rungs(trial_dir, trial.config.train.epochs):
        if is_candidate_stopped(trial_dir):
            return
        if checkpoint.epochs_done(trial_dir) > rung:
            continue
        if checkpoint.epochs_done(trial_dir) < rung:
            clock = Clock(asked=folder.stop_file(trial_dir).exists, until=rung)
            with suppress(Stopped):
                run_folder(trial_dir, report, data_dir, clock, code)
            if checkpoint.epochs_done(trial_dir) < rung:
                raise Stopped
        report({names.RUNG: rung, names.CERTIFIED_ERROR: _certified_error(trial.config, trial_dir, data_dir)})
    if not is_candidate_stopped(trial_dir):
        run_folder(trial_dir, report, data_dir, code=code)


def _rungs(trial_dir: Path, epochs: int) -> list[int]:
    """Return the epochs before the last one after which candidates are compared; none without ASHA."""
    asha = parse_json(trial_dir.parents[1] / SEARCH, lambda content: content["settings"]["asha"])
    if asha is None:
        return []
    rungs = (asha["min_epochs"] * asha["factor"] ** power for power in count())
    return list(takewhile(lambda rung: rung < epochs, rungs))


def _certified_error(config: TrialConfig, trial_dir: Path, data_dir: str | None) -> float:
    """Return the certified error, in percent, of the checkpoint's network on the validation images, by IBP."""
    device = best_device()
    model = build(config.model, config.dataset, config.width, **config.options).to(device)
    checkpoint.restore_network(trial_dir, model, device)
    fold(model)
    _, validation = load(config.dataset, data_dir).training_images(config.train_images, config.validation_images)
    if validation is None:
        raise ValueError(f"{trial_dir}: a candidate without validation images")
    images, labels = validation.images.to(device), validation.labels.to(device)
    return errors_without_attack(model.double().eval(), images, labels, config)[1]
