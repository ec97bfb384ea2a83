"""How candidates are compared on their way (asynchronous successive halving, Li et al. 2020).

A worker trains to a rung, bounds the validation images and reports; whoever runs the search compares, and writes down
what comes of it before the worker goes on. Workers need neither Optuna nor pydantic for it.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from baselines import build
from cerdeq.equilibrium import fold
from harness.clock import Stopped
from harness.config.trial import TrialConfig
from harness.data import load
from harness.device import best_device
from harness.evaluation.verdicts import errors_without_attack
from harness.storage import folder, names
from harness.storage.files import parsed, write_json
from harness.training import checkpoint, run_folder
from harness.training.trial import Judged, Report
from harness.typed import checked

CANDIDATE, SEARCH = "candidate.json", "search.json"


def read_record(place: Path) -> dict[str, Any]:
    """What candidate.json in a trial's folder holds. Raises DamagedFileError."""

    def parse(content: Any) -> dict[str, Any]:
        known = checked(_Record, content)
        record = {name: known[name] for name in _Record.__annotations__}
        return record | {"rungs": {str(int(epochs)): error for epochs, error in record["rungs"].items()}}

    return parsed(place / CANDIDATE, parse)


class _Record:
    """The types of what candidate.json holds."""

    entry: int
    number: int
    settings: dict[str, Any]
    attrs: dict[str, Any]
    rungs: dict[str, float]
    stopped: bool


def write_rung(place: Path, epochs: int, error: float, stopped: bool) -> None:
    """Write down a candidate's certified error after so many epochs, and whether it ends there."""
    record = read_record(place)
    rungs = record["rungs"] | {str(epochs): error}
    write_json(place / CANDIDATE, record | {"rungs": rungs, "stopped": stopped})


def falls_behind(error: float, others: Sequence[float], factor: int) -> bool:
    """Whether an error at a rung is not among the least 1/factor of all that came there, or the least of few."""
    ranked = sorted([error, *others])
    return error > ranked[max(1, len(ranked) // factor) - 1]


def run_candidate(
    directory: Path, report: Report, data_dir: str | None, judged: Judged, code: str | None = None
) -> None:
    """`run_folder` of a candidate's trial, as far as it keeps up with others.

    At each rung it reports `rung` and the certified error there. Raises Stopped where the search is asked to stop.
    """
    trial = folder.read_trial(directory / folder.TRIAL)
    for rung in _rungs(directory, trial.config.train.epochs):
        if read_record(directory)["stopped"]:
            return
        if str(rung) in read_record(directory)["rungs"]:
            continue
        if checkpoint.epochs_done(directory) < rung:
            with suppress(Stopped):
                run_folder(directory, report, data_dir, judged, rung, code)
            if checkpoint.epochs_done(directory) < rung:
                raise Stopped
        error = _certified_error(trial.config, directory, data_dir)
        report({names.RUNG: rung, names.CERTIFIED_ERROR: error})
    if not read_record(directory)["stopped"]:
        run_folder(directory, report, data_dir, judged, code=code)


def _rungs(directory: Path, epochs: int) -> list[int]:
    """After which epochs before the last a candidate is compared; never without ASHA."""
    asha = parsed(directory.parents[1] / SEARCH, lambda content: content["settings"]["asha"])
    if asha is None:
        return []
    rungs = (asha["min_epochs"] * asha["factor"] ** power for power in count())
    return list(takewhile(lambda rung: rung < epochs, rungs))


def _certified_error(config: TrialConfig, directory: Path, data_dir: str | None) -> float:
    """Of the validation images, by IBP at the sweep's eps, of the network in the checkpoint."""
    device = best_device()
    model = build(config.model, config.dataset, config.width, **config.options).to(device)
    checkpoint.load_network(directory, model, device)
    fold(model)
    _, held_out = load(config.dataset, data_dir).training_images(config.train_images, config.validation_images)
    if held_out is None:
        raise ValueError(f"{directory}: a candidate without validation images")
    images, labels = held_out.images.to(device), held_out.labels.to(device)
    return errors_without_attack(model.double().eval(), images, labels, config)[1]
