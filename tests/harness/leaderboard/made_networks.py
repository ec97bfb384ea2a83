"""Folders of networks with made-up metrics or verdicts, and the tables made of them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd

from harness.common import names
from harness.common.radius import Radius
from harness.config.training import RECIPE_VERSION, Training
from harness.settings import Evaluation, Recipe
from harness.storage import files, folder
from harness.storage.records import Result, make_record, record_json

EVALUATION = Evaluation(eps=Radius("8/255"))
RIGHT, WRONG = names.CERTIFIED, names.UNKNOWN


HEADER = "dataset,eps,model,method,standard_error,certified_error,source"


def publish(sweep, lines, *columns):
    """A literature.csv of these lines, with further columns after the source."""
    (sweep.parent / "literature.csv").write_text(",".join((HEADER, *columns)) + "\n" + lines)


def metrics(certified=65.0, **others):
    """All metrics of a finished evaluation, the three errors in order."""
    errors = {names.STANDARD_ERROR: certified - 14, names.ATTACK_ERROR: certified - 3, names.CERTIFIED_ERROR: certified}
    widths = {names.BOUND_WIDTH: 12.3456, names.BOUND_WIDTH_RELATIVE: 3.2}
    return errors | widths | {names.PARAMETERS: 17190602, names.TRAIN_SECONDS: 90.0} | others


def add(
    directory,
    measured=None,
    *,
    fingerprint="data",
    recipe=RECIPE_VERSION,
    failure=None,
    warnings=(),
    key=None,
    profile="full",
    is_main=True,
    eps="8/255",
    evaluation=(),
    **config,
):
    """The folder of an evaluation of a network: finished with `measured`, else failed with `failure`, else unfinished.

    is_main: whether it is the main evaluation of the network under this profile. eps: of the evaluation, and of
    training unless `train` says it. evaluation: its changed settings.
    """
    train = config.pop("train", Recipe())
    base = {"dataset": "cifar10", "seed": 0, "model": "cnn7", "method": "ibp"}
    config = Training(**base | config, train=train.replace(eps=train.eps or Radius(eps)))
    record = make_record(config, fingerprint)
    if recipe != RECIPE_VERSION:
        record = replace(record, recipe_version=recipe, key=f"{record.key}{recipe}")
    network_dir = folder.network_dir(directory, key or record.key)
    files.write_json(network_dir / folder.TRAINING, record_json(record))
    evaluation = EVALUATION.replace(eps=Radius(eps), **dict(evaluation))
    path = folder.begin_evaluation(network_dir, evaluation)
    if is_main:
        folder.add_to_study(network_dir, profile, evaluation)
    if measured is not None:
        folder.write_trained(network_dir, Result(record.key, {}, {}, {}, []))
        result = Result(f"{record.key}/{evaluation.key}", measured, {}, {}, list(warnings))
        folder.write_result(path, result)
    if failure is not None:
        folder.write_failure(network_dir, failure)
    return path


def add_verdicts(directory, verdicts, *, label=3, rho_bound=None, **config):
    """A finished evaluation with these verdicts, one an image. rho_bound: of a network with an equilibrium."""
    wrong = 100 * float(np.mean([verdict != RIGHT for verdict in verdicts]))
    errors = {names.STANDARD_ERROR: 0.0, names.ATTACK_ERROR: 0.0, names.CERTIFIED_ERROR: wrong}
    path = add(directory, metrics(**errors | ({names.RHO_BOUND: rho_bound} if rho_bound else {})), **config)
    table = pd.DataFrame({names.INDEX: range(len(verdicts)), names.LABEL: label, names.VERDICT: verdicts})
    table = table.assign(**{names.STAGE: "none", names.WIDTH: 1.0})
    table.to_parquet(path / folder.VERDICTS)
    return path


def add_errors(directory, errors, **config):
    """An evaluation a seed, the first so many of 100 images wrong."""
    for seed, wrong in enumerate(errors):
        add_verdicts(directory, [WRONG] * wrong + [RIGHT] * (100 - wrong), seed=seed, **config)


def own(leaderboard):
    return leaderboard.rows[leaderboard.rows["source"].isna()]


def read_json(sweep):
    return json.loads((sweep / "leaderboard.json").read_text())


def text(sweep, kind):
    return (sweep / f"leaderboard.{kind}").read_text(encoding="utf-8")
