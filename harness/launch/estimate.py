"""How long trials may take: what their rows took in the sweep's directory, or what others took, by operations."""

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from statistics import mean

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from baselines import DATASETS, build
from harness.config.trial import TrialConfig, identity
from harness.launch.study import Study
from harness.methods import make_method
from harness.storage import folder, names
from harness.storage.files import DamagedFileError
from harness.storage.folder import Trial


@dataclass(frozen=True)
class Estimate:
    """How long a trial will take from where it is.

    work: operations of what is left, 0 where nobody can tell. seconds: None where nothing has finished in the sweep's
    directory. measured: whether trials of its row have.
    """

    work: float
    seconds: float | None
    measured: bool


def estimates(study: Study, trials: Iterable[Trial]) -> dict[str, Estimate]:
    """Of each of these trials of a study, by key, from what is on record now."""
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    paces = []
    for place in folder.trial_folders(study.directory):
        try:
            config = folder.read_trial(place / folder.TRIAL).config
            rows, result = folder.read_epochs(place), folder.read_result(place)
            seconds = [row[names.TRAIN_EPOCH_SECONDS] for row in rows if names.TRAIN_EPOCH_SECONDS in row]
        except (DamagedFileError, TypeError):
            continue
        if result is None or not seconds:
            continue
        judging = result.metrics.get(names.EVALUATION_SECONDS) or 0.0
        took[identity(config)].append((mean(seconds), judging))
        if work := _work(study, config):
            paces.append((mean(seconds) * config.train.epochs + judging) / work)
    return {trial.key: _estimate(study, trial, took, paces) for trial in trials}


def longest_first(study: Study, trials: list[Trial]) -> list[Trial]:
    """The trials so that none that is long begins last; those that failed before still come after all others."""
    failed = {trial.key: folder.read_failure(study.places[trial.key]) is not None for trial in trials}
    left = estimates(study, trials)

    def shortness(trial: Trial) -> float:
        seconds = left[trial.key].seconds
        return -(left[trial.key].work if seconds is None else seconds)

    return sorted(trials, key=lambda trial: (failed[trial.key], shortness(trial)))


def _estimate(study: Study, trial: Trial, took: dict[str, list[tuple[float, float]]], paces: list[float]) -> Estimate:
    config, own = trial.config, took.get(identity(trial.config))
    done = max((row[names.EPOCH] for row in folder.read_epochs(study.places[trial.key])), default=0)
    left = 1 - done / config.train.epochs
    whole = _work(study, config)
    work = (whole or 0.0) * left
    if own:
        epoch, judging = (mean(each) for each in zip(*own, strict=True))
        return Estimate(work, epoch * config.train.epochs * left + judging, measured=True)
    return Estimate(work, work * mean(paces) if paces and whole else None, measured=False)


def _work(study: Study, config: TrialConfig) -> float | None:
    """Roughly the operations of a whole training, in forward passes of plain training; None where nobody can tell,
    such as of finished trials whose plugin is not here."""
    with suppress(Exception):  # whatever a network of a user's does where tensors have no values
        cost = make_method(config.method, config.method_options).cost
        operations = _operations(config.model, config.dataset, config.width, json.dumps(config.options))
        return operations * cost * study.training_images(config) * config.train.epochs
    return None


@cache
def _operations(model: str, dataset: str, width: float, options: str) -> int:
    """Of one image's way through a network in training, found out without computing anything. options: as JSON."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        network = build(model, dataset, width, **json.loads(options)).train()
        network(torch.zeros(2, *DATASETS[dataset].shape))
    return counter.get_total_flops() // 2
