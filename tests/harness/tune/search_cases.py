"""A small search, and studies with made-up results."""

from small_sweep import changed, write

from harness.sweep.sweep_file import load_sweep
from harness.tune.search.studies import begin_studies

SPACES = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "train.batch_size": {"integer": [16, 64]},
    "train.initialisation": {"choice": ["ibp", "default"]},
}
SEARCH = {"spaces": SPACES, "validation_images": 50, "trials": 4}
TINY = (("width", 0.05), ("train_images", 64), ("evaluation", {"stages": ["ibp"], "attack_steps": 1}))


def searched_sweep(directory, **search):
    """BASE's cnn5 by IBP, searched."""
    trials = ("trials", [{"model": "cnn5", "method": "ibp"}])
    return load_sweep(write(directory, changed(*TINY, trials, ("search", SEARCH | search))), "full", True)


def new_study(directory, sweep):
    """The study of a sweep's only entry, in a directory of its own."""
    directory.mkdir(exist_ok=True)
    (study,) = begin_studies(directory, sweep.search, sweep.searched)
    return study
