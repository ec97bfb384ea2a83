"""Train and certify networks: commands, `python -m harness`, and their results in Python."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

# Importing a command imports this: hence torch and pandas are imported late.
if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m harness.NAME`
    from harness.command_line import exit_if_removed

    exit_if_removed(sys.orig_argv[-len(sys.argv)].rpartition(".")[2])


def load(network_dir: str | Path, plugins: Collection[str] = ()) -> "nn.Sequential":
    """Return the trained network of a folder, float64, on the CPU and in evaluation mode.

    It takes images [B, C, H, W] with pixels in [0, 1], float64, to logits [B, K]. It is exactly the network of the
    verdicts; `.float()` makes a faster one.

    network_dir: such as results/cifar10/networks/<key>.
    plugins: the modules of users that may be imported, such as ["my_package.nets"]. Code never runs unless it is named.

    Raises InputError for a folder that is no network's, or has no weights, for weights that are not this network's, and
    for a network that needs another plugin, or other source of one.
    """
    from harness.common.errors import InputError, require
    from harness.config.plugins import load_for
    from harness.evaluation.network import load_network
    from harness.storage import folder

    network_dir = Path(network_dir)
    path, weights = network_dir / folder.TRAINING, network_dir / folder.WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing: give a network's folder, results/<sweep>/{folder.NETWORKS}/<key>")
    config = folder.read_training(path).config
    for name in config.plugins:
        require("plugins", list(plugins), name in plugins, f"a list with {name!r}, which {network_dir} needs")
    if not weights.is_file():
        raise InputError(f"{network_dir} has no {folder.WEIGHTS}: it is untrained, or was published without it")
    load_for(config)
    return load_network(config, weights)


def results(*directories: str | Path) -> "pd.DataFrame":
    """Return a row for each network of these sweeps under each of its evaluations: settings, metrics and problem.

    directories: such as results/cifar10. Column `network_dir` is for `load`; `problem` says why a row has no numbers.
    `row` and `section` are the label and the section of the tables, missing where no seed has numbers. Average within a
    section: others have another eps, other stages or images. `is_main` marks the main evaluation of the sweep file.
    `eps_value` is `eps` as a number.
    Raises InputError where a directory holds no networks, and for a faulty literature.csv.
    """
    import pandas as pd

    from harness.common.radius import Radius
    from harness.leaderboard.evaluations import EPS_VALUE
    from harness.leaderboard.table import build_leaderboard
    from harness.storage.folder import network_of

    leaderboard = build_leaderboard(*map(Path, directories))
    named, table = leaderboard.rows, leaderboard.table
    columns = {name: table["row"].map(named[name]) for name in ("row", "section")}
    columns["network_dir"] = table["evaluation_dir"].map(network_of)
    rows = table.drop(columns=["row", "result", "evaluation_settings", "published"])
    rows.insert(rows.columns.get_loc("eps") + 1, EPS_VALUE, rows["eps"].map(Radius, na_action="ignore").astype(float))
    return pd.DataFrame(columns).join(rows)
