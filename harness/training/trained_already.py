"""Training that another trial of the sweep has done: two that differ in nothing but how they are judged train alike."""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.errors import InputError
from harness.storage import folder
from harness.storage.files import write_atomically
from harness.training.checkpoint import epochs_done

_log = logging.getLogger(__name__)


def take_over(trial: folder.Trial, directory: Path) -> None:
    """Give the trial's folder the epochs and the last checkpoint of such a trial beside it, where it has none itself.

    What follows goes on from there as after a kill: nothing is trained, the network is folded and judged anew.
    """
    if epochs_done(directory):
        return
    for place in folder.others(directory):
        if _is_trained_alike(trial, place):
            for name in (folder.EPOCHS, folder.CHECKPOINT):
                write_atomically(directory / name, partial(shutil.copyfile, place / name))
            _log.info("trained already, as trial %s: judged alone", place.name)
            return


def _is_trained_alike(trial: folder.Trial, place: Path) -> bool:
    """Whether a folder's trial is of today's recipe and the same data, settings and seed, and wholly trained."""
    try:
        if folder.is_stale(place) or folder.read_result(place) is None:
            return False
        other = folder.read_trial(place / folder.TRIAL)
    except InputError:
        return False  # damaged; what is wrong with it is told where it is read for itself
    alike = replace(other.config, evaluation=trial.config.evaluation) == trial.config
    return alike and other.fingerprint == trial.fingerprint and epochs_done(place) == trial.config.train.epochs
