"""A small search, and candidates with made-up results."""

from dataclasses import replace
from pathlib import Path

from small_sweep import changed, write

from harness.config.sweep_file import load_sweep
from harness.search.candidates import FINISHED, Candidate
from harness.storage import folder, names

SPACES = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "train.batch_size": {"integer": [16, 64]},
    "train.initialisation": {"choice": ["ibp", "default"]},
}
SEARCH = {"spaces": SPACES, "validation_images": 50, "trials": 4}
TINY = (("width", 0.05), ("train_images", 64), ("evaluation", {"stages": ["ibp"], "attack_steps": 1}))
METRICS = {names.EVALUATION_SECONDS: 1.0}


def searched_sweep(directory: Path, *changes, **search):
    """BASE's cnn5 by IBP, searched."""
    trials = ("trials", [{"model": "cnn5", "method": "ibp"}])
    content = changed(*TINY, trials, ("search", SEARCH | search), *changes)
    return load_sweep(write(directory, content), "full", True)


def finished(candidate, *values) -> Candidate:
    return replace(candidate, state=FINISHED, values=list(values))


def finish(place, certified, standard=0.0):
    """Write a result that says so."""
    metrics = {names.CERTIFIED_ERROR: certified, names.STANDARD_ERROR: standard, **METRICS}
    folder.write_result(place, folder.TrialResult(place.name, metrics, {}, {}, []))
