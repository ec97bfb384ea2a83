"""Train and certify networks: commands, `python -m harness`, and their results in Python."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

# Importing a command imports this: hence torch and pandas are imported late.


def load(trial_dir: str | Path, plugins: Collection[str] = ()) -> "nn.Sequential":
    """Return the trained network of a trial, float64, on the CPU and in evaluation mode.

    It takes images [B, C, H, W] with pixels in [0, 1], float64, to logits [B, K]. It is exactly the network of the
    verdicts; `.float()` makes a faster one.

    trial_dir: such as results/cifar10/trials/<key>.
    plugins: the modules of users that may be imported, such as ["my_package.nets"]. Code never runs unless it is named.

    Raises InputError for a folder that is no trial's, or has no trained network, for weights that are not this
    network's, and for a trial that needs another plugin, or other source of one.
    """
    from harness.common.errors import InputError, require
    from harness.config.plugins import load_for
    from harness.evaluation.network import load_network
    from harness.storage import folder

    trial_dir = Path(trial_dir)
    if not (trial_dir / folder.TRIAL).is_file():
        raise InputError(f"{trial_dir / folder.TRIAL} is missing: give a trial's folder, results/<sweep>/trials/<key>")
    config, weights = folder.read_trial(trial_dir / folder.TRIAL).config, trial_dir / folder.WEIGHTS
    for name in config.plugins:
        require(
            "plugins", list(plugins), name in plugins, f"a list with {name!r}, which {trial_dir} needs: trust it first"
        )
    if not weights.is_file():
        raise InputError(f"{trial_dir} has no {folder.WEIGHTS}: the trial is unfinished, or was published without it")
    load_for(config)
    return load_network(config, weights)


def results(*directories: str | Path) -> "pd.DataFrame":
    """Return a row for each trial of these sweeps and each of its certifications: settings, metrics and problem.

    directories: such as results/cifar10. Column `trial_dir` is for `load`; `problem` says why a row has no numbers.
    Raises InputError where a directory holds no trials.
    """
    from harness.leaderboard.rows import read_trials

    return read_trials(*map(Path, directories)).drop(columns=["row", "result"])
