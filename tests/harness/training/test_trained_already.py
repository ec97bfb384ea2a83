"""A trial that differs from a finished one in how it is judged alone is not trained again."""

import dataclasses
import json
import shutil

import pytest

from harness.storage import folder, names
from harness.training import run_trial


@pytest.fixture
def trained(tmp_path, tiny_trial, whole_trial):
    """A sweep's directory with a finished trial."""
    shutil.copytree(whole_trial("cnn5")[0], folder.place(tmp_path, "first"))
    key = folder.read_trial(folder.place(tmp_path, "first") / folder.TRIAL).key
    folder.place(tmp_path, "first").rename(folder.place(tmp_path, key))
    return tmp_path, folder.place(tmp_path, key)


def judged_otherwise(config):
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, attack_step=1.0))


def test_another_attack_is_judged_from_the_same_weights(trained, tiny_trial):
    sweep, first = trained
    rows, again = [], folder.place(sweep, "again")
    result = run_trial(judged_otherwise(tiny_trial("cnn5")), again, rows.append)
    assert rows == [] and "trained already, as trial" in (again / "log.txt").read_text()
    for name in (folder.WEIGHTS, folder.EPOCHS):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    known = folder.read_result(first).metrics
    for name in (names.STANDARD_ERROR, names.CERTIFIED_ERROR, names.TRAIN_SECONDS):
        assert result.metrics[name] == known[name]


def test_another_seed_is_trained(trained, tiny_trial):
    rows = []
    config = dataclasses.replace(judged_otherwise(tiny_trial("cnn5")), seed=1)
    run_trial(config, folder.place(trained[0], "again"), rows.append)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["unfinished", "damaged", "another recipe", "no checkpoint"])
def test_what_cannot_be_relied_on_is_not_taken_over(trained, tiny_trial, damage):
    sweep, first = trained
    content = json.loads((first / folder.TRIAL).read_text())
    if damage == "unfinished":
        (first / folder.RESULT).unlink()
    elif damage == "damaged":
        (first / folder.TRIAL).write_text("{")
    elif damage == "another recipe":
        (first / folder.TRIAL).write_text(json.dumps(content | {"recipe_version": 1}))
    else:
        (first / folder.CHECKPOINT).unlink()
    rows = []
    run_trial(judged_otherwise(tiny_trial("cnn5")), folder.place(sweep, "again"), rows.append)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
