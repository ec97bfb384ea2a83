"""Trial folders with made-up metrics, and the tables made of them."""

import json
from dataclasses import replace

from harness.config.trial import RECIPE_VERSION, TrialConfig
from harness.storage import files, folder, names

PUBLISHED_HEADER = "dataset,eps,model,method,standard_error,certified_error,source\n"


def publish(sweep, lines):
    (sweep.parent / "published.csv").write_text(PUBLISHED_HEADER + lines)


def metrics(certified=65.0, **others):
    """All metrics of a finished trial, the three errors in order."""
    errors = {names.STANDARD_ERROR: certified - 14, names.ATTACK_ERROR: certified - 3, names.CERTIFIED_ERROR: certified}
    widths = {names.BOUND_WIDTH: 12.3456, names.BOUND_WIDTH_RELATIVE: 3.2}
    return errors | widths | {names.PARAMETERS: 17190602, names.TRAIN_SECONDS: 90.0} | others


def add(
    sweep,
    measured=None,
    *,
    fingerprint="data",
    recipe=None,
    failure=None,
    warnings=(),
    key=None,
    environment=None,
    **config,
):
    """One trial folder: finished with `measured`, else failed with `failure`, else unfinished."""
    base = {"dataset": "cifar10", "eps": "8/255", "seed": 0, "model": "cnn7", "method": "ibp", "profile": "full"}
    trial = folder.make_trial(TrialConfig(sweep="study", **(base | config)), fingerprint)
    if recipe not in (None, RECIPE_VERSION):
        trial = replace(trial, recipe_version=recipe, key=f"{trial.key}{recipe}")
    path = sweep / "trials" / (key or trial.key)
    files.write_json(path / folder.TRIAL, folder.trial_json(trial))
    if measured is not None:
        result = {"key": trial.key, "metrics": measured, "environment": environment or {}, "data": {}}
        result |= {"warnings": list(warnings)}
        files.write_json(path / folder.RESULT, result)
    if failure is not None:
        files.write_json(path / folder.FAILURE, failure)
    return path


def own(table):
    return table.rows[table.rows["source"].isna()]


def read_json(sweep):
    return json.loads((sweep / "leaderboard.json").read_text())


def text(sweep, kind):
    return (sweep / f"leaderboard.{kind}").read_text(encoding="utf-8")
